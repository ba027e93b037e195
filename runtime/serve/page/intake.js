/** How images come in: dropped, pasted, chosen. */

import { byId } from "./dom.js";

/** @typedef {"replace" | "add"} Way Instead of the images there, or beside them. */

/**
 * @param {(files: File[], way: Way) => void} take
 * @param {() => boolean} hasImages
 */
export function setUpIntake(take, hasImages) {
  setUpChoosing(take);
  setUpPasting(take);
  setUpDropping(take, hasImages);
}

/** @param {(files: File[], way: Way) => void} take */
function setUpChoosing(take) {
  const input = /** @type {HTMLInputElement} */ (byId("file"));
  /** @type {Way} */
  let way = "replace";
  for (const [id, meant] of /** @type {[string, Way][]} */ ([["choose", "replace"], ["choose-first", "replace"], ["add", "add"]])) {
    byId(id).addEventListener("click", () => {
      way = meant;
      input.click();
    });
  }
  input.addEventListener("change", () => {
    take([...(input.files ?? [])], way);
    // So that the same file can be chosen once more.
    input.value = "";
  });
}

/** @param {(files: File[], way: Way) => void} take */
function setUpPasting(take) {
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    // Office programs and browsers put a picture beside the text that is copied: in a field the text is meant.
    if (!files.length || (isTextField(event.target) && event.clipboardData?.getData("text/plain"))) return;
    event.preventDefault();
    take(files, "replace");
  });
}

/** @param {EventTarget | null} target */
function isTextField(target) {
  return target instanceof Element && target.matches("textarea, input[type=text], input[type=password]");
}

/**
 * @param {(files: File[], way: Way) => void} take
 * @param {() => boolean} hasImages
 */
function setUpDropping(take, hasImages) {
  const overlay = byId("drop");
  const zones = /** @type {HTMLElement[]} */ ([...overlay.children]);
  let depth = 0;
  const withFiles = (/** @type {DragEvent} */ event) => event.dataTransfer?.types.includes("Files") ?? false;
  const end = () => {
    depth = 0;
    overlay.hidden = true;
  };
  document.addEventListener("dragenter", (event) => {
    if (!withFiles(event)) return;
    depth++;
    overlay.hidden = false;
    zones[1].hidden = !hasImages();
  });
  document.addEventListener("dragleave", () => {
    if (--depth <= 0) end();
  });
  document.addEventListener("dragover", (event) => {
    if (!withFiles(event)) return;
    event.preventDefault();
    const over = /** @type {Element} */ (event.target).closest("[data-drop]");
    for (const zone of zones) zone.classList.toggle("over", zone === over);
  });
  document.addEventListener("drop", (event) => {
    if (!withFiles(event)) return;
    event.preventDefault();
    const zone = /** @type {HTMLElement | null} */ (/** @type {Element} */ (event.target).closest("[data-drop]"));
    end();
    take([...(event.dataTransfer?.files ?? [])], zone?.dataset.drop === "add" ? "add" : "replace");
  });
}
