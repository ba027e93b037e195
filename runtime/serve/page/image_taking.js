/**
 * Takes files into the viewer as images, and lets go of images that nothing needs any more. Sends the viewer "restore" when it
 * has taken an image out again that could not be read.
 */

import { announce } from "./announcer.js";
import { byId, setText } from "./dom.js";
import { ImageItem } from "./image_item.js";
import { fileSize } from "./words.js";

// Base64 makes four bytes of three, and the question needs some too.
const SHARE_OF_BODY = 0.74;

export class ImageTaking {
  /** @type {Set<ImageItem>} */
  #open = new Set();
  /** @type {ImageItem[]} those whose place was taken, which is theirs again if nothing of the new can be read */
  #replaced = [];
  /** @type {WeakSet<import("./failure.js").Failure>} each is told once, however often its image changes */
  #told = new WeakSet();

  /**
   * @param {import("./viewer.js").Viewer} viewer
   * @param {(failure: import("./failure.js").Failure) => void} tell of what is not the image's own fault
   */
  constructor(viewer, tell) {
    this.viewer = viewer;
    this.tell = tell;
    viewer.addEventListener("touch", () => this.#follow());
  }

  /**
   * @param {File[]} files
   * @param {import("./intake.js").Way} way
   * @param {import("./types.js").Info["limits"] | undefined} limits
   */
  take(files, way, limits) {
    const kept = way === "add" ? this.viewer.items : [];
    const wrong = wrongWith([...kept.map((item) => item.file), ...files], limits);
    tellOfImages(wrong);
    if (wrong || !files.length) return;
    this.#replaced = way === "add" ? [] : this.viewer.items;
    const items = files.map((file) => new ImageItem(file, file.name || "pasted image"));
    this.viewer.setItems([...kept, ...items], items[0]);
    for (const item of items) {
      this.#open.add(item);
      void this.#load(item);
    }
    announce(files.length === 1 ? `Image ${items[0].name}` : `${files.length} images`);
  }

  /** Read what could not be read: the server is back, or has its token. */
  retry() {
    for (const item of this.viewer.items) if (item.failure || item.preview === null) void this.#load(item);
  }

  /**
   * Let go of images that neither the viewer nor an answer has.
   *
   * @param {import("./types.js").Entry[]} entries
   */
  closeUnneeded(entries) {
    for (const item of this.viewer.items) this.#open.add(item);
    const needed = [...this.viewer.items, ...this.#replaced, ...entries.flatMap((entry) => entry.images)];
    for (const item of this.#open) {
      if (needed.includes(item)) continue;
      item.close();
      this.#open.delete(item);
    }
  }

  /** @param {ImageItem} item */
  async #load(item) {
    await item.settled();
    if (!item.failure) {
      this.#replaced = [];
      return;
    }
    if (item.failure.kind !== "refused") return this.#tellOnce(item.failure);
    tellOfImages(item.failure.advice);
    if (item.preview !== null || !this.viewer.items.includes(item)) return;
    const others = this.viewer.items.filter((each) => each !== item);
    this.viewer.setItems(others.length ? others : this.#replaced);
    this.viewer.dispatchEvent(new Event("restore"));
  }

  /** Tell of a window that was refused until another is wanted, and of one that could not be had. */
  #follow() {
    const item = this.viewer.active?.item;
    if (item?.failure?.kind === "refused") tellOfImages(item.failure.advice);
    else if (item?.failure) this.#tellOnce(item.failure);
    else if (item?.busy) tellOfImages("");
  }

  /** @param {import("./failure.js").Failure} failure */
  #tellOnce(failure) {
    if (this.#told.has(failure)) return;
    this.#told.add(failure);
    this.tell(failure);
  }
}

/** @param {string} text empty: nothing to tell */
export function tellOfImages(text) {
  setText(byId("viewer-failure"), text);
  byId("viewer-failure").hidden = !text;
}

/**
 * Why these cannot be the images of a question; empty where they can.
 *
 * @param {Blob[]} files
 * @param {import("./types.js").Info["limits"] | undefined} limits
 */
function wrongWith(files, limits) {
  if (!limits) return "";
  const bytes = files.reduce((sum, file) => sum + file.size, 0);
  const largest = SHARE_OF_BODY * limits.image_bytes;
  if (bytes > largest) {
    return `${fileSize(bytes)} is too much: the images of a question may have ${fileSize(largest)}.`;
  }
  const { images } = limits;
  return files.length > images ? `A question can have ${images} images; these would be ${files.length}.` : "";
}
