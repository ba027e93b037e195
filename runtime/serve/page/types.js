/**
 * The shapes that the page's modules hand to each other. There is no code here: JSDoc reads it.
 *
 * @typedef {object} Info What GET /info says of the server.
 * @property {string} model
 * @property {string} bundle sha256 of the manifest
 * @property {string} recipe
 * @property {string} version
 * @property {boolean} demo
 * @property {{images: number, image_bytes: number, text: number}} limits
 * @property {Record<string, [number, number]>} presets name -> [center, width]
 *
 * @typedef {object} Preview What POST /preview says of one image.
 * @property {number} width in pixels
 * @property {number} height
 * @property {number} frames
 * @property {[number, number] | null} window [center, width] in the file's units
 * @property {[number, number] | null} window_range lowest and highest value of the image
 * @property {boolean} [inverted] whether small values are shown white
 * @property {boolean} dicom
 * @property {string[]} notes
 * @property {string} png base64
 *
 * @typedef {object} View How a DICOM file is shown.
 * @property {string} [window] "CENTER,WIDTH" or a preset's name; absent: the file's own
 * @property {number} [frame] from 1
 *
 * @typedef {object} Shot An image as it was asked about.
 * @property {string} name
 * @property {string} url of the picture shown
 * @property {number} width
 * @property {number} height
 * @property {string} view in words; empty for what is no DICOM
 * @property {View} asked the same for the server; empty for what is no DICOM
 * @property {string[]} notes
 * @property {import("./image_item.js").Wanted} shown how it was shown then
 * @property {import("./image_item.js").Wanted} askedAs how the model saw it
 * @property {boolean} askAsShown
 *
 * @typedef {object} Timings Seconds, as `medvlm ask --json` gives them.
 * @property {number} preprocess_s
 * @property {number} vision_s
 * @property {number} prefill_s
 * @property {number} first_token_s
 * @property {number} decode_s
 * @property {number} total_s
 * @property {number | null} decode_tokens_per_s
 *
 * @typedef {object} Outcome What the last chunk of an answer holds.
 * @property {string | null} choice
 * @property {string | null} [strict_choice]
 * @property {Record<string, number>} options letter -> probability
 * @property {string[]} flags
 * @property {string[]} notes
 * @property {Timings} timings
 * @property {number} reused_tokens
 * @property {number} visual_tokens
 * @property {string} bundle
 *
 * @typedef {object} Question
 * @property {string} text
 * @property {string[]} options the texts of A, B, C, …
 *
 * @typedef {"sending" | "queued" | "reading" | "reasoning" | "done" | "stopped" | "failed"} Phase
 *
 * @typedef {object} Entry One question of the session with its answer.
 * @property {number} id
 * @property {Info} info what the server said of itself when it was asked
 * @property {boolean} earlier whether the server has another bundle now
 * @property {Date} time when it was asked
 * @property {Question} question
 * @property {import("./image_item.js").ImageItem[]} images
 * @property {Shot[]} shots
 * @property {Phase} phase
 * @property {{position: number, wait_s: number | null} | null} queue
 * @property {number} started performance.now() when it was sent
 * @property {string} reasoning
 * @property {string} content
 * @property {string | null} finish OpenAI's finish_reason
 * @property {number | null} tokens generated ones
 * @property {Outcome | null} outcome
 * @property {import("./failure.js").Failure | null} failure
 */

export {};
