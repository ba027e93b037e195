/** One image in its tile: drawn, zoomed, moved, windowed, stepped through, by pointer and keyboard. */

import { make, setText } from "./dom.js";
import { approximation, dragged, shownWindow } from "./window_level.js";
import { FITTED, fittedSize, moved, zoomedAt } from "./zoom.js";

/** @typedef {"window" | "move"} Tool What the left button does to DICOM; anything else is always moved. */

const ZOOM_STEP = 1.25;
const MOVE_STEP = 40;
const WINDOW_STEP = 12;
const SVG = "http://www.w3.org/2000/svg";

let made = 0;

export class Tile {
  placement = { ...FITTED };

  /**
   * @param {import("./image_item.js").ImageItem} item
   * @param {{tool: () => Tool, activate: (tile: Tile) => void, remove: (tile: Tile) => void, moved: () => void}} viewer
   */
  constructor(item, viewer) {
    this.item = item;
    this.viewer = viewer;
    this.picture = make("img", { attributes: { alt: "", draggable: "false" } });
    this.corners = ["name", "size", "window", "frame"].map((place) => make("span", { class: `corner ${place}` }));
    this.removal = make("button", { class: "remove", text: "×", attributes: { type: "button" } });
    this.element = make("div", { class: "tile", attributes: { role: "group", tabindex: "0" } });
    this.element.append(this.picture, ...this.corners, this.removal);
    this.removal.addEventListener("click", () => viewer.remove(this));
    this.filter = new WindowFilter();
    this.#listen();
    this.update = this.update.bind(this);
    item.addEventListener("change", this.update);
    new ResizeObserver(() => this.#place()).observe(this.element);
  }

  /** Stop following the item. */
  close() {
    this.item.removeEventListener("change", this.update);
    this.filter.close();
  }

  /** @param {number} number from 1 @param {number} count of images */
  setNumber(number, count) {
    this.label = count > 1 ? `Image ${number} of ${count}` : "Image";
    this.numbered = count > 1 ? `${number}  ` : "";
    this.removal.setAttribute("aria-label", count > 1 ? `Take image ${number} away` : "Take the image away");
    this.removal.title = this.removal.getAttribute("aria-label") ?? "";
    this.update();
  }

  update() {
    const { preview, url, failure, name, window, wanted, shown, busy } = this.item;
    if (this.picture.src !== url && url) this.picture.src = url;
    this.element.classList.toggle("loading", preview === null && failure === null);
    this.element.classList.toggle("unread", preview === null && failure !== null);
    this.element.setAttribute("aria-busy", String(busy));
    // A window is approximated at once; of another frame there is nothing yet.
    const pending = preview !== null && shown.frame !== wanted.frame;
    this.element.classList.toggle("pending", pending);
    this.element.classList.toggle("windowed", this.item.canWindow);
    this.filter.apply(this.picture, preview, window);
    const frames = preview?.frames ?? 1;
    const texts = [
      `${this.numbered ?? ""}${name}`,
      preview ? `${preview.width} × ${preview.height}` : "",
      window && preview ? `C ${window[0]}  W ${window[1]}${wanted.preset ? `  ${wanted.preset}` : ""}` : "",
      frames > 1 ? `${shown.frame} / ${frames}${pending ? `  → ${wanted.frame} …` : ""}` : "",
    ];
    this.corners.forEach((corner, index) => setText(corner, texts[index]));
    const parts = [this.label ?? "Image", name, texts[1], texts[2] && `center ${window?.[0]}, width ${window?.[1]}`];
    if (frames > 1) parts.push(`frame ${shown.frame} of ${frames}`);
    if (pending) parts.push(`reading frame ${wanted.frame}`);
    this.element.setAttribute("aria-label", parts.filter(Boolean).join(", "));
    this.#place();
  }

  /** Percent of the image's own pixels; null before it is there. */
  get zoomPercent() {
    const fitted = this.#fitted();
    return fitted ? Math.round(100 * fitted.ratio * this.placement.scale) : null;
  }

  /** @param {number} factor */
  zoom(factor, px = 0, py = 0) {
    this.#put(zoomedAt(this.placement, factor, px, py));
  }

  fit() {
    this.#put({ ...FITTED });
  }

  /** @param {number} steps */
  stepFrame(steps) {
    const frames = this.item.preview?.frames ?? 1;
    const frame = Math.min(frames, Math.max(1, this.item.wanted.frame + steps));
    if (frame !== this.item.wanted.frame) this.item.show({ frame });
  }

  /** @param {number} dx @param {number} dy */
  #move(dx, dy) {
    const fitted = this.#fitted();
    if (fitted && this.placement.scale > 1) this.#put(moved(this.placement, dx, dy, fitted));
  }

