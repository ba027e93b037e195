/** The buttons under the images. They act on the viewer's active image. */

import { byId, make, setText } from "./dom.js";
import { bounded } from "./window_level.js";

const ZOOM_STEP = 1.25;

/**
 * @param {import("./viewer.js").Viewer} viewer
 */
export function setUpToolbar(viewer) {
  const frame = /** @type {HTMLInputElement} */ (byId("frame"));
  const center = /** @type {HTMLInputElement} */ (byId("window-center"));
  const width = /** @type {HTMLInputElement} */ (byId("window-width"));
  const asShown = /** @type {HTMLInputElement} */ (byId("ask-as-shown"));

  byId("zoom-in").addEventListener("click", () => viewer.active?.zoom(ZOOM_STEP));
  byId("zoom-out").addEventListener("click", () => viewer.active?.zoom(1 / ZOOM_STEP));
  byId("zoom-fit").addEventListener("click", () => viewer.active?.fit());
  frame.addEventListener("input", () => viewer.active?.item.show({ frame: frame.valueAsNumber }));
  asShown.addEventListener("change", () => viewer.active?.item.setAskAsShown(asShown.checked));
  /** @type {HTMLInputElement | null} the number that is being typed, and not yet applied */
  let typed = null;
  const apply = () => {
    if (typed === null) return;
    typed = null;
    const item = viewer.active?.item;
    const window = /** @type {import("./window_level.js").Window} */ ([center.valueAsNumber, width.valueAsNumber]);
    // Shown again as it was applied, or as it is where it is no number.
    if (!item || window.some(Number.isNaN)) return update();
    item.show({ window: bounded(window, item.preview?.window_range ?? null), preset: "" });
  };
  for (const field of [center, width]) {
    field.addEventListener("input", () => (typed = field));
    field.addEventListener("change", apply);
    field.addEventListener("blur", apply);
    // Control and Enter ask at once, before the field says that it changed.
    field.addEventListener("keydown", (event) => event.key === "Enter" && apply());
  }
  for (const tool of /** @type {const} */ (["window", "move"])) {
    byId(`tool-${tool}`).addEventListener("click", () => {
      viewer.tool = tool;
      byId("tiles").dataset.tool = tool;
      update();
    });
  }

  function update() {
    const tile = viewer.active;
    const item = tile?.item ?? null;
    for (const id of ["zoom-in", "zoom-out", "zoom-fit"]) {
      /** @type {HTMLButtonElement} */ (byId(id)).disabled = !item?.preview;
    }
    const zoom = tile?.zoomPercent ?? null;
    setText(byId("zoom-level"), zoom === null ? "–" : `${zoom} %`);
    const frames = item?.preview?.frames ?? 1;
    byId("frames").hidden = frames < 2;
    frame.max = String(frames);
    frame.value = String(item?.wanted.frame ?? 1);
    const pending = item?.preview && item.shown.frame !== item.wanted.frame;
    setText(byId("frame-number"), `${item?.wanted.frame ?? 1} / ${frames}${pending ? " …" : ""}`);
    byId("windowing").hidden = byId("tools").hidden = !item?.canWindow;
    byId("tool-window").setAttribute("aria-pressed", String(viewer.tool === "window"));
    byId("tool-move").setAttribute("aria-pressed", String(viewer.tool === "move"));
    if (!item?.window) return;
    if (typed !== center) center.value = String(item.window[0]);
    if (typed !== width) width.value = String(item.window[1]);
    asShown.checked = item.askAsShown;
    for (const button of byId("presets").querySelectorAll("button")) {
      const pressed = button.value ? item.wanted.preset === button.value : item.wanted.window === null;
      button.setAttribute("aria-pressed", String(pressed));
    }
  }

  viewer.addEventListener("touch", update);
  viewer.addEventListener("change", update);
  update();
}

/**
 * A button for each window that the server knows by name.
 *
 * @param {import("./viewer.js").Viewer} viewer
 * @param {Record<string, [number, number]>} presets
 */
export function setPresets(viewer, presets) {
  const button = (/** @type {string} */ value, /** @type {string} */ text) => {
    const element = make("button", { class: "small", text, attributes: { type: "button", "aria-pressed": "false" } });
    element.value = value;
    element.addEventListener("click", () => {
      const window = value ? presets[value] : null;
      viewer.active?.item.show({ window, preset: value });
    });
    return element;
  };
  const named = Object.keys(presets).map((name) => button(name, name[0].toUpperCase() + name.slice(1).replace("-", " ")));
  byId("presets").replaceChildren(button("", "File’s own"), ...named);
}
