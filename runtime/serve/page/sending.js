/** What comes before a question is sent: its images as they are to be asked about, and what stands beside the buttons. */

import { sameView } from "./image_item.js";
import { isRunning } from "./result.js";

/**
 * What `work` gives, or an AbortError as soon as the signal is pulled: the work itself goes on, for whoever else needs it.
 *
 * @template T
 * @param {Promise<T>} work
 * @param {AbortSignal} signal
 * @returns {Promise<T>}
 */
export function unlessStopped(work, signal) {
  return new Promise((resolve, reject) => {
    if (signal.aborted) reject(signal.reason);
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
    work.then(resolve, reject);
  });
}

/**
 * Whether just these pictures were asked about, which the server then need not read again.
 *
 * @param {import("./image_item.js").ImageItem[]} items
 * @param {import("./types.js").Entry[]} entries
 */
export function askedBefore(items, entries) {
  const alike = (/** @type {import("./types.js").Shot[]} */ shots) =>
    shots.every(({ askedAs }, index) => sameView(askedAs, items[index].asking));
  return items.length > 0 && entries.some(({ images, shots }) => sameImages(images, items) && alike(shots));
}

/**
 * @param {import("./image_item.js").ImageItem[]} one
 * @param {import("./image_item.js").ImageItem[]} other
 */
export function sameImages(one, other) {
  return one.length === other.length && one.every((item, index) => item === other[index]);
}

/**
 * What stands beside Ask.
 *
 * @param {import("./image_item.js").ImageItem[]} items
 * @param {boolean} again whether just these pictures were asked about
 */
export function askHint({ length }, again) {
  if (length === 0) return "No image yet";
  return again ? `Same ${length > 1 ? "images" : "image"}: sooner` : "Ctrl + Enter";
}

/**
 * What stands beside Stop.
 *
 * @param {import("./image_item.js").ImageItem[]} items
 * @param {import("./types.js").Entry[]} entries
 */
export function stopHint({ length }, entries) {
  const waiting = length > 0 && !entries.some(isRunning);
  return waiting ? `Reading the ${length > 1 ? "images" : "image"}; Esc stops` : "Esc stops";
}
