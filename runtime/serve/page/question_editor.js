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
    this.rows.replaceChildren();
    const shown = options.length ? options : ["", ""];
    shown.forEach((option, index) => this.#insert(index, option));
    this.unfold();
    this.#changed();
  }

  /** Take out empty rows that have a filled one below, so that each row shows the letter under which it is asked. */
  closeGaps() {
    const { options } = this.question;
    if (this.#inputs().slice(0, options.length).some((input) => !input.value.trim())) {
      this.setQuestion({ text: this.text.value, options });
    }
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

  /**
   * @param {number} index
   * @param {string} value
   */
  #insert(index, value) {
    const input = make("input", { attributes: { type: "text", placeholder: "Optional" } });
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
    this.setQuestion({ text: parts.text || this.text.value, options: parts.options });
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
