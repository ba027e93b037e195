/** Window/level: numbers in the file's units (HU for CT), without anything of the screen. */

/** @typedef {[number, number]} Window center and width */

// Dragging this far doubles a width: coarse where the window is wide, fine where it is narrow.
const PIXELS_PER_WIDTH = 250;
// Of an image whose range nobody told.
const LARGEST = 1e9;
const NARROWEST = 1e-3;
const MOST_DIGITS = 6;

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
 * The nearest window that makes sense for values in `range`, in steps that are fine for them. The server takes no width
 * below 1, at which DICOM's linear window is a step from black to white: what lies between has one more than its values.
 *
 * @param {Window} window
 * @param {[number, number] | null} range
 * @returns {Window}
 */
export function bounded([center, width], range) {
  const [least, most] = range ?? [-LARGEST, LARGEST];
  const span = most - least;
  return [rounded(clamp(center, least, most + 1), span), rounded(clamp(width, 1, 2 * (span + 1)), span)];
}

/**
 * The window in which a preview shows its greys. Where it has none, it shows all values; null: it has no greys.
 *
 * @param {import("./types.js").Preview} preview
 * @returns {Window | null}
 */
export function shownWindow({ window, window_range: range }) {
  if (window || !range) return window;
  const [least, most] = range;
  const span = most - least;
  return [rounded((least + most + 1) / 2, span), rounded(span + 1, span)];
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
  const [fromSpan, toSpan] = [fromWidth, toWidth].map((width) => Math.max(width - 1, NARROWEST));
  const slope = fromSpan / toSpan;
  const shift = (fromCenter - fromWidth / 2 - (toCenter - toWidth / 2)) / toSpan;
  return { slope, intercept: inverted ? 1 - slope - shift : shift };
}

/**
 * @param {Window} window
 * @returns {string} as the server reads it
 */
export function written([center, width]) {
  return `${center},${width}`;
}

/**
 * In steps of at most a tenth, and of a thousandth of the values or less.
 *
 * @param {number} value
 * @param {number} span of the image's values
 */
function rounded(value, span) {
  const digits = clamp(Math.ceil(3 - Math.log10(span)), 1, MOST_DIGITS);
  return Math.round(value * 10 ** digits) / 10 ** digits;
}

/**
 * @param {number} value
 * @param {number} least
 * @param {number} most
 */
function clamp(value, least, most) {
  return Math.min(most, Math.max(least, value));
}
