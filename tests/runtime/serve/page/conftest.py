"""The page in headless Chromium, and images to give it."""

import base64
import io
import os
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urljoin

import numpy as np
import pytest
from medvlm.demo.dataset import make_item

# For a machine that is busy with other things.
PATIENCE_MS = 30_000
BROWSERS = ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Debian's Chromium, or another that is there; skips where none is."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra test")
    path = next((path for path in BROWSERS if os.access(path, os.X_OK)), None)
    if path is None:
        pytest.skip("needs Chromium as a program of this system, which is absent")
    # A sandbox cannot be had as root.
    sandbox = [] if os.getuid() else ["--no-sandbox"]
    sync_api.expect.set_options(timeout=PATIENCE_MS)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=sandbox)
        yield browser
        browser.close()


@pytest.fixture
def open_at(browser: Any) -> Iterator[Callable[..., Any]]:
    """Call it with an address for the page there.

    An error of a script, a breach of the CSP, or a request to anyone but the page's own server fails the test.
    """
    contexts, faults = [], []

    def open_it(address: str, **options: Any) -> Any:
        contexts.append(browser.new_context(viewport={"width": 1280, "height": 720}, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: faults.append(f"{error}\n{error.stack}"))
        page.on("console", lambda said: faults.append(said.text) if "Content Security" in said.text else None)
        own = (urljoin(address, "/"), "blob:", "data:")
        page.on("request", lambda asked: None if asked.url.startswith(own) else faults.append(f"asked {asked.url}"))
        page.goto(address)
        page.wait_for_selector("#server-state[data-state=ready]")
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert not faults


@pytest.fixture(scope="session")
def scan() -> bytes:
    """A drawing of a chest X-ray as PNG."""
    item = next(item for item in (make_item("test", index) for index in range(40)) if "X-ray" in item.facts.kind)
    stream = io.BytesIO()
    item.image.save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="session")
def ct() -> bytes:
    """A CT as DICOM, with three frames: a ramp of HU from left to right, and a disk that moves with the frames."""
    pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")
    ramp = np.broadcast_to(np.linspace(-1000, 1000, 128), (3, 128, 128)).copy()
    rows, columns = np.mgrid[:128, :128]
    for frame in range(3):
        ramp[frame][(rows - 64) ** 2 + (columns - 32 - 32 * frame) ** 2 < 200] = 60
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3"
    dataset.SeriesInstanceUID, dataset.Modality = "1.2", "CT"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = 3, 128, 128
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 1
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
    dataset.WindowCenter, dataset.WindowWidth = 0, 2000
    dataset.PixelData = np.rint(ramp).astype("<i2").tobytes()
    dataset["PixelData"].VR = "OW"
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()


SHIFTS = """() => {
  window.shifts = [];
  new PerformanceObserver((list) => {
    for (const shift of list.getEntries()) {
      for (const source of shift.sources) if (source.node) window.shifts.push(source.node.id || source.node.nodeName);
    }
  }).observe({ type: "layout-shift" });
}"""


@pytest.fixture
def watch_shifts() -> Callable[[Any], None]:
    """Call it with a page, and `window.shifts` grows by what is moved that was there, as Chromium itself counts it."""
    return lambda page: page.evaluate(SHIFTS)


@pytest.fixture
def printed() -> Callable[[Any], str]:
    """Call it with a page for the text of its report."""

    def text_of(page: Any) -> str:
        page.emulate_media(media="print")
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        text = page.inner_text("#report")
        page.emulate_media(media="screen")
        return text

    return text_of


DROP = """([zone, name, data]) => {
  const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name));
  const target = document.querySelector("#stage");
  target.dispatchEvent(new DragEvent("dragenter", { bubbles: true, cancelable: true, dataTransfer: transfer }));
  const over = document.querySelector(`[data-drop=${zone}]`);
  for (const type of ["dragover", "drop"]) {
    over.dispatchEvent(new DragEvent(type, { bubbles: true, cancelable: true, dataTransfer: transfer }));
  }
}"""


@pytest.fixture
def drop(scan: bytes, ct: bytes) -> Callable[..., None]:
    """Call it with a page and a file's name (the X-ray, or the CT for .dcm), and it is dropped and shown."""

    expect = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra test").expect

    def drop_it(
        page: Any, name: str, *, zone: str = "replace", content: bytes | None = None, shown: bool = True
    ) -> None:
        before = page.locator(".tile").count() if zone == "add" else 0
        data = content if content is not None else ct if name.endswith(".dcm") else scan
        page.evaluate(DROP, [zone, name, base64.b64encode(data).decode()])
        if shown:
            expect(page.locator(".tile:not(.loading) img[src]")).to_have_count(before + 1)
            expect(page.locator(".tile .name").last).to_contain_text(name)

    return drop_it


@pytest.fixture
def ask() -> Callable[..., None]:
    """Call it with a page and a recorded answer, and its question is written with its options, and asked."""

    def ask_it(page: Any, recorded: dict[str, Any]) -> None:
        text, *options = recorded["question"].split("\n")
        page.fill("#question-text", text)
        rows = page.locator("#option-rows input")
        while rows.count() > len(options):
            page.locator("#option-rows button").last.click()
        while rows.count() < len(options):
            page.click("#add-option")
        for row, option in zip(rows.all(), options, strict=True):
            row.fill(option.partition(") ")[2])
        page.click("#ask")

    return ask_it
