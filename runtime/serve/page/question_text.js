/** Between a question in parts (its text, its options) and the one text that is asked. */

import { optionsRead } from "./option_marks.js";
import { letterOf } from "./words.js";

// The runtime reads options from A to Z.
export const MOST_OPTIONS = 26;

// As people, lists and other programs write them: "A)", "(A)", "[A]", "A.", "A:", "A -", "- A)", "**A)**", "Ａ）".
const BOLD = String.raw`(?:\*\*|__)?`;
const CLOSE = String.raw`(?:[)\]）】．：、]|[.:](?=\s|\*\*|__)|\s+[-–—](?=\s))`;
const OPTION = new RegExp(
  String.raw`^\s*(?:[-*•]\s+)?${BOLD}[(\[（【]?([A-Za-zＡ-Ｚａ-ｚ])${BOLD}${CLOSE}${BOLD}\s*(\S.*)$`,
);

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
 * Why this cannot be asked; empty where it can.
 *
 * @param {import("./types.js").Question} question
 * @param {number} most characters that the server takes
 */
export function wrongWithQuestion(question, most) {
  if (!question.text) return "Write a question first.";
  if (question.options.length === 1) return "Give at least two options, or none.";
  if (!isReadAsWritten(question)) return "The question’s text has options of its own. Take them out of it, or empty the rows.";
  // The server counts a character beyond the first 65536 as one.
  const { length } = [...writtenQuestion(question)];
  return length > most ? `The question has ${length} characters with its options; shorten it to ${most}.` : "";
}

/**
 * Whether the runtime will read the options that the rows show, and not others that stand in the question's text.
 *
 * @param {import("./types.js").Question} question
 */
function isReadAsWritten(question) {
  const read = optionsRead(writtenQuestion(question)).map((option) => option.text);
  return read.length === question.options.length && read.every((text, index) => text === question.options[index]);
}

/**
 * The parts of a text that has options A, B, C, … without a gap; null where it has none.
 *
 * @param {string} text
 * @returns {import("./types.js").Question | null}
 */
export function questionParts(text) {
  const whole = text.replace(/\r\n?|[\u2028\u2029]/g, "\n");
  return partsOfLines(whole.split("\n")) ?? partsAsRead(whole);
}

/**
 * The parts where each option begins a line. A line between two options goes on with the first of them.
 *
 * @param {string[]} lines
 */
function partsOfLines(lines) {
  const marks = lines.map((line) => OPTION.exec(line));
  const first = marks.findLastIndex((mark) => mark && letterIn(mark) === "A");
  if (first < 0) return null;
  /** @type {string[]} */
  const options = [];
  /** @type {string[]} */
  let behind = [];
  for (let index = first; index < lines.length; index++) {
    const mark = marks[index];
    if (!mark) {
      behind.push(lines[index]);
      continue;
    }
    if (letterIn(mark) !== letterOf(options.length)) return null;
    if (options.length) options.push(joined([/** @type {string} */ (options.pop()), ...behind]));
    options.push(mark[2]);
    behind = [];
  }
  if (options.length < 2) return null;
  // Behind the last one a line may be its rest, or say how to answer.
  const end = behind.findIndex((line) => !/^(?:\s+\S|\p{Ll})/u.test(line));
  const rest = end < 0 ? behind : behind.slice(0, end);
  options.push(joined([/** @type {string} */ (options.pop()), ...rest]));
  return { text: [...lines.slice(0, first), ...behind.slice(rest.length)].join("\n").trim(), options };
}

/** The parts as the runtime reads them, in one line too. @param {string} text */
function partsAsRead(text) {
  const read = optionsRead(text);
  if (!read.length) return null;
  const around = [text.slice(0, read[0].start), text.slice(read[read.length - 1].end)];
  return { text: around.map((part) => part.trim()).filter(Boolean).join("\n"), options: read.map((option) => option.text) };
}

/** @param {RegExpExecArray} mark */
function letterIn(mark) {
  // A letter of full width is its narrow one's twin.
  return mark[1].normalize("NFKC").toUpperCase();
}

/** @param {string[]} lines of one option */
function joined(lines) {
  const text = lines.map((line) => line.trim()).filter(Boolean).join(" ");
  return text.replace(/^(?:\*\*|__)|(?:\*\*|__)$/g, "").trim();
}
