/** What a screen reader says of an answer as it comes: whole sentences, not tokens. */

import { byId } from "./dom.js";

let pending = "";
let spoken = 0;
let stated = "";

/** @param {string} text */
export function announce(text) {
  // A new node each time: the same words twice are said twice.
  const line = document.createElement("p");
  line.textContent = text;
  const live = byId("live");
  live.append(line);
  while (live.children.length > 20) live.firstChild?.remove();
}

/** Begin a new text. */
export function startText() {
  pending = "";
  spoken = 0;
  stated = "";
}

/** Say where something stands, once for as long as it stands there. @param {string} text */
export function announceState(text) {
  if (text !== stated) announce(text);
  stated = text;
}

/**
 * Say the sentences that `whole`, which grows, has got since the last call.
 *
 * @param {string} whole
 * @param {boolean} ended
 */
export function announceText(whole, ended) {
  pending += whole.slice(spoken);
  spoken = whole.length;
  const end = ended ? pending.length : pending.search(/[.!?]\s(?!.*[.!?]\s)/s) + 1;
  const sentences = pending.slice(0, end).trim();
  pending = pending.slice(end);
  if (sentences) announce(sentences);
}
