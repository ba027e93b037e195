/** Notices when the server goes away and when it is back, whether or not anybody asks. */

import { byId, setText } from "./dom.js";
import { isThere } from "./server.js";

const EVERY_MS = 5000;
const EVERY_MS_WHILE_GONE = 1500;

/** @typedef {"waiting" | "ready" | "gone"} ServerState */

/** Sends "change" when the state is another. */
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
    this.state = state;
    byId("server-state").dataset.state = state;
    setText(byId("server-state-text"), { waiting: "Connecting", ready: "Ready", gone: "Server gone" }[state]);
    this.dispatchEvent(new Event("change"));
  }
}
