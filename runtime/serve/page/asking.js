/** Ask one question and follow its answer. */

import { asFailure } from "./failure.js";
import { dataUri } from "./image_type.js";
import { writtenQuestion } from "./question_text.js";
import { streamChat } from "./server.js";

/**
 * Ask what `entry` says, writing into it what arrives and calling `changed` after each piece.
 *
 * Ends with the entry's phase "done", "stopped" (by the signal) or "failed" (see its `failure`).
 *
 * @param {import("./types.js").Entry} entry
 * @param {AbortSignal} signal
 * @param {() => void} changed
 */
export async function follow(entry, signal, changed) {
  try {
    const request = await written(entry);
    entry.started = performance.now();
    for await (const chunk of streamChat(request, signal)) {
      take(entry, chunk);
      changed();
    }
    entry.phase = "done";
  } catch (error) {
    if (signal.aborted) {
      entry.phase = "stopped";
    } else {
      entry.phase = "failed";
      entry.failure = asFailure(error);
    }
  }
  changed();
}

/**
 * The request in OpenAI's form: the images as `data:` URIs in their order, then the question.
 *
 * @param {import("./types.js").Entry} entry
 */
async function written(entry) {
  const images = entry.images.map(async (item, index) => {
    const view = entry.shots[index].asked;
    const url = await dataUri(item.file);
    return { type: "image_url", image_url: Object.keys(view).length ? { url, view } : { url } };
  });
  const content = [...(await Promise.all(images)), { type: "text", text: writtenQuestion(entry.question) }];
  return { model: entry.info.model, messages: [{ role: "user", content }], temperature: 0 };
}

/**
 * Write what a chunk brings into the entry.
 *
 * @param {import("./types.js").Entry} entry
 * @param {any} chunk
 */
export function take(entry, chunk) {
  const told = chunk.medvlm ?? {};
  if (told.queue) {
    const position = Number(told.queue.position) || 0;
    entry.queue = { position, wait_s: told.queue.wait_s ?? null };
    entry.phase = position > 0 ? "queued" : "reading";
  } else if (entry.phase === "sending" || entry.phase === "queued") {
    entry.phase = "reading";
  }
  for (const choice of chunk.choices ?? []) {
    const reasoning = choice.delta?.reasoning_content ?? "";
    const content = choice.delta?.content ?? "";
    if (reasoning || content) entry.phase = "reasoning";
    entry.reasoning += reasoning;
    entry.content += content;
    entry.finish = choice.finish_reason ?? entry.finish;
  }
  if (told.timings) entry.outcome = told;
  if (chunk.usage) entry.tokens = chunk.usage.completion_tokens ?? null;
}
