/** Numbers and codes as a reader wants them. */

const FLAGS = /** @type {Record<string, string>} */ ({
  unclosed_think: "The reasoning was not closed.",
  unclosed_answer: "The answer was not closed.",
  no_tags: "The answer did not come in the form that the model was trained on.",
  several_answers: "The model gave several answers; the last one counts.",
  matched_text: "The model wrote the option’s text in place of its letter.",
  unoffered_letter: "The model named a letter that was not offered.",
  ambiguous: "The model named several letters at once, so none counts.",
  conflict: "The model’s words beside its letter say another option; the letter counts.",
});

const FINISHES = /** @type {Record<string, string>} */ ({
  length: "The model reached its limit of words before it was done.",
});

/** @param {number} index of an option, from 0 */
export function letterOf(index) {
  return String.fromCharCode(65 + index);
}

/** @param {number} share 0..1 */
export function percent(share) {
  // 99.97 % is not certainty, and 0.02 % is not never.
  if (share > 0.999 && share < 1) return "> 99.9 %";
  if (share < 0.001 && share > 0) return "< 0.1 %";
  return `${(100 * share).toFixed(1)} %`;
}

/** @param {number} seconds */
export function seconds(seconds) {
  return seconds < 10 ? `${seconds.toFixed(2)} s` : `${seconds.toFixed(1)} s`;
}

// Points by which an option must lead to be preferred at all.
const CLOSE = 15;

/**
 * Whether two options are nearly as likely.
 *
 * @param {Record<string, number>} options letter -> probability
 */
export function isClose(options) {
  const [most, next] = Object.values(options).sort((one, other) => other - one);
  return next !== undefined && 100 * (most - next) < CLOSE;
}

/**
 * How far the first option is ahead of the second, in words.
 *
 * @param {Record<string, number>} options letter -> probability
 */
export function marginInWords(options) {
  const ranked = Object.entries(options).sort((one, other) => other[1] - one[1]);
  if (ranked.length < 2) return "";
  const [[first, most], [second, next]] = ranked;
  const lead = 100 * (most - next);
  const whole = Math.round(lead);
  const points = lead > 99 ? "more than 99 points" : lead < 1 ? "less than a point" : `${whole} ${whole === 1 ? "point" : "points"}`;
  const kind = lead < CLOSE ? "Nearly undecided" : lead < 40 ? "Slight preference" : lead < 80 ? "Preference" : "Clear preference";
  return `${kind}: ${first} ${points} ahead of ${second}`;
}

/**
 * What a reader should know of how an answer was read.
 *
 * @param {string[]} flags
 * @param {string | null} finish
 */
export function cautions(flags, finish) {
  const said = flags.map((flag) => FLAGS[flag] ?? `Noted: ${flag.replaceAll("_", " ")}.`);
  return finish && FINISHES[finish] ? [...said, FINISHES[finish]] : said;
}

/** @param {import("./types.js").Info} info */
export function modelName(info) {
  return info.demo ? "Demo model" : info.model;
}

/** The bundle that answered; before that, the one that is to. @param {import("./types.js").Entry} entry */
export function bundleOf({ outcome, info }) {
  return outcome?.bundle ?? info.bundle;
}

/** @param {number} bytes */
export function fileSize(bytes) {
  return bytes < 1e6 ? `${Math.max(1, Math.round(bytes / 1e3))} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

/** @param {Date} time */
export function clock(time) {
  return time.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
}

/**
 * The reasoning before a letter. Of a model that left its tags out it is what stands before the answer, as the runtime
 * reads it; where there is no letter to choose, that is the answer.
 *
 * @param {import("./types.js").Entry} entry
 */
export function reasoningOf({ reasoning, content, question }) {
  if (reasoning.trim() || question.options.length === 0) return reasoning.trim();
  // The end may be a tag that has not come to its own end.
  return content.split("<answer>")[0].replace(/<[a-z]*$/, "").trim();
}

/** @param {string} content of an answer, with its tags */
export function withoutTags(content) {
  return content.replace(/<\/?(?:answer|think)>?/g, "").trim();
}
