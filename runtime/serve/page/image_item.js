/** One image of a question: its file, how it is to be shown, and the picture that the server made of it. */

import { Failure, asFailure } from "./failure.js";
import { getPreview } from "./server.js";
import { shownWindow, written } from "./window_level.js";

/**
 * @typedef {object} Wanted How the image is to be shown.
 * @property {import("./window_level.js").Window | null} window null: the file's own
 * @property {string} preset the name by which the window was chosen
 * @property {number} frame from 1
 */

/** @type {Readonly<Wanted>} */
const AS_THE_FILE_SAYS = Object.freeze({ window: null, preset: "", frame: 1 });
const MOST_KEPT = 48;

/** Sends "change" whenever something of it is another; the preview follows what is wanted, skipping what was overtaken. */
export class ImageItem extends EventTarget {
  /** @type {import("./types.js").Preview | null} */
  preview = null;
  /** The preview's picture. */
  url = "";
  /** @type {Failure | null} */
  failure = null;
  /** @type {Wanted} */
  wanted = { ...AS_THE_FILE_SAYS };
  /** @type {import("./window_level.js").Window | null} the window of the file itself, or of all its values */
  own = null;
  /** Whether the model is asked about the window shown, and not about the file's own. */
  askAsShown = true;
  /** @type {Map<string, {preview: import("./types.js").Preview, url: string}>} */
  #made = new Map();
  /** @type {Promise<void> | null} */
  #following = null;
  /** Pictures that stand in the session, which needs them as long as the page is open. @type {Set<string>} */
  #reported = new Set();
  /** @type {Wanted} what the picture is of: while it is busy, not yet what is wanted */
  shown = { ...AS_THE_FILE_SAYS };
  #shownKey = "";
  #closed = false;

  /**
   * @param {Blob} file
   * @param {string} name
   */
  constructor(file, name) {
    super();
    this.file = file;
    this.name = name;
  }

  /** What the model is asked about. @returns {Wanted} */
  get asking() {
    return this.askAsShown ? this.wanted : { ...this.wanted, window: null, preset: "" };
  }

  /** Whether the picture is not yet the one wanted. */
  get busy() {
    return this.#following !== null;
  }

  /** The window that is shown or about to be. */
  get window() {
    return this.wanted.window ?? this.own;
  }

  get canWindow() {
    return this.own !== null;
  }

  /**
   * @param {Partial<Wanted>} change
   */
  show(change) {
    this.wanted = { ...this.wanted, ...change };
    void this.settled();
    this.#changed();
  }

  /** Resolves when the picture is the one wanted, or cannot be made. */
  async settled() {
    this.#following ??= this.#follow().finally(() => {
      this.#following = null;
      this.#changed();
    });
    await this.#following;
  }

  /** @param {boolean} asShown */
  setAskAsShown(asShown) {
    this.askAsShown = asShown;
    this.#changed();
  }

  /**
   * The picture that the model is asked about, and how it is to be made of the file.
   *
   * @returns {Promise<import("./types.js").Shot>}
   */
  async shot() {
    const { wanted } = this;
    await this.settled();
    if (this.preview === null) throw this.failure ?? new Failure("broken", "The image was not read", "Choose it again.");
    // It fell back to what was shown before, which nobody asks about.
    if (this.failure && this.wanted !== wanted) throw this.failure;
    const { askAsShown, preview } = this;
    const shown = { ...this.wanted };
    const asked = { ...this.asking };
    const view = viewOf(asked);
    const made = await this.#make(view);
    this.#reported.add(made.url);
    const { width, height, notes } = made.preview;
    return {
      name: this.name,
      url: made.url,
      width,
      height,
      notes,
      view: preview.dicom ? inWords(asked, made.preview) : "",
      asked: preview.frames > 1 ? { ...view, frame: asked.frame } : view,
      shown,
      askedAs: asked,
      askAsShown,
    };
  }

  /** Let go of all pictures: nothing will show them again. */
  close() {
    this.#closed = true;
    for (const { url } of this.#made.values()) URL.revokeObjectURL(url);
  }

  async #follow() {
    for (;;) {
      const wanted = { ...this.wanted };
      const view = viewOf(wanted);
      const key = JSON.stringify(view);
      if (key === this.#shownKey) {
        this.failure = null;
        return;
      }
      try {
        const made = await this.#make(view);
        this.preview = made.preview;
        this.url = made.url;
        // Of this frame: another may have another.
        if (view.window === undefined) this.own = shownWindow(made.preview);
        this.failure = null;
        this.#shownKey = key;
      } catch (error) {
        this.failure = asFailure(error);
        // Back to what was shown: a window that the server refuses must not be asked about.
        if (this.preview) this.wanted = { ...this.shown };
        return;
      }
      this.shown = wanted;
      this.#changed();
    }
  }

  /** @param {import("./types.js").View} view */
  async #make(view) {
    const key = JSON.stringify(view);
    const known = this.#made.get(key);
    if (known) return known;
    const preview = await getPreview(this.file, view);
    const url = URL.createObjectURL(new Blob([bytesOf(preview.png)], { type: "image/png" }));
    const made = { preview: { ...preview, png: "" }, url };
    // It was taken away while it was read.
    if (this.#closed) URL.revokeObjectURL(url);
    this.#made.set(key, made);
    this.#forgetOldest();
    return made;
  }

  #forgetOldest() {
    for (const [key, { url }] of this.#made) {
      if (this.#made.size <= MOST_KEPT) return;
      if (url === this.url || this.#reported.has(url)) continue;
      URL.revokeObjectURL(url);
      this.#made.delete(key);
    }
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}

/**
 * Whether the server makes the same picture of both.
 *
 * @param {Wanted} one
 * @param {Wanted} other
 */
export function sameView(one, other) {
  return JSON.stringify(viewOf(one)) === JSON.stringify(viewOf(other));
}

/**
 * @param {Wanted} wanted
 * @returns {import("./types.js").View}
 */
function viewOf({ window, preset, frame }) {
  return {
    ...(window ? { window: preset || written(window) } : {}),
    ...(frame > 1 ? { frame } : {}),
  };
}

/**
 * @param {Wanted} wanted
 * @param {import("./types.js").Preview} preview
 */
function inWords({ window, preset, frame }, preview) {
  const own = preview.window ? "the file’s own window" : "all values of the file";
  const name = preset ? `${preset} window` : window ? "window" : own;
  const shown = shownWindow(preview);
  return [
    preview.frames > 1 ? `frame ${frame} of ${preview.frames}` : "",
    shown ? `${name}, center ${shown[0]}, width ${shown[1]}` : "",
  ]
    .filter(Boolean)
    .join(", ");
}

/** @param {string} base64 */
function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let index = 0; index < text.length; index++) bytes[index] = text.charCodeAt(index);
  return bytes;
}
