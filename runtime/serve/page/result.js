/** The answer to the selected question, from the moment it is sent. */

import { drawViews } from "./asked_views.js";
import { byId, make, setText } from "./dom.js";
import { drawTimings } from "./timings.js";
import { bundleOf, cautions, isClose, letterOf, marginInWords, percent, reasoningOf, withoutTags } from "./words.js";

/** Follows one entry. Places are kept free for what is still to come, so that nothing moves while text arrives. */
export class Result {
  /** @type {import("./types.js").Entry | null} */
  entry = null;

  constructor() {
    this.element = byId("result");
    this.reasoning = byId("reasoning");
    this.bars = byId("bars");
    setInterval(() => this.#tick(), 100);
  }

  /** @param {import("./types.js").Entry | null} entry */
  show(entry) {
    this.entry = entry;
    this.element.hidden = entry === null;
    byId("blank").hidden = entry !== null;
    drawViews(entry);
    if (entry === null) return;
    const images = entry.shots.length > 1 ? ` (${entry.shots.length} images)` : "";
    setText(byId("asked"), entry.question.text + images);
    byId("asked").title = entry.question.text;
    this.element.classList.toggle("free", entry.question.options.length === 0);
    this.bars.replaceChildren(...entry.question.options.map(barRow));
    this.reasoning.textContent = "";
    this.update();
    this.reasoning.scrollTop = 0;
  }

  /** Draw what has changed. */
  update() {
    const { entry } = this;
    if (entry === null) return;
    this.element.dataset.phase = entry.phase;
    this.element.setAttribute("aria-busy", String(isRunning(entry)));
    this.#drawAnswer(entry);
    this.#drawReasoning(entry);
    drawBars(this.bars, entry);
    drawTimings(byId("timings"), entry);
    const { outcome } = entry;
    const said = outcome ? cautions(outcome.flags, entry.finish) : [];
    if (entry.earlier) said.push(`Bundle ${bundleOf(entry).slice(0, 12)} answered; the server has another now.`);
    const items = said.map((text) => make("li", { class: "caution", text }));
    items.push(...notes(entry).map((text) => make("li", { text })));
    byId("notes").replaceChildren(...items);
  }

  /** @param {import("./types.js").Entry} entry */
  #drawAnswer(entry) {
    const { letter, text, detail } = answerInWords(entry);
    setText(byId("letter"), letter);
    // What stands there for no answer is no word.
    byId("letter").setAttribute("aria-hidden", String(!/[A-Z]/.test(letter)));
    setText(byId("answer-text"), text);
    byId("answer-text").title = text;
    byId("margin").classList.toggle("close", isClose(entry.outcome?.options ?? {}));
    if (!isRunning(entry)) setText(byId("margin"), detail);
    else this.#tick();
  }

  /** @param {import("./types.js").Entry} entry */
  #drawReasoning(entry) {
    const box = this.reasoning;
    const text = reasoningOf(entry);
    if (box.textContent === text) return;
    const followed = box.scrollHeight - box.scrollTop - box.clientHeight < 24;
    const node = box.firstChild;
    // Only the end is new: what a reader has selected stays selected.
    if (node instanceof Text && text.startsWith(node.data)) node.appendData(text.slice(node.data.length));
    else box.textContent = text;
    if (followed && isRunning(entry)) box.scrollTop = box.scrollHeight;
  }

  #tick() {
    if (this.entry === null || !isRunning(this.entry)) return;
    setText(byId("margin"), `${((performance.now() - this.entry.started) / 1000).toFixed(1)} s`);
  }
}

/** @param {import("./types.js").Entry} entry */
export function isRunning(entry) {
  return !["done", "stopped", "failed"].includes(entry.phase);
}

/**
 * The answer, or what it waits for, as a letter, a text and a line about it.
 *
 * @param {import("./types.js").Entry} entry
 */
export function answerInWords(entry) {
  const free = entry.question.options.length === 0;
  const said = withoutTags(entry.content);
  if (isRunning(entry)) return { letter: "", text: free && said ? said : pendingText(entry), detail: "" };
  if (entry.phase === "stopped") return { letter: "–", text: free && said ? said : "Stopped", detail: "You stopped it: this is no answer" };
  if (entry.phase === "failed") return { letter: "!", text: "Broke off", detail: entry.failure?.title ?? "" };
  if (free) return { letter: "", text: said || entry.reasoning.trim() || "The model said nothing", detail: "" };
  const choice = entry.outcome?.choice ?? null;
  if (choice === null) return { letter: "?", text: "No option can be read from the answer", detail: said };
  const options = entry.outcome?.options ?? {};
  const text = entry.question.options[choice.charCodeAt(0) - 65] ?? "";
  return { letter: choice, text, detail: marginInWords(options) };
}

/** What the server says of it, and where several images have a view, what was asked about. @param {import("./types.js").Entry} entry */
function notes({ shots, outcome }) {
  const several = shots.filter(({ view }) => view).length > 1;
  const views = shots.map(({ view }, index) => several && view && `Asked about image ${index + 1}: ${view}`);
  return [...views.filter(Boolean), ...(outcome?.notes ?? [])];
}

/** @param {number} position of who waits, from 1 */
export function placeInWords(position) {
  return position === 1 ? "Next in line" : `${position} answers come first`;
}

/** @param {import("./types.js").Entry} entry */
function pendingText(entry) {
  const images = entry.shots.length > 1 ? "images" : "image";
  switch (entry.phase) {
    case "sending":
      return "Sending";
    case "queued": {
      const { position, wait_s: wait } = entry.queue ?? { position: 1, wait_s: null };
      const about = wait ? `, about ${Math.max(1, Math.round(wait))} s` : "";
      return placeInWords(position) + about;
    }
    case "reading":
      return entry.shots.length ? `Reading the ${images}` : "Reading the question";
    default:
      return "Reasoning";
  }
}

/**
 * @param {string} text
 * @param {number} index
 */
function barRow(text, index) {
  return make(
    "li",
    {},
    make("span", { class: "fill", attributes: { "aria-hidden": "true" } }),
    make("span", { class: "mark", text: letterOf(index) }),
    make("span", { class: "text", text, attributes: { title: text, dir: "auto" } }),
    make("span", { class: "verdict unseen" }),
    make("span", { class: "share" }),
  );
}

/**
 * @param {HTMLElement} list
 * @param {import("./types.js").Entry} entry
 */
function drawBars(list, entry) {
  [...list.children].forEach((row, index) => {
    const letter = letterOf(index);
    const share = entry.outcome?.options[letter];
    const chosen = entry.outcome?.choice === letter;
    row.classList.toggle("chosen", chosen);
    setText(/** @type {Element} */ (row.querySelector(".verdict")), chosen ? "chosen" : "");
    setText(/** @type {Element} */ (row.querySelector(".share")), share === undefined ? "" : percent(share));
    const fill = /** @type {HTMLElement} */ (row.querySelector(".fill"));
    fill.style.transform = `translateX(${100 * (share ?? 0) - 100}%)`;
  });
}
