/** Puts the parts of the page together. */

import { announce, announceState, announceText, startText } from "./announcer.js";
import { drawViews, showAsAsked } from "./asked_views.js";
import { follow } from "./asking.js";
import { keepApart } from "./button_swap.js";
import { byId, setText } from "./dom.js";
import { Failure, asFailure, isOfServer } from "./failure.js";
import { setUpTokenForm, showFailure, shownFailure } from "./failure_panel.js";
import { ImageTaking, tellOfImages } from "./image_taking.js";
import { setUpIntake } from "./intake.js";
import { setUpKeys } from "./keys.js";
import { QuestionEditor } from "./question_editor.js";
import { wrongWithQuestion, writtenQuestion } from "./question_text.js";
import { makeReport } from "./report.js";
import { Result, answerInWords, isRunning, placeInWords } from "./result.js";
import { askHint, askedBefore, sameImages, stopHint, unlessStopped } from "./sending.js";
import { getInfo, setToken, takeTokenFromAddress } from "./server.js";
import { drawInfo } from "./server_info.js";
import { ServerWatch } from "./server_watch.js";
import { SessionList } from "./session_list.js";
import { setUpTheme } from "./theme.js";
import { setPresets, setUpToolbar } from "./toolbar.js";
import { Viewer } from "./viewer.js";
import { reasoningOf } from "./words.js";

/** @type {import("./types.js").Info | null} */
let info = null;
let loadingInfo = false;
/** @type {AbortController | null} the answer that is being written */
let running = null;

takeTokenFromAddress();
setUpTheme();
const viewer = new Viewer();
const images = new ImageTaking(viewer, tell);
const editor = new QuestionEditor();
const result = new Result();
const session = new SessionList();
const watch = new ServerWatch();
const ask = /** @type {HTMLButtonElement} */ (byId("ask"));
const stop = /** @type {HTMLButtonElement} */ (byId("stop"));

setUpToolbar(viewer);
setUpIntake((files, way) => images.take(files, way, info?.limits), () => viewer.tiles.length > 0);

async function loadInfo() {
  loadingInfo = true;
  try {
    take(await getInfo());
  } catch (error) {
    tell(error);
  }
  loadingInfo = false;
}

/** @param {import("./types.js").Info} told */
function take(told) {
  drawInfo(told);
  info = told;
  if (shownFailure()?.kind === "token" || shownFailure()?.kind === "gone") showFailure(null);
  setPresets(viewer, info.presets);
  watch.set("ready");
  images.retry();
  update();
}

/** @param {unknown} error */
function tell(error) {
  const failure = asFailure(error);
  if (failure.kind === "gone") watch.set("gone");
  showFailure(failure);
}

async function send() {
  editor.closeGaps();
  const { question } = editor;
  const wrong = wrongWithQuestion(question, info?.limits.text ?? Infinity);
  if (wrong) {
    showFailure(new Failure("refused", "This cannot be asked yet", wrong));
    return editor.focus();
  }
  showFailure(null);
  const { signal } = (running = new AbortController());
  update();
  const { items } = viewer;
  /** @type {import("./types.js").Entry | null} */
  let entry = null;
  try {
    if (info === null) await unlessStopped(loadInfo(), signal);
    if (info === null) return;
    const shots = await unlessStopped(Promise.all(items.map((item) => item.shot())), signal);
    const asked = (entry = session.add(question, items, shots, info));
    // Where others were opened meanwhile, those stay: the answer waits in the session.
    if (sameImages(items, viewer.items)) session.select(asked);
    editor.fold(stop);
    startText();
    await follow(asked, signal, () => redraw(asked));
    await unlessStopped(followBundle(asked), signal);
  } catch (error) {
    if (!signal.aborted) tell(error);
  } finally {
    running = null;
    if (entry) finish(entry);
    update();
  }
}

/** The server may have come back with another bundle sooner than anybody noticed. @param {import("./types.js").Entry} entry */
async function followBundle(entry) {
  if (!entry.outcome || entry.outcome.bundle === entry.info.bundle) return;
  await loadInfo();
  if (info?.bundle === entry.outcome.bundle) entry.info = info;
}

