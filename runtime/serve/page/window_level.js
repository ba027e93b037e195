/** Window/level: numbers in the file's units (HU for CT), without anything of the screen. */

/** @typedef {[number, number]} Window center and width */

// Dragging this far doubles a width: coarse where the window is wide, fine where it is narrow.
const PIXELS_PER_WIDTH = 250;

/**
 * The window after a drag: to the right widens it, down raises the center, which darkens, as in other viewers.
 *
 * @param {Window} start
 * @param {number} dx pixels
 * @param {number} dy pixels
 * @param {[number, number] | null} range of the image's values
 * @returns {Window}
 */
export function dragged([center, width], dx, dy, range) {
  const step = width / PIXELS_PER_WIDTH;
  return bounded([center + dy * step, width + dx * step], range);
}

/**
 * The nearest window that makes sense for values in `range`, in whole numbers where those are fine enough.
 *
 * @param {Window} window
 * @param {[number, number] | null} range
 * @returns {Window}
 */
export function bounded([center, width], range) {
  const span = range ? Math.max(1, range[1] - range[0]) : Infinity;
  const least = range ? range[0] : -Infinity;
  const most = range ? range[1] : Infinity;
  return [rounded(clamp(center, least, most)), rounded(clamp(width, 1, 2 * span))];
}

/**
 * The window in which a preview shows its greys. Where it has none, it shows all values; null: it has no greys.
 *
 * @param {import("./types.js").Preview} preview
 * @returns {Window | null}
 */
export function shownWindow({ window, window_range: range }) {
  return window ?? (range && [rounded((range[0] + range[1]) / 2), rounded(Math.max(1, range[1] - range[0]))]);
}

/**
 * How grey levels (0..1) of a picture made in window `from` look in window `to`: level * slope + intercept.
 *
 * Only while dragging, until the server has made the picture anew: what `from` clipped stays clipped.
 *
 * @param {Window} from
 * @param {Window} to
 * @param {boolean} inverted
 */
export function approximation([fromCenter, fromWidth], [toCenter, toWidth], inverted) {
  const slope = fromWidth / toWidth;
  const shift = (fromCenter - fromWidth / 2 - (toCenter - toWidth / 2)) / toWidth;
  return { slope, intercept: inverted ? 1 - slope - shift : shift };
}

/**
 * @param {Window} window
 * @returns {string} as the server reads it
 */
export function written([center, width]) {
  return `${center},${width}`;
}

/** @param {number} value */
function rounded(value) {
  return Math.round(value * 10) / 10;
}

/**
 * @param {number} value
 * @param {number} least
 * @param {number} most
 */
function clamp(value, least, most) {
  return Math.min(most, Math.max(least, value));
}
