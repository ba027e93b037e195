/** The questions of this session, in memory only: when the page goes, they go. */

import { byId, make, setText } from "./dom.js";
import { isRunning } from "./result.js";
import { clock } from "./words.js";

/** Sends "select" when another entry is shown, and "pick" after it where a reader chose it. */
export class SessionList extends EventTarget {
  /** @type {import("./types.js").Entry[]} */
  entries = [];
  /** @type {import("./types.js").Entry | null} */
  selected = null;
  #made = 0;

  /**
   * @param {import("./types.js").Question} question
   * @param {import("./image_item.js").ImageItem[]} images
   * @param {import("./types.js").Shot[]} shots
   * @param {import("./types.js").Info} info
   * @returns {import("./types.js").Entry}
   */
  add(question, images, shots, info) {
    /** @type {import("./types.js").Entry} */
    const entry = {
      id: ++this.#made,
      time: new Date(),
      question,
      images,
      shots,
      info,
      phase: "sending",
      queue: null,
      started: performance.now(),
      reasoning: "",
      content: "",
      finish: null,
      tokens: null,
      outcome: null,
      failure: null,
    };
    this.entries.push(entry);
    byId("session-list").prepend(this.#row(entry));
    byId("session-note").hidden = true;
    return entry;
  }

  /** @param {import("./types.js").Entry} entry that was never asked */
  drop(entry) {
    this.entries = this.entries.filter((each) => each !== entry);
    this.#find(entry)?.remove();
    if (this.selected === entry) this.select(null);
    byId("session-note").hidden = this.entries.length > 0;
  }

  /** @param {import("./types.js").Entry | null} entry */
  select(entry) {
    this.selected = entry;
    for (const button of byId("session-list").querySelectorAll("button")) {
      button.setAttribute("aria-current", String(button.dataset.id === String(entry?.id)));
    }
    byId("session-note").hidden = this.entries.length > 0;
    this.dispatchEvent(new Event("select"));
  }

  /** @param {import("./types.js").Entry} entry */
  update(entry) {
    const state = this.#find(entry)?.querySelector(".state");
    if (state) setText(state, stateInWords(entry));
  }

  /** @param {import("./types.js").Entry} entry */
  #find(entry) {
    return byId("session-list").querySelector(`[data-id="${entry.id}"]`)?.closest("li") ?? null;
  }

  /** @param {import("./types.js").Entry} entry */
  #row(entry) {
    const pictures = make("span", { class: "pictures" });
    for (const shot of entry.shots.slice(0, 2)) pictures.append(make("img", { attributes: { src: shot.url, alt: "" } }));
    const button = make(
      "button",
      { attributes: { type: "button", "data-id": String(entry.id), "aria-current": "false" } },
      pictures,
      make("span", { class: "text", text: entry.question.text }),
      make("span", { class: "state", text: stateInWords(entry) }),
    );
    button.title = `Asked at ${clock(entry.time)}`;
    button.addEventListener("click", () => {
      this.select(entry);
      this.dispatchEvent(new Event("pick"));
    });
    return make("li", {}, button);
  }
}

/** @param {import("./types.js").Entry} entry */
function stateInWords(entry) {
  if (isRunning(entry)) return "…";
  if (entry.phase === "stopped") return "stopped";
  if (entry.phase === "failed") return "broke off";
  const choice = entry.outcome?.choice;
  if (!choice) return entry.question.options.length ? "no option" : "answered";
  return `${choice}  ${entry.question.options[choice.charCodeAt(0) - 65] ?? ""}`;
}
