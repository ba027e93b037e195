/** The options that the runtime reads in a text: the rules of parse_options in runtime/prompt.py, rule by rule. */

/**
 * @typedef {object} Option
 * @property {number} start of its mark in the text
 * @property {number} end of its line
 * @property {string} text
 */

const MARK = String.raw`(?<open>\(?)(?<letter>[A-Za-z])(?<close>\)|[.:](?=[ \t]))[ \t]*(?=\S)`;
const AT_LINE_START = new RegExp(String.raw`(?<![^\n])[ \t]*${MARK}`, "g");
const ANYWHERE = new RegExp(String.raw`(?<![^\s,;])${MARK}`, "g");
const NAMING_WORD =
  /\b(?:vitamin|hepatitis|influenza|type|group|class|stage|grade|panel|figure|fig\.?|image|factor)s?\n?$/i;
const JOINING_WORD = /\b(?:or|and|vs\.?|versus)\n?$/i;
const NEARBY = 200;
const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";

/**
 * What the runtime takes for the options of a question, in their order; empty where it has none.
 *
 * @param {string} question
 * @returns {Option[]}
 */
export function optionsRead(question) {
  const atLineStart = [...question.matchAll(AT_LINE_START)].filter(style);
  const ofLines = firstRun(atLineStart) ?? run(atLineStart);
  if (ofLines) return withTexts(question, ofLines);
  const ofALine = firstRun([...question.matchAll(ANYWHERE)].filter((mark) => isInlineMark(question, mark)));
  return ofALine ? withoutJoints(withTexts(question, ofALine)) : [];
}

/** How a mark is written, as `(X)` or `x.`; empty for a bracket that is opened and not closed. @param {RegExpExecArray} mark */
function style({ groups }) {
  const { open, letter, close } = /** @type {Record<string, string>} */ (groups);
  return open && close !== ")" ? "" : open + (letter < "a" ? "X" : "x") + close;
}

/** The run of the first style that has one. @param {RegExpExecArray[]} marks */
function firstRun(marks) {
  for (const one of new Set(marks.map(style))) {
    const found = run(marks.filter((mark) => style(mark) === one));
    if (found) return found;
  }
  return null;
}

/** The marks from the last A on, if they are A, B, C, … and at least two. @param {RegExpExecArray[]} marks */
function run(marks) {
  const letters = marks.map((mark) => mark.groups?.letter.toUpperCase()).join("");
  const start = letters.lastIndexOf("A");
  return start >= 0 && letters.length - start > 1 && LETTERS.startsWith(letters.slice(start)) ? marks.slice(start) : null;
}

/**
 * Whether a mark inside a line is one of an option, not of prose: "(vitamin A)", "type B)", "panel (A) shows".
 *
 * @param {string} question
 * @param {RegExpExecArray} mark
 */
function isInlineMark(question, mark) {
  const before = question.slice(Math.max(0, mark.index - NEARBY), mark.index).replace(/[ \t]+$/, "");
  const written = style(mark);
  if (!written || NAMING_WORD.test(before.slice(-12))) return false;
  if (/^[Xx]\)$/.test(written)) return before.lastIndexOf("(") <= before.lastIndexOf(")");
  if (mark.groups?.letter.toUpperCase() === "A") return !before || "?!.:;,\n".includes(before.slice(-1));
  return mark.groups?.open === "(" || !JOINING_WORD.test(before.slice(-8));
}

/**
 * @param {string} question
 * @param {RegExpExecArray[]} marks
 * @returns {Option[]}
 */
function withTexts(question, marks) {
  return marks.map((mark, index) => {
    const start = mark.index + mark[0].length;
    const [line] = question.slice(start, marks[index + 1]?.index).split("\n", 1);
    return { start: mark.index, end: start + line.length, text: line.trim() };
  });
}

/**
 * Without what joins one option to the next. A last one that goes on to ask something shows that these are labels.
 *
 * @param {Option[]} options
 */
function withoutJoints(options) {
  const last = options[options.length - 1].text;
  const asked = last.lastIndexOf("?");
  if (asked >= 0 && /[.!?]\s/.test(last.slice(0, asked))) return [];
  const joined = options.map((option, index) => {
    if (index === options.length - 1) return { ...option, text: last.replace(/[ ,;?]+$/, "") };
    return { ...option, text: option.text.replace(/[ ,;]+$/, "").replace(JOINING_WORD, "").replace(/[ ,;]+$/, "") };
  });
  return joined.every(({ text }) => text) ? joined : [];
}
