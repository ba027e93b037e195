/** The server's calls. Every one throws a `Failure`, or an AbortError where the caller's signal was pulled. */

import { eventData } from "./event_stream.js";
import { Failure, brokenOff, failureInStream, failureOfResponse, gone, notUnderstood, tokenWanted } from "./failure.js";
import { checkReadable } from "./image_type.js";

let token = "";

/** Take the token from the address (/#token=…), and it out of there: nobody should read it over a shoulder. */
export function takeTokenFromAddress() {
  const found = new URLSearchParams(location.hash.slice(1)).get("token");
  if (found === null) return;
  setToken(found);
  history.replaceState(null, "", location.pathname);
}

/** @param {string} value kept for as long as the page is open, and nowhere else */
export function setToken(value) {
  token = value.trim();
}

/** @returns {Promise<import("./types.js").Info>} */
export async function getInfo() {
  return callForJson("/info", {});
}

export const HEALTH_PATIENCE_MS = 2000;

/** Whether the server takes questions. */
export async function isThere() {
  try {
    const response = await fetch("/healthz", { cache: "no-store", signal: AbortSignal.timeout(HEALTH_PATIENCE_MS) });
    return response.ok;
  } catch {
    return false;
  }
}

/** @type {Promise<unknown>} one preview at a time: the server has few seats for them, and others look too */
let lastPreview = Promise.resolve();
const PREVIEW_TRIES = 20;

/**
 * An image as the model will see it.
 *
 * @param {Blob} file
 * @param {import("./types.js").View} view
 * @returns {Promise<import("./types.js").Preview>}
 */
export function getPreview(file, view) {
  const form = new FormData();
  // Errors call it as the page does; its name may be a patient's, and stays here.
  form.append("image", file, "image");
  if (view.window !== undefined) form.append("window", view.window);
  if (view.frame !== undefined) form.append("frame", String(view.frame));
  const preview = lastPreview.then(() => persistentPreview(form, file));
  lastPreview = preview.catch(() => {});
  return preview;
}

/**
 * A busy server is asked again: nobody pressed a button for this, so nobody would press it again.
 *
 * @param {FormData} form
 * @param {Blob} file that is in it
 * @returns {Promise<import("./types.js").Preview>}
 */
async function persistentPreview(form, file) {
  for (let tries = 1; ; tries++) {
    try {
      return await callForJson("/preview", { method: "POST", body: form });
    } catch (error) {
      // A request with a file that cannot be read fails as one to a server that is not there.
      await checkReadable(file);
      if (!(error instanceof Failure) || error.kind !== "busy" || tries === PREVIEW_TRIES) throw error;
      await new Promise((resolve) => setTimeout(resolve, 1000 * (error.retryAfter ?? 1)));
    }
  }
}

/**
 * The chunks of an answer, as they come.
 *
 * @param {object} request of OpenAI's chat completions; streaming is asked for here
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<any>}
 */
export async function* streamChat(request, signal) {
  const response = await call("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  if (response.body === null) throw brokenOff();
  try {
    for await (const data of eventData(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw failureInStream(chunk.error);
      yield chunk;
    }
  } catch (error) {
    throw error instanceof TypeError || error instanceof SyntaxError ? brokenOff() : error;
  }
  throw brokenOff();
}

/**
 * @param {string} path
 * @param {RequestInit} options
 */
async function call(path, options) {
  const headers = headersWithToken(options.headers);
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit", redirect: "error" });
  } catch (error) {
    throw error instanceof TypeError ? gone() : error;
  }
  if (response.status === 401) throw tokenWanted(token !== "");
  if (!response.ok) {
    const body = await response.text().catch(() => "");
    throw failureOfResponse(response.status, response.headers.get("Retry-After"), body);
  }
  return response;
}

/**
 * @param {string} path
 * @param {RequestInit} options
 */
async function callForJson(path, options) {
  const response = await call(path, options);
  try {
    return await response.json();
  } catch (error) {
    if (error instanceof SyntaxError) throw notUnderstood();
    throw error instanceof TypeError ? gone() : error;
  }
}

/** @param {HeadersInit | undefined} others */
function headersWithToken(others) {
  const headers = new Headers(others);
  try {
    if (token) headers.set("Authorization", `Bearer ${token}`);
  } catch {
    // No server has a token of characters that a header cannot hold.
    throw tokenWanted(true);
  }
  return headers;
}
