/** Puts the parts of the page together. */

import { announce, announceText, startText } from "./announcer.js";
import { follow } from "./asking.js";
import { byId, setText } from "./dom.js";
import { Failure } from "./failure.js";
import { showFailure, shownFailure } from "./failure_panel.js";
import { ImageItem } from "./image_item.js";
import { setUpIntake } from "./intake.js";
import { QuestionEditor } from "./question_editor.js";
import { writtenQuestion } from "./question_text.js";
import { makeReport } from "./report.js";
import { Result, answerInWords, isRunning } from "./result.js";
import { getInfo, setToken, takeTokenFromAddress } from "./server.js";
import { ServerWatch } from "./server_watch.js";
import { SessionList } from "./session_list.js";
import { setUpTheme } from "./theme.js";
import { setPresets, setUpToolbar } from "./toolbar.js";
import { Viewer } from "./viewer.js";
import { fileSize, modelName } from "./words.js";

/** @type {import("./types.js").Info | null} */
let info = null;
/** @type {AbortController | null} the answer that is being written */
let running = null;

takeTokenFromAddress();
setUpTheme();
const viewer = new Viewer();
const editor = new QuestionEditor();
const result = new Result();
const session = new SessionList();
const watch = new ServerWatch();
const ask = /** @type {HTMLButtonElement} */ (byId("ask"));
const stop = /** @type {HTMLButtonElement} */ (byId("stop"));

setUpToolbar(viewer);
setUpIntake(takeFiles, () => viewer.tiles.length > 0);

async function loadInfo() {
  try {
    info = await getInfo();
  } catch (error) {
    return tell(error);
  }
  if (shownFailure()?.kind === "token" || shownFailure()?.kind === "gone") showFailure(null);
  setText(byId("model-name"), [modelName(info), info.recipe.toUpperCase()].filter(Boolean).join(" · "));
  setText(byId("bundle-name"), `medvlm ${info.version} · bundle ${info.bundle.slice(0, 12)}`);
  byId("bundle-name").title = `sha256 ${info.bundle}`;
  byId("demo-notice").hidden = !info.demo;
  setPresets(viewer, info.presets);
  watch.set("ready");
  update();
}

/** @param {File[]} files @param {import("./intake.js").Way} way */
function takeFiles(files, way) {
  const kept = way === "add" ? viewer.items : [];
  const most = info?.limits.images ?? 8;
  // Base64 makes four bytes of three.
  const largest = 0.74 * (info?.limits.image_bytes ?? Infinity);
  const bytes = [...kept.map((item) => item.file), ...files].reduce((sum, file) => sum + file.size, 0);
  if (bytes > largest) {
    return tellOfImages(`${fileSize(bytes)} is too much: the images of a question may have ${fileSize(largest)}.`);
  }
  if (kept.length + files.length > most) {
    return tellOfImages(`A question can have ${most} images; these would be ${kept.length + files.length}.`);
  }
  if (!files.length) return;
  tellOfImages("");
  const items = files.map((file) => new ImageItem(file, file.name || "pasted image"));
  viewer.setItems([...kept, ...items], items[0]);
  for (const item of items) void load(item);
  announce(files.length === 1 ? `Image ${items[0].name}` : `${files.length} images`);
}

/** @param {ImageItem} item that is shown for the first time */
async function load(item) {
  await item.settled();
  if (!item.failure) return;
  const { kind, advice, title } = item.failure;
  if (kind === "refused") tellOfImages(advice);
  else tell(item.failure);
  if (item.preview === null) viewer.setItems(viewer.items.filter((each) => each !== item));
  announce(title);
}

/** @param {string} text empty: nothing to tell */
function tellOfImages(text) {
  setText(byId("viewer-failure"), text);
  byId("viewer-failure").hidden = !text;
}

/** @param {unknown} error */
function tell(error) {
  if (!(error instanceof Failure)) throw error;
  if (error.kind === "gone") watch.set("gone");
  showFailure(error);
}

async function send() {
  editor.closeGaps();
  const { question } = editor;
  const wrong = wrongWith(question);
  if (wrong) {
    showFailure(new Failure("refused", "This cannot be asked yet", wrong));
    return editor.focus();
  }
  if (info === null) return loadInfo();
  showFailure(null);
  const controller = new AbortController();
  running = controller;
  update();
  const images = viewer.items;
  /** @type {import("./types.js").Entry | null} */
  let entry = null;
  try {
    const shots = await Promise.all(images.map((item) => item.shot()));
    const asked = (entry = session.add(question, images, shots));
    editor.fold(stop);
    startText();
    await follow(asked, info, controller.signal, () => redraw(asked));
  } catch (error) {
    tell(error);
  }
  running = null;
  if (entry) finish(entry);
  update();
}

/** @param {import("./types.js").Entry} entry */
function finish(entry) {
  if (entry.failure) {
    tell(entry.failure);
    if (!entry.reasoning && !entry.content) session.drop(entry);
    return;
  }
  const { letter, text, detail } = answerInWords(entry);
  announceText(entry.reasoning, true);
  announce([entry.phase === "done" ? "Answer" : "", letter, text, detail].filter(Boolean).join(". "));
}

