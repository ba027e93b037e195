/** The questions of this session, in memory only: when the page goes, they go. */

import { byId, make, setText } from "./dom.js";
import { isRunning } from "./result.js";
import { sameImages } from "./sending.js";
import { bundleOf, clock } from "./words.js";

/** Sends "select" when another entry is shown, and "pick" after it where a reader chose it. */
export class SessionList extends EventTarget {
  /** @type {import("./types.js").Entry[]} */
  entries = [];
  /** @type {import("./types.js").Entry | null} */
  selected = null;
  /** @type {import("./types.js").Entry | null} the one that was selected before */
  #before = null;
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
      info,
      earlier: false,
      time: new Date(),
      question,
      images,
      shots,
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
    this.#before = this.selected;
    this.selected = entry;
    for (const button of byId("session-list").querySelectorAll("button")) {
      button.setAttribute("aria-current", String(button.dataset.id === String(entry?.id)));
    }
    byId("session-note").hidden = this.entries.length > 0;
    this.dispatchEvent(new Event("select"));
  }

  /**
   * Select again what was selected before, where it is about these images: others were to take their place and could not.
   *
   * @param {import("./image_item.js").ImageItem[]} images
   */
  restore(images) {
    const before = this.#before;
    if (this.selected || !before || !this.entries.includes(before)) return;
    if (sameImages(before.images, images)) this.select(before);
  }

  /** @param {import("./types.js").Entry} entry */
  update(entry) {
    const row = this.#find(entry);
    if (!row) return;
    setText(/** @type {Element} */ (row.querySelector(".state")), stateInWords(entry));
    setText(/** @type {Element} */ (row.querySelector(".bundle")), entry.earlier ? "earlier bundle" : "");
  }

  /**
   * Mark the answers of another bundle than the server's present one.
   *
   * @param {string} bundle
   * @returns {boolean} whether any mark changed
   */
  markEarlier(bundle) {
    const changed = this.entries.filter((entry) => entry.earlier !== (bundleOf(entry) !== bundle));
    for (const entry of changed) {
      entry.earlier = !entry.earlier;
      this.update(entry);
    }
    return changed.length > 0;
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
      make("span", { class: "text", text: entry.question.text, attributes: { dir: "auto" } }),
      make("span", { class: "state", text: stateInWords(entry) }),
      make("span", { class: "bundle" }),
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
