/** What of DICOM files an answer is about: said beside it in every phase, with a warning where something else is shown. */

import { byId, setText } from "./dom.js";
import { sameView } from "./image_item.js";

/** @param {import("./types.js").Entry | null} entry */
export function drawViews(entry) {
  const views = entry?.shots.map(({ view }) => view) ?? [];
  const place = byId("views");
  place.hidden = !views.some(Boolean);
  if (entry === null || place.hidden) return;
  const elsewhere = entry.images.map((item, index) => !sameView(item.wanted, entry.shots[index].askedAs));
  const warned = elsewhere.some(Boolean);
  const told = views.map((view, index) => {
    const number = views.length > 1 ? `image ${index + 1}: ` : "";
    return view && (!warned || elsewhere[index]) ? number + view : "";
  });
  const text = `${warned ? "This answer is about" : "Asked about"} ${told.filter(Boolean).join("; ")}`;
  setText(byId("views-text"), text);
  byId("views-text").title = text;
  place.classList.toggle("elsewhere", warned);
  byId("show-asked").hidden = !warned;
}

/** Show what the model saw. @param {import("./types.js").Entry} entry */
export function showAsAsked(entry) {
  entry.images.forEach((item, index) => item.show(entry.shots[index].askedAs));
}