/** @param {import("./types.js").Question} question */
function wrongWith(question) {
  if (!question.text) return "Write a question first.";
  if (question.options.length === 1) return "Give at least two options, or none.";
  const most = info?.limits.text ?? Infinity;
  if (question.text.length > most) return `The question has ${question.text.length} characters; shorten it to ${most}.`;
  return "";
}

let drawing = 0;

/** Draw at most once a frame. @param {import("./types.js").Entry} entry */
function redraw(entry) {
  cancelAnimationFrame(drawing);
  drawing = requestAnimationFrame(() => {
    session.update(entry);
    if (session.selected === entry) result.update();
  });
  if (isRunning(entry)) announceText(entry.reasoning, false);
}

function update() {
  const busy = running !== null;
  // The one that has the focus must not vanish under it.
  const focused = document.activeElement === ask || document.activeElement === stop;
  ask.hidden = busy;
  stop.hidden = !busy;
  if (focused) (busy ? stop : ask).focus();
  const again = viewer.items.length > 0 && session.entries.some((entry) => sameImages(entry.images, viewer.items));
  setText(ask, again ? "Ask again" : "Ask");
  const hint = viewer.items.length === 0 ? "No image yet" : again ? `Same ${viewer.items.length > 1 ? "images" : "image"}: sooner` : "Ctrl + Enter";
  setText(byId("ask-hint"), busy ? "Esc stops" : hint);
  const selected = session.selected;
  const same = selected && writtenQuestion(selected.question) === writtenQuestion(editor.question);
  byId("asked").classList.toggle("unseen", same === true);
  /** @type {HTMLButtonElement} */ (byId("print")).disabled = !selected || isRunning(selected);
  /** @type {HTMLButtonElement} */ (byId("add")).disabled = viewer.items.length === 0;
}

/** @param {ImageItem[]} one @param {ImageItem[]} other */
function sameImages(one, other) {
  return one.length === other.length && one.every((item, index) => item === other[index]);
}

/** @type {Set<ImageItem>} */
const open = new Set();

/** Let go of images that nothing shows and no answer is about. */
function closeImages() {
  for (const item of viewer.items) open.add(item);
  for (const item of open) {
    if (viewer.items.includes(item) || session.entries.some((entry) => entry.images.includes(item))) continue;
    item.close();
    open.delete(item);
  }
}

viewer.addEventListener("change", () => {
  if (!running) closeImages();
  // An answer never stands beside an image that it is not about.
  if (session.selected && !sameImages(session.selected.images, viewer.items)) session.select(null);
  update();
});
viewer.addEventListener("touch", () => {
  const failure = viewer.active?.item.failure;
  if (failure?.kind === "refused") tellOfImages(failure.advice);
  else if (viewer.active?.item.busy) tellOfImages("");
});
session.addEventListener("select", () => {
  const { selected } = session;
  if (selected && !sameImages(selected.images, viewer.items)) viewer.setItems(selected.images);
  result.show(selected);
  if (!selected) editor.unfold();
  update();
});
editor.addEventListener("change", update);
session.addEventListener("pick", () => {
  if (!session.selected) return;
  const { images, question, shots } = session.selected;
  images.forEach((item, index) => {
    item.setAskAsShown(shots[index].askAsShown);
    item.show(shots[index].shown);
  });
  editor.setQuestion(question);
  editor.fold(ask);
});
watch.addEventListener("gone", () => announce("The server does not answer"));
watch.addEventListener("back", () => {
  if (shownFailure()?.kind === "gone") showFailure(null);
  announce("The server answers again");
  // It may serve another bundle now.
  void loadInfo();
});
window.addEventListener("hashchange", () => {
  takeTokenFromAddress();
  void loadInfo();
});
byId("question").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!running) void send();
});
stop.addEventListener("click", () => running?.abort());
byId("clear").addEventListener("click", () => {
  viewer.setItems([]);
  session.select(null);
  editor.setQuestion({ text: "", options: [] });
  tellOfImages("");
  viewer.focus();
});
byId("keys").addEventListener("click", () => /** @type {HTMLDialogElement} */ (byId("keys-dialog")).showModal());
byId("print").addEventListener("click", () => print());
window.addEventListener("beforeprint", () => {
  if (session.selected && info) makeReport(session.selected, info);
  document.documentElement.classList.toggle("with-report", session.selected !== null);
});
byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setToken(/** @type {HTMLInputElement} */ (byId("token")).value);
  void loadInfo();
});
document.addEventListener("keydown", (event) => {
  // There, Escape closes it.
  if (/** @type {HTMLDialogElement} */ (byId("keys-dialog")).open) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    /** @type {HTMLFormElement} */ (byId("question")).requestSubmit();
  } else if (event.key === "Escape" && running) {
    running.abort();
  }
});

void loadInfo();
watch.start();
