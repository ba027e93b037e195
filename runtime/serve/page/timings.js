/** How long each stage of an answer took: a bar in parts, and the seconds in words. */

import { make } from "./dom.js";
import { seconds } from "./words.js";

/**
 * @typedef {object} Stage
 * @property {string} name
 * @property {number} seconds
 * @property {string} detail
 */

/**
 * The stages of a whole answer, in their order.
 *
 * @param {import("./types.js").Entry} entry
 * @returns {Stage[]}
 */
export function stages({ outcome, tokens }) {
  if (!outcome) return [];
  const { timings, visual_tokens: visual, reused_tokens: reused } = outcome;
  const rate = timings.decode_tokens_per_s;
  const written = tokens ? `${tokens} tokens` : "";
  return [
    { name: "Image", seconds: timings.preprocess_s + timings.vision_s, detail: visual ? `${visual} visual tokens` : "" },
    { name: "Prompt", seconds: timings.prefill_s, detail: reused ? `${reused} tokens kept` : "" },
    {
      name: "Writing",
      seconds: timings.decode_s,
      detail: [written, rate ? `${Math.round(rate)}/s` : ""].filter(Boolean).join(", "),
    },
  ];
}

/**
 * @param {HTMLElement} place
 * @param {import("./types.js").Entry} entry
 */
export function drawTimings(place, entry) {
  const shown = stages(entry);
  if (!shown.length || !entry.outcome) return place.replaceChildren();
  const total = entry.outcome.timings.total_s;
  const bar = make("div", { class: "stages", attributes: { "aria-hidden": "true" } });
  for (const stage of shown) {
    const part = make("span", { class: stage.name.toLowerCase() });
    part.style.flexGrow = String(100 * Math.max(stage.seconds / total, 0.005));
    bar.append(part);
  }
  const list = make("dl");
  for (const stage of shown) {
    list.append(
      make(
        "div",
        { class: stage.name.toLowerCase() },
        make("dt", { text: stage.name }),
        make("dd", { text: seconds(stage.seconds) }),
        make("dd", { class: "soft", text: stage.detail }),
      ),
    );
  }
  list.append(make("div", { class: "total" }, make("dt", { text: "Total" }), make("dd", { text: seconds(total) })));
  place.replaceChildren(bar, list);
}
