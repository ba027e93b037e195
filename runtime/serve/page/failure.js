/** What went wrong, in a person's words: what happened, and what to do. */

/** @typedef {"gone" | "refused" | "busy" | "token" | "broken"} FailureKind */

export class Failure extends Error {
  /**
   * @param {FailureKind} kind
   * @param {string} title what happened
   * @param {string} advice what to do
   * @param {number | null} retryAfter seconds after which it is worth another try
   */
  constructor(kind, title, advice, retryAfter = null) {
    super(title);
    this.kind = kind;
    this.title = title;
    this.advice = advice;
    this.retryAfter = retryAfter;
  }
}

/** Whether it stands for as long as the server is as it is, whatever was asked. @param {Failure | null} failure */
export function isOfServer(failure) {
  return failure?.kind === "gone" || failure?.kind === "token";
}

/** The server cannot be reached at all. */
export function gone() {
  return new Failure(
    "gone",
    "The medvlm server does not answer",
    "Your question is kept here. Start the server again with “medvlm serve”, or ask who looks after it; this page notices when it is back.",
  );
}

/** Something else than the server of this page gave a reply. */
export function notUnderstood() {
  return new Failure(
    "broken",
    "The server’s reply cannot be read",
    "It is not in the form that this page expects. Reload the page; if that does not help, ask who looks after the server.",
  );
}

/** The connection ended in the middle of an answer. */
export function brokenOff() {
  return new Failure(
    "broken",
    "The answer broke off",
    "The connection to the server ended early. What had arrived is below and is not a whole answer: ask again.",
  );
}

/** @param {boolean} given whether the server was given a token, which then was a wrong one */
export function tokenWanted(given) {
  return new Failure(
    "token",
    given ? "This token was refused" : "The server wants its access token",
    "Open the page by the whole link that “medvlm serve” printed, or enter the token here.",
  );
}

/** A file that was chosen, and is no longer what it was then. */
export function unreadable() {
  return new Failure(
    "refused",
    "An image can no longer be read",
    "Its file was moved or changed after it was chosen. Choose it again.",
  );
}

/**
 * What a person is told of an error; those that are no failure are faults of the page.
 *
 * @param {unknown} error
 */
export function asFailure(error) {
  if (error instanceof Failure) return error;
  console.error(error);
  return new Failure("broken", "The page failed", `${error}. Reload it, and report this if it comes again.`);
}

/**
 * The failure that an HTTP response stands for.
 *
 * @param {number} status
 * @param {string | null} retryAfter the header
 * @param {string} body
 */
export function failureOfResponse(status, retryAfter, body) {
  const said = messageOf(body);
  if (status === 429) {
    const seconds = Number.parseFloat(retryAfter ?? "") || 5;
    return new Failure(
      "busy",
      "The workstation is busy",
      `Too many questions are waiting. Yours is kept here; ask again in about ${Math.ceil(seconds)} s.`,
      seconds,
    );
  }
  if (status === 503) {
    return new Failure(
      "busy",
      "The server is not taking questions",
      `${sentence(said) || "It is starting or shutting down."} Your question is kept here; ask again in a moment.`,
      3,
    );
  }
  if (status === 413) {
    return new Failure("refused", "That is too large for the server", sentence(said) || "Use fewer or smaller images.");
  }
  if (status >= 500) {
    return new Failure(
      "broken",
      "The server failed",
      `${sentence(said) || "It gave no reason."} Your question is kept here. If asking again does not help, look at the server’s log.`,
    );
  }
  return new Failure("refused", "This cannot be asked", sentence(said) || `The server refused it (HTTP ${status}).`);
}

/**
 * The failure in the middle of a stream, in OpenAI's form.
 *
 * @param {{message?: unknown}} error
 */
export function failureInStream(error) {
  const said = typeof error.message === "string" ? error.message : "";
  return new Failure("broken", "The answer broke off", `${sentence(said) || "The server gave no reason."} Ask again.`);
}

/** @param {string} body */
function messageOf(body) {
  try {
    const message = JSON.parse(body)?.error?.message;
    return typeof message === "string" ? message : "";
  } catch {
    return "";
  }
}

/** @param {string} text */
function sentence(text) {
  const whole = text.trim();
  if (!whole) return "";
  const upper = whole[0].toUpperCase() + whole.slice(1);
  return /[.!?]$/.test(upper) ? upper : `${upper}.`;
}
