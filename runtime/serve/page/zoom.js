/** Zoom and pan: pure arithmetic. */

/**
 * @typedef {object} Placement Where a picture lies in its tile.
 * @property {number} scale 1 fits the picture into the tile
 * @property {number} x pixels that its middle is right of the tile's
 * @property {number} y pixels that it is below
 */

/** @type {Readonly<Placement>} */
export const FITTED = Object.freeze({ scale: 1, x: 0, y: 0 });

const MOST = 24;

/**
 * Zoomed by `factor`, with the point of the picture under (px, py) staying there.
 *
 * @param {Placement} placement
 * @param {number} factor
 * @param {number} px pixels from the tile's middle
 * @param {number} py
 * @returns {Placement}
 */
export function zoomedAt({ scale, x, y }, factor, px = 0, py = 0) {
  const zoomed = Math.min(MOST, Math.max(1, scale * factor));
  if (zoomed === 1) return { ...FITTED };
  const ratio = zoomed / scale;
  return { scale: zoomed, x: px - (px - x) * ratio, y: py - (py - y) * ratio };
}

/**
 * Moved, but never so far that the picture's edge passes the tile's middle.
 *
 * @param {Placement} placement
 * @param {number} dx pixels
 * @param {number} dy
 * @param {{width: number, height: number}} fitted size of the picture at scale 1
 * @returns {Placement}
 */
export function moved({ scale, x, y }, dx, dy, fitted) {
  const reachX = (fitted.width * scale) / 2;
  const reachY = (fitted.height * scale) / 2;
  return { scale, x: within(x + dx, reachX), y: within(y + dy, reachY) };
}

/**
 * The largest size of a picture of `width` x `height` that fits into a box.
 *
 * @param {{width: number, height: number}} picture
 * @param {{width: number, height: number}} box
 */
export function fittedSize(picture, box) {
  const ratio = Math.min(box.width / picture.width, box.height / picture.height);
  return { width: picture.width * ratio, height: picture.height * ratio, ratio };
}

/**
 * In how many columns `count` square pictures are largest in a box.
 *
 * @param {number} count
 * @param {number} width
 * @param {number} height
 */
export function bestColumns(count, width, height) {
  let best = 1;
  let largest = 0;
  for (let columns = 1; columns <= count; columns++) {
    const side = Math.min(width / columns, height / Math.ceil(count / columns));
    if (side > largest) [best, largest] = [columns, side];
  }
  return best;
}

/**
 * @param {number} value
 * @param {number} reach
 */
function within(value, reach) {
  return Math.min(reach, Math.max(-reach, value));
}