/** @param {import("./types.js").Entry} entry */
function finish(entry) {
  if (entry.failure) return fail(entry, entry.failure);
  if (session.selected !== entry) {
    return announce(`The answer to “${entry.question.text}” ${entry.phase === "done" ? "is ready" : "was stopped"}`);
  }
  const { letter, text, detail } = answerInWords(entry);
  announceText(reasoningOf(entry), true);
  announce([entry.phase === "done" ? "Answer" : "", letter, text, detail].filter(Boolean).join(". "));
}

/**
 * @param {import("./types.js").Entry} entry
 * @param {Failure} failure
 */
function fail(entry, failure) {
  const selected = session.selected === entry;
  // What is told beside another answer would be read as that one's; the entry keeps it.
  if (!selected) announce(`The answer to “${entry.question.text}” broke off`);
  else if (!entry.reasoning && !entry.content) session.drop(entry);
  if (selected || isOfServer(failure)) tell(failure);
  // It may be that there is another model now.
  if (failure.kind === "refused") void loadInfo();
}

let drawing = 0;

/** Draw at most once a frame. @param {import("./types.js").Entry} entry */
function redraw(entry) {
  cancelAnimationFrame(drawing);
  drawing = requestAnimationFrame(() => {
    session.update(entry);
    if (session.selected === entry) result.update();
  });
  if (session.selected !== entry || !isRunning(entry)) return;
  if (entry.phase === "queued" && entry.queue) announceState(placeInWords(entry.queue.position));
  announceText(reasoningOf(entry), false);
}

function update() {
  if (info && session.markEarlier(info.bundle)) result.update();
  const busy = running !== null;
  // The one that has the focus must not vanish under it.
  const focused = document.activeElement === ask || document.activeElement === stop;
  ask.hidden = busy;
  stop.hidden = !busy;
  if (focused) (busy ? stop : ask).focus();
  const again = askedBefore(viewer.items, session.entries);
  setText(ask, again ? "Ask again" : "Ask");
  setText(byId("ask-hint"), busy ? stopHint(viewer.items, session.entries) : askHint(viewer.items, again));
  const selected = session.selected;
  const same = selected && writtenQuestion(selected.question) === writtenQuestion(editor.question);
  byId("asked").classList.toggle("unseen", same === true);
  /** @type {HTMLButtonElement} */ (byId("print")).disabled = !selected || isRunning(selected);
  /** @type {HTMLButtonElement} */ (byId("add")).disabled = viewer.items.length === 0;
}

viewer.addEventListener("change", () => {
  if (!running) images.closeUnneeded(session.entries);
  // An answer never stands beside an image that it is not about.
  if (session.selected && !sameImages(session.selected.images, viewer.items)) session.select(null);
  update();
});
viewer.addEventListener("touch", () => {
  drawViews(session.selected);
  update();
});
byId("show-asked").addEventListener("click", () => {
  if (session.selected) showAsAsked(session.selected);
  viewer.focus();
});
session.addEventListener("select", () => {
  const { selected } = session;
  if (selected && !sameImages(selected.images, viewer.items)) viewer.setItems(selected.images);
  result.show(selected);
  if (!isOfServer(shownFailure())) showFailure(selected?.failure ?? null);
  if (!selected) editor.unfold();
  update();
});
viewer.addEventListener("restore", () => session.restore(viewer.items));
editor.addEventListener("change", update);
session.addEventListener("pick", () => {
  if (!session.selected) return;
  const { question, shots } = session.selected;
  session.selected.images.forEach((item, index) => {
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
  if (!loadingInfo) void loadInfo();
});
window.addEventListener("hashchange", () => {
  takeTokenFromAddress();
  void loadInfo();
});
byId("question").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!running) void send();
});
keepApart(byId("actions"), [ask, stop]);
stop.addEventListener("click", () => running?.abort());
byId("clear").addEventListener("click", () => {
  viewer.setItems([]);
  session.select(null);
  editor.setQuestion({ text: "", options: [] });
  tellOfImages("");
  viewer.focus();
});
byId("print").addEventListener("click", () => print());
window.addEventListener("beforeprint", () => {
  if (session.selected) makeReport(session.selected);
  document.documentElement.classList.toggle("with-report", session.selected !== null);
});
setUpTokenForm(async (token) => {
  setToken(token);
  await loadInfo();
  if (shownFailure()?.kind !== "token") editor.focus();
});
setUpKeys(() => running?.abort());

void loadInfo();
watch.start();
