/** Notices when the server goes away and when it is back, whether or not anybody asks. */

import { byId, setText } from "./dom.js";
import { isThere } from "./server.js";

export const EVERY_MS = 2500;
const EVERY_MS_WHILE_GONE = 1500;

/** @typedef {"waiting" | "ready" | "gone"} ServerState */

/** Sends "gone" when the server went away, and "back" when it is there again. */
export class ServerWatch extends EventTarget {
  /** @type {ServerState} */
  state = "waiting";
  #timer = 0;

  start() {
    clearTimeout(this.#timer);
    void isThere().then((there) => {
      this.set(there ? "ready" : "gone");
      this.#timer = setTimeout(() => this.start(), there ? EVERY_MS : EVERY_MS_WHILE_GONE);
    });
  }

  /** @param {ServerState} state */
  set(state) {
    if (state === this.state) return;
    const before = this.state;
    this.state = state;
    byId("server-state").dataset.state = state;
    setText(byId("server-state-text"), { waiting: "Connecting", ready: "Ready", gone: "Server gone" }[state]);
    if (state === "gone") this.dispatchEvent(new Event("gone"));
    else if (before === "gone") this.dispatchEvent(new Event("back"));
  }
}