  /** @param {import("./window_level.js").Window} start @param {number} dx @param {number} dy */
  #window(start, dx, dy) {
    const { window_range: range = null, inverted = false } = this.item.preview ?? {};
    // Up is brighter, also where small values are shown white.
    this.item.show({ window: dragged(start, dx, inverted ? -dy : dy, range), preset: "" });
  }

  /** @param {import("./zoom.js").Placement} placement */
  #put(placement) {
    this.placement = placement;
    this.#place();
    this.viewer.moved();
  }

  #place() {
    const { scale, x, y } = this.placement;
    this.picture.style.transform = `translate(${x}px, ${y}px) scale(${scale})`;
  }

  #fitted() {
    const { preview } = this.item;
    const box = { width: this.element.clientWidth, height: this.element.clientHeight };
    return preview && box.width && box.height ? fittedSize(preview, box) : null;
  }

  #listen() {
    const { element } = this;
    element.addEventListener("focusin", () => this.viewer.activate(this));
    element.addEventListener("pointerdown", (event) => this.#startDrag(event));
    element.addEventListener("contextmenu", (event) => this.item.canWindow && event.preventDefault());
    element.addEventListener("dblclick", () => this.fit());
    element.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    element.addEventListener("keydown", (event) => this.#key(event));
  }

  /** @param {PointerEvent} event */
  #startDrag(event) {
    if (event.target === this.removal) return;
    this.element.focus({ preventScroll: true });
    const windows = this.item.canWindow && (event.button === 2 || (event.button === 0 && this.viewer.tool() === "window"));
    if (!windows && event.button === 2) return;
    event.preventDefault();
    this.element.setPointerCapture(event.pointerId);
    const start = this.item.window;
    let [fromX, fromY] = [event.clientX, event.clientY];
    const drag = (/** @type {PointerEvent} */ now) => {
      if (windows && start) {
        this.#window(start, now.clientX - fromX, now.clientY - fromY);
      } else {
        this.#move(now.clientX - fromX, now.clientY - fromY);
        [fromX, fromY] = [now.clientX, now.clientY];
      }
    };
    const end = () => {
      this.element.removeEventListener("pointermove", drag);
      this.element.classList.remove("dragging");
    };
    this.element.classList.add("dragging");
    this.element.addEventListener("pointermove", drag);
    this.element.addEventListener("lostpointercapture", end, { once: true });
  }

  /** @param {WheelEvent} event */
  #wheel(event) {
    event.preventDefault();
    this.viewer.activate(this);
    if ((this.item.preview?.frames ?? 1) > 1 && !event.ctrlKey) return this.stepFrame(Math.sign(event.deltaY));
    const box = this.element.getBoundingClientRect();
    const [px, py] = [event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2];
    this.zoom(1.0015 ** -event.deltaY, px, py);
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    if (event.target !== this.element || event.ctrlKey || event.altKey || event.metaKey) return;
    const arrow = /** @type {Record<string, [number, number]>} */ ({
      ArrowLeft: [-1, 0],
      ArrowRight: [1, 0],
      ArrowUp: [0, -1],
      ArrowDown: [0, 1],
    })[event.key];
    const actions = /** @type {Record<string, () => void>} */ ({
      "+": () => this.zoom(ZOOM_STEP),
      "=": () => this.zoom(ZOOM_STEP),
      "-": () => this.zoom(1 / ZOOM_STEP),
      0: () => this.fit(),
      PageUp: () => this.stepFrame(-1),
      PageDown: () => this.stepFrame(1),
      Delete: () => this.viewer.remove(this),
    });
    if (arrow && event.shiftKey) {
      const start = this.item.window;
      if (start && this.item.canWindow) this.#window(start, arrow[0] * WINDOW_STEP, arrow[1] * WINDOW_STEP);
    } else if (arrow) {
      this.#move(-arrow[0] * MOVE_STEP, -arrow[1] * MOVE_STEP);
    } else if (actions[event.key]) {
      actions[event.key]();
    } else {
      return;
    }
    event.preventDefault();
  }
}

/** Shows a picture in another window than the one it was made in, roughly, until the server has made it anew. */
class WindowFilter {
  constructor() {
    this.id = `window-${++made}`;
    this.functions = ["feFuncR", "feFuncG", "feFuncB"].map((name) => document.createElementNS(SVG, name));
    const transfer = document.createElementNS(SVG, "feComponentTransfer");
    this.functions.forEach((each) => each.setAttribute("type", "linear"));
    transfer.append(...this.functions);
    this.element = document.createElementNS(SVG, "filter");
    this.element.id = this.id;
    this.element.setAttribute("color-interpolation-filters", "sRGB");
    this.element.append(transfer);
    document.getElementById("window-filters")?.append(this.element);
  }

  /**
   * @param {HTMLImageElement} picture
   * @param {import("./types.js").Preview | null} preview that it shows
   * @param {import("./window_level.js").Window | null} window that it is to show
   */
  apply(picture, preview, window) {
    const from = preview && shownWindow(preview);
    if (!from || !window || (from[0] === window[0] && from[1] === window[1])) {
      picture.style.filter = "";
      return;
    }
    const { slope, intercept } = approximation(from, window, preview.inverted === true);
    for (const each of this.functions) {
      each.setAttribute("slope", String(slope));
      each.setAttribute("intercept", String(intercept));
    }
    picture.style.filter = `url(#${this.id})`;
  }

  close() {
    this.element.remove();
  }
}
