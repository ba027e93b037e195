/** What kind of image a file is, by its content as the server judges it, and the `data:` URI that carries it. */

import { unreadable } from "./failure.js";

const HEAD_BYTES = 132;

/** @type {[string, number, string][]} type, offset, the characters there */
const SIGNATURES = [
  ["application/dicom", 128, "DICM"],
  ["image/png", 0, "\x89PNG"],
  ["image/jpeg", 0, "\xff\xd8\xff"],
  ["image/tiff", 0, "II*\0"],
  ["image/tiff", 0, "MM\0*"],
  ["image/tiff", 0, "II+\0"],
  ["image/tiff", 0, "MM\0+"],
  ["image/webp", 8, "WEBP"],
  ["image/bmp", 0, "BM"],
];

/**
 * The media type of a file that starts with `head`; null for one that no image of ours starts with.
 *
 * @param {Uint8Array} head
 */
export function imageType(head) {
  const text = String.fromCharCode(...head.subarray(0, HEAD_BYTES));
  return SIGNATURES.find(([, offset, mark]) => text.startsWith(mark, offset))?.[0] ?? null;
}

/**
 * Throws a failure where a file was moved or changed after it was chosen: the browser then gives nothing of it.
 *
 * @param {Blob} file
 */
export async function checkReadable(file) {
  try {
    // Of a file that is gone the browser may say that it is empty, and a slice of that can always be read.
    await (file.size ? file.slice(0, 1) : file).arrayBuffer();
  } catch {
    throw unreadable();
  }
}

/**
 * @param {Blob} file
 * @returns {Promise<string>}
 */
export async function dataUri(file) {
  await checkReadable(file);
  const head = new Uint8Array(await file.slice(0, HEAD_BYTES).arrayBuffer());
  const typed = new Blob([file], { type: imageType(head) ?? "application/octet-stream" });
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result));
    reader.onerror = () => reject(unreadable());
    reader.readAsDataURL(typed);
  });
}
