"""The page of an evaluation: complete, self-contained, small, and safe whatever a model or a file's name says."""

import base64
import dataclasses
import importlib.util
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from medvlm.demo.dataset import Item
from medvlm.demo.saved import save_dataset
from medvlm.runtime import InputError, MedVLMError
from medvlm.runtime.bundle import Bundle, open_bundle
from medvlm.runtime.cli import main
from medvlm.runtime.dataset import DatasetItem
from medvlm.runtime.evaluation.outcome import Outcome
from medvlm.runtime.evaluation.report import check_report, picture, render_report
from medvlm.runtime.evaluation.score import score_all
from medvlm.runtime.files import write_whole
from PIL import Image

PROBLEM = "Which is it?\nA) MRI\nB) CT <b>"
VOID = {"meta", "img", "br", "rect", "line"}


class Page(HTMLParser):
    """What a page holds; fails where an element is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def pictures(self) -> list[str]:
        return [attributes["src"] or "" for tag, attributes in self.tags if tag == "img"]


@pytest.fixture
def opened(tiny_bundle: Path) -> Bundle:
    return open_bundle(tiny_bundle)


@pytest.fixture
def items(tmp_path: Path) -> list[DatasetItem]:
    """Three questions about noise, far larger than a page shows it."""
    noise = np.random.default_rng(0).integers(0, 256, (600, 1200), np.uint8)
    Image.fromarray(noise).save(tmp_path / "scan<i>.png")
    return [DatasetItem(i, (tmp_path / "scan<i>.png",), PROBLEM, "A", subset="CT & more") for i in range(3)]


def said(index: int, letter: str | None, **fields: str) -> Outcome:
    return Outcome(str(index), reasoning=f"Reason {index}", choice=letter, strict_choice=letter, **fields)  # type: ignore[arg-type]


def page(opened: Bundle, items: list[DatasetItem], *outcomes: Outcome) -> Page:
    found = {outcome.key: outcome for outcome in outcomes}
    return Page(render_report(opened, Path("own.json"), items, found, score_all(items, found)))


def test_every_wrong_answer_is_there_with_its_image_and_reasoning_and_no_right_one(
    opened: Bundle, items: list[DatasetItem]
) -> None:
    shown = page(opened, items, said(0, "A"), said(1, "B"), said(2, None))
    assert "Reason 0" not in shown.text
    for words in ("Question 1", "Reason 1", "Answered: B) CT <b>", "Right: A) MRI", "Answered: no letter", "Reason 2"):
        assert words in shown.text
    assert "33.3 % (6.1-79.2)" in shown.text
    assert len(shown.pictures()) == 2


def test_answer_that_only_the_strict_rule_finds_wrong_says_so(opened: Bundle, items: list[DatasetItem]) -> None:
    lax = dataclasses.replace(said(0, None), choice="A", flags=("no_tags",))
    assert "right as a person reads it: the form is wrong, not the letter; no_tags" in page(opened, items, lax).text


def test_errors_are_listed(opened: Bundle, items: list[DatasetItem]) -> None:
    shown = page(opened, items, said(0, "A"), Outcome("1", error="x.png <does> not exist"))
    assert "x.png <does> not exist" in shown.text


def test_page_of_nothing_answered_is_a_page(opened: Bundle, items: list[DatasetItem]) -> None:
    assert "0 of 3" in page(opened, items).text


def test_nothing_is_fetched_and_nothing_is_run(opened: Bundle, items: list[DatasetItem]) -> None:
    hostile = dataclasses.replace(
        said(1, "B"), reasoning="<script>alert(1)</script>\x1b[2J<img src=http://x/>", notes=("<style>",)
    )
    shown = page(opened, items, hostile)
    assert {tag for tag, _ in shown.tags} & {"script", "link", "iframe", "object", "style"} == {"style"}
    assert sum(tag == "style" for tag, _ in shown.tags) == 1
    assert all(source.startswith("data:image/jpeg;base64,") for source in shown.pictures())
    assert "<script>alert(1)</script>\ufffd[2J<img src=http://x/>" in shown.text
    policy = next(a["content"] for tag, a in shown.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    names = {name for _, attributes in shown.tags for name in attributes}
    assert not names & {"href", "onload", "onclick", "srcset"}


def test_text_that_is_no_utf8_and_windows_lines_are_shown(
    opened: Bundle, items: list[DatasetItem], tmp_path: Path
) -> None:
    items[1] = dataclasses.replace(items[1], subset="CT \ud800", problem=PROBLEM.replace("\n", "\r\n"))
    found = {"1": said(1, "B")}
    page = render_report(opened, Path("own.json"), items, found, score_all(items, found))
    write_whole(tmp_path / "r.html", page)
    content = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "CT \ufffd" in content
    assert "Which is it?\nA) MRI\nB) CT &lt;b&gt;" in content


def test_name_may_be_as_long_as_names_can_be(opened: Bundle, items: list[DatasetItem], tmp_path: Path) -> None:
    path = tmp_path / f"{'x' * 250}.html"
    check_report(path)
    write_whole(path, render_report(opened, Path("own.json"), items, {}, score_all(items, {})))
    assert path.stat().st_size


def test_pictures_are_scaled_down_in_their_proportions(items: list[DatasetItem]) -> None:
    source = picture(items[0].images[0])
    assert source
    content = base64.b64decode(source.partition(",")[2])
    with Image.open(io.BytesIO(content)) as shown:
        assert (shown.format, shown.size) == ("JPEG", (320, 160))
    assert len(content) < 60_000


def test_image_that_is_gone_leaves_the_rest(opened: Bundle, items: list[DatasetItem]) -> None:
    items[1].images[0].unlink()
    shown = page(opened, items, said(1, "B"))
    assert shown.pictures() == []
    assert "The image can no longer be read." in shown.text
    assert "Reason 1" in shown.text


def test_same_answers_give_the_same_page(opened: Bundle, items: list[DatasetItem]) -> None:
    found = {"1": said(1, "B")}
    one, two = (render_report(opened, Path("own.json"), items, found, score_all(items, found)) for _ in range(2))
    assert one == two


def test_command_writes_the_page_beside_its_table(demo_bundle: Path, demo_items: list[Item], tmp_path: Path) -> None:
    save_dataset(tmp_path, demo_items[:8])
    words = [demo_bundle, tmp_path / "dataset.json", "--out", tmp_path / "results.jsonl", "--report"]
    # Without an image every question is a guess: some are wrong.
    result = CliRunner().invoke(
        main, ["eval", *map(str, words), str(tmp_path / "r.html"), "--blank-images", "--max-new-tokens", "20"]
    )
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == f"report: {tmp_path / 'r.html'}"
    content = (tmp_path / "r.html").read_text(encoding="utf-8")
    shown = Page(content)
    # Cut after 20 tokens, no answer has a letter.
    assert len(shown.pictures()) == 8
    assert "Grey images" in shown.text
    assert not re.search(r"https?://", content)
    assert len(content) < 8 * 20_000


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("r.txt", "ends in .html"),
        (".", "ends in .html"),
        ("absent/r.html", "is not a directory"),
        ("x" * 300 + ".html", "cannot be written"),
    ],
    ids=lambda value: value[:12],
)
def test_name_that_will_not_do_is_refused(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        check_report(tmp_path / name)


def test_without_jinja2_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(InputError, match=r"pip install 'medvlm\[report\]'"):
        check_report(tmp_path / "r.html")


def test_page_that_cannot_be_written_leaves_the_old_one(
    opened: Bundle, items: list[DatasetItem], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.html"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(MedVLMError, match="No space left on device"):
        write_whole(path, render_report(opened, Path("own.json"), items, {}, score_all(items, {})))
    assert path.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.html", "scan<i>.png"]
