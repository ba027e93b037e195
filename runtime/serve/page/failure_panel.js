/** Where a failure is told, with what to do. */

import { byId, setText } from "./dom.js";

/** @type {import("./failure.js").Failure | null} */
let shown = null;

/** @param {import("./failure.js").Failure | null} failure */
export function showFailure(failure) {
  shown = failure;
  byId("failure").hidden = failure === null;
  byId("failure").dataset.kind = failure?.kind ?? "";
  setText(byId("failure-title"), failure?.title ?? "");
  setText(byId("failure-advice"), failure?.advice ?? "");
  byId("token-form").hidden = failure?.kind !== "token";
}

/** @param {(token: string) => Promise<void>} use resolves when it is known whether the token is the right one */
export function setUpTokenForm(use) {
  const field = /** @type {HTMLInputElement} */ (byId("token"));
  byId("token-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    await use(field.value);
    if (shown?.kind === "token") field.select();
    else field.value = "";
  });
}

/** The failure that is told now. */
export function shownFailure() {
  return shown;
}
