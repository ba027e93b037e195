/** The question's text and the rows of its options. */

import { byId, make, setText } from "./dom.js";
import { MOST_OPTIONS, questionParts } from "./question_text.js";
import { letterOf } from "./words.js";

/** Sends "change" when something was typed. */
export class QuestionEditor extends EventTarget {
  constructor() {
    super();
    this.text = /** @type {HTMLTextAreaElement} */ (byId("question-text"));
    this.rows = byId("option-rows");
    this.adder = /** @type {HTMLButtonElement} */ (byId("add-option"));
    this.editing = byId("edit-options");
    this.adder.addEventListener("click", () => this.#insert(this.#inputs().length, "").focus());
    this.editing.addEventListener("click", () => {
      this.unfold();
      (this.#inputs()[0] ?? this.adder).focus();
    });
    this.text.addEventListener("focus", () => this.unfold());
    this.text.addEventListener("input", () => this.#changed());
    this.text.addEventListener("paste", (event) => this.#paste(event));
    this.setQuestion({ text: "", options: ["", ""] });
  }

  /** What is written; empty rows are left out. @returns {import("./types.js").Question} */
  get question() {
    const options = this.#inputs().map((input) => input.value.trim());
    return { text: this.text.value.trim(), options: options.filter(Boolean) };
  }

  /** @param {import("./types.js").Question} question */
  setQuestion({ text, options }) {
    this.text.value = text;
    this.#setRows(options.length ? options : ["", ""]);
  }

  /**
   * Bring what is written into the form in which it is asked: options in the text go to the rows, and empty rows that
   * have a filled one below go out, so that each row shows the letter under which it is asked.
   */
  closeGaps() {
    const focused = this.rows.contains(document.activeElement);
    const { options } = this.question;
    const parts = options.length ? null : questionParts(this.text.value);
    if (parts) this.setQuestion(parts);
    const inputs = this.#inputs();
    const last = inputs.findLastIndex((input) => input.value.trim());
    for (const input of inputs.slice(0, Math.max(0, last))) if (!input.value.trim()) input.parentElement?.remove();
    this.#number();
    if (focused && !this.rows.contains(document.activeElement)) (this.#inputs().at(-1) ?? this.adder).focus();
  }

  focus() {
    this.text.focus();
  }

  /**
   * Leave the room to the answer: where the screen is low, the options are out of sight until they are wanted.
   *
   * @param {HTMLElement} following takes the keyboard's focus where its place goes out of sight
   */
  fold(following) {
    const { length } = this.question.options;
    setText(this.editing, length ? `Edit ${length} options` : "Edit options");
    byId("question").classList.add("folded");
    this.editing.hidden = false;
    if (this.rows.contains(document.activeElement) && !this.rows.checkVisibility()) following.focus();
  }

  unfold() {
    byId("question").classList.remove("folded");
    this.editing.hidden = true;
  }

  /** @returns {HTMLInputElement[]} */
  #inputs() {
    return [...this.rows.querySelectorAll("input")];
  }

  /** @param {string[]} options */
  #setRows(options) {
    const rows = [...this.rows.children];
    for (const row of rows.slice(options.length)) row.remove();
    const inputs = this.#inputs();
    options.forEach((option, index) => {
      if (inputs[index]) inputs[index].value = option;
      else this.#insert(index, option);
    });
    this.#number();
    this.unfold();
    this.#changed();
  }

  /**
   * @param {number} index
   * @param {string} value
   */
  #insert(index, value) {
    const input = make("input", { attributes: { type: "text", placeholder: "Optional", dir: "auto" } });
    input.value = value;
    const remove = make("button", { class: "quiet icon", text: "×", attributes: { type: "button" } });
    const row = make("div", { class: "option" }, make("span", { class: "mark", attributes: { "aria-hidden": "true" } }), input, remove);
    this.rows.insertBefore(row, this.rows.children[index] ?? null);
    input.addEventListener("input", () => this.#changed());
    input.addEventListener("keydown", (event) => this.#key(event, row));
    remove.addEventListener("click", () => this.#remove(row));
    this.#number();
    return input;
  }

  /** @param {HTMLElement} row */
  #remove(row) {
    const index = [...this.rows.children].indexOf(row);
    row.remove();
    this.#number();
    (this.#inputs()[Math.max(0, index - 1)] ?? this.adder).focus();
    this.#changed();
  }

  /**
   * @param {KeyboardEvent} event
   * @param {HTMLElement} row
   */
  #key(event, row) {
    const inputs = this.#inputs();
    const index = [...this.rows.children].indexOf(row);
    if (event.key === "Enter" && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      const next = inputs[index + 1];
      if (next) next.focus();
      else if (inputs[index].value && inputs.length < MOST_OPTIONS) this.#insert(index + 1, "").focus();
    } else if (event.key === "Backspace" && !inputs[index].value) {
      event.preventDefault();
      this.#remove(row);
    } else if (event.key === "ArrowDown") {
      inputs[index + 1]?.focus();
    } else if (event.key === "ArrowUp") {
      (inputs[index - 1] ?? this.text).focus();
    }
  }

  /** @param {ClipboardEvent} event */
  #paste(event) {
    const parts = questionParts(event.clipboardData?.getData("text/plain") ?? "");
    if (!parts) return;
    event.preventDefault();
    this.text.focus();
    // Unlike a change of the value, this can be undone. Where it is not there, the text comes all the same.
    if (parts.text && !document.execCommand("insertText", false, parts.text)) {
      this.text.setRangeText(parts.text, this.text.selectionStart, this.text.selectionEnd, "end");
    }
    this.#setRows(parts.options);
  }

  #number() {
    [...this.rows.children].forEach((row, index) => {
      const letter = letterOf(index);
      setText(/** @type {Element} */ (row.querySelector(".mark")), letter);
      row.querySelector("input")?.setAttribute("aria-label", `Option ${letter}`);
      row.querySelector("button")?.setAttribute("aria-label", `Remove option ${letter}`);
    });
    this.adder.disabled = this.rows.children.length >= MOST_OPTIONS;
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}
