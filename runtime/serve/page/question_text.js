/** Between a question in parts (its text, its options) and the one text that is asked. */

import { letterOf } from "./words.js";

export const MOST_OPTIONS = 10;

const OPTION = /^[ \t]*\(?([A-Za-z])[).:][ \t]*(\S.*)$/;

/**
 * The text that is asked: options become lines A), B), C), …
 *
 * @param {import("./types.js").Question} question
 */
export function writtenQuestion({ text, options }) {
  const lines = options.map((option, index) => `${letterOf(index)}) ${option}`);
  return [text.trim(), ...lines].join("\n");
}

/**
 * The parts of a text whose last lines are options A, B, C, … without a gap; null where it has none.
 *
 * @param {string} text
 * @returns {import("./types.js").Question | null}
 */
export function questionParts(text) {
  const lines = text.replaceAll("\r\n", "\n").trimEnd().split("\n");
  const marks = lines.map((line) => OPTION.exec(line));
  const first = marks.findLastIndex((mark) => mark?.[1].toUpperCase() === "A");
  const options = first < 0 ? [] : marks.slice(first);
  const inOrder = options.every((mark, index) => mark?.[1].toUpperCase() === letterOf(index));
  if (options.length < 2 || options.length > MOST_OPTIONS || !inOrder) return null;
  return { text: lines.slice(0, first).join("\n").trim(), options: options.map((mark) => mark?.[2].trim() ?? "") };
}
