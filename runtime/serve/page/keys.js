/** Keys that work wherever the focus is, and the list of all of them. */

import { byId } from "./dom.js";

/** @param {() => void} stop ends the answer that is being written, if one is */
export function setUpKeys(stop) {
  const list = /** @type {HTMLDialogElement} */ (byId("keys-dialog"));
  byId("keys").addEventListener("click", () => list.showModal());
  document.addEventListener("keydown", (event) => {
    // There, Escape closes it.
    if (list.open) return;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      /** @type {HTMLFormElement} */ (byId("question")).requestSubmit();
    } else if (event.key === "Escape") {
      stop();
    }
  });
}
