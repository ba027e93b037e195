/** What comes before a question is sent: whether it can be asked, and its images as they are to be asked about. */

import { sameView } from "./image_item.js";

/**
 * Why this cannot be asked; empty where it can.
 *
 * @param {import("./types.js").Question} question
 * @param {import("./types.js").Info["limits"] | undefined} limits
 */
export function wrongWith(question, limits) {
  if (!question.text) return "Write a question first.";
  if (question.options.length === 1) return "Give at least two options, or none.";
  const most = limits?.text ?? Infinity;
  if (question.text.length > most) return `The question has ${question.text.length} characters; shorten it to ${most}.`;
  return "";
}

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
