/** The report that is printed: image, question, answer, reasoning, and what made it. */

import { byId, make } from "./dom.js";
import { answerInWords, isRunning } from "./result.js";
import { stages } from "./timings.js";
import { bundleOf, cautions, letterOf, modelName, percent, reasoningOf, seconds } from "./words.js";

const UNFINISHED = { letter: "", text: "Not finished", detail: "This was printed before there was an answer." };

/** @param {import("./types.js").Entry} entry */
export function makeReport(entry) {
  const answer = isRunning(entry) ? UNFINISHED : answerInWords(entry);
  byId("report").replaceChildren(
    make("h1", { text: "Answer of a vision-language model" }),
    make("p", { class: "warning", text: warning(entry.info) }),
    make("div", { class: "pictures" }, ...entry.shots.map(figure)),
    section("Question", textOf("text", entry.question.text), ...options(entry)),
    section(
      "Answer",
      textOf("answer", [answer.letter, answer.text].filter(Boolean).join("  ")),
      make("p", { text: answer.detail }),
      ...notes(entry),
    ),
    section("Reasoning", textOf("text", reasoningOf(entry) || "none")),
    section("Made by", facts(entry)),
  );
}

/**
 * A paragraph of what was asked or answered, in the direction of its own script.
 *
 * @param {string} name
 * @param {string} text
 */
function textOf(name, text) {
  return make("p", { class: name, text, attributes: { dir: "auto" } });
}

/** @param {import("./types.js").Info} info */
function warning(info) {
  const demo = info.demo ? " This demo model knows only drawings and nothing of medicine." : "";
  return `Research model, not a medical device. No answer is a diagnosis.${demo}`;
}

/**
 * @param {import("./types.js").Shot} shot
 * @param {number} index
 */
function figure(shot, index) {
  const parts = [`${index + 1}: ${shot.name}`, `${shot.width} × ${shot.height}`, shot.view];
  return make(
    "figure",
    {},
    make("img", { attributes: { src: shot.url, alt: `Image ${index + 1}` } }),
    make("figcaption", { text: parts.filter(Boolean).join(", ") }),
  );
}

/** @param {import("./types.js").Entry} entry */
function options({ question, outcome }) {
  if (!question.options.length) return [];
  const rows = question.options.map((text, index) => {
    const letter = letterOf(index);
    const share = outcome?.options[letter];
    const cells = [letter, text, share === undefined ? "" : percent(share)].map((cell) =>
      make("td", { text: cell, attributes: { dir: "auto" } }),
    );
    return make("tr", { class: outcome?.choice === letter ? "chosen" : "" }, ...cells);
  });
  return [make("table", {}, make("tbody", {}, ...rows))];
}

/** @param {import("./types.js").Entry} entry */
function notes({ outcome, finish }) {
  const said = outcome ? [...cautions(outcome.flags, finish), ...outcome.notes] : [];
  return said.map((text) => make("p", { class: "note", text }));
}

/** @param {import("./types.js").Entry} entry */
function facts(entry) {
  // Of a bundle that came unnoticed, the digest is all that is known.
  const known = bundleOf(entry) === entry.info.bundle ? entry.info : null;
  const times = stages(entry).map((stage) => `${stage.name.toLowerCase()} ${seconds(stage.seconds)}`);
  const total = entry.outcome ? `; in all ${seconds(entry.outcome.timings.total_s)}` : "";
  /** @type {[string, string][]} */
  const rows = [
    ["Model", known ? [modelName(known), known.recipe.toUpperCase()].filter(Boolean).join(", ") : ""],
    ["Bundle (sha256)", bundleOf(entry)],
    ["Software", known ? `medvlm ${known.version}` : ""],
    ["Asked", entry.time.toLocaleString([], { dateStyle: "long", timeStyle: "medium" })],
    ["Time", times.join(", ") + total],
  ];
  const list = make("dl");
  for (const [name, value] of rows) if (value) list.append(make("dt", { text: name }), make("dd", { text: value }));
  return list;
}

/**
 * @param {string} title
 * @param {...Node} content
 */
function section(title, ...content) {
  return make("section", {}, make("h2", { text: title }), ...content);
}
