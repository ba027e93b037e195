/** What the page says of the server all the time: the model, its bundle, and whether it is the demo. */

import { byId, setText } from "./dom.js";
import { modelName } from "./words.js";

/** @param {import("./types.js").Info} info */
export function drawInfo(info) {
  setText(byId("model-name"), [modelName(info), info.recipe.toUpperCase()].filter(Boolean).join(" · "));
  setText(byId("bundle-name"), `medvlm ${info.version} · bundle ${info.bundle.slice(0, 12)}`);
  byId("bundle-name").title = `sha256 ${info.bundle}`;
  byId("demo-notice").hidden = !info.demo;
}
