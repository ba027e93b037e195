"""Reports: that JSON and page say what was measured, that a page fetches and runs nothing, and what is refused."""

import dataclasses
import importlib.util
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from medvlm.export import report_plots
from medvlm.export.recipe import make_recipe
from medvlm.export.report import Calibration, PartName, Report, TensorLoss, Tried, read_tried
from medvlm.export.report_file import check_report_path, write_report
from medvlm.export.report_html import marked_words, parts, render_html
from medvlm.export.report_plots import error_series, plot_labels, tried_svg
from medvlm.export.report_words import figures, number
from medvlm.runtime.commands import one_line
from medvlm.runtime.comparison import Comparison, Flip
from medvlm.runtime.errors import InputError, MedVLMError

HOSTILE = '<script>alert("x")</script><img src=http://evil.example/a.png onerror="x">\x1b[31m</p> & {{ 7 * 7 }}'
LAYERS, BLOCKS = 3, 2


def loss(part: PartName, scope: str, precision: str, weights: int, size: int, error: float) -> TensorLoss:
    return TensorLoss(part, scope, precision, weights, size, error)


def tensors() -> tuple[TensorLoss, ...]:
    """A decoder in 4 bits, its head, and a vision encoder with a wide matrix in two pieces and an exact embedding."""
    decoder = [
        loss("decoder", f"layers.{i}/{kind}", "int4 block 128 gptq", 4096, 2176, 0.1 + i / 100 + j / 1000)
        for i in range(LAYERS)
        for j, kind in enumerate(
            ["attn/qkv_proj", "attn/o_proj", "mlp/down_proj/gate_proj", "mlp/down_proj/up_proj", "mlp/down_proj"]
        )
    ]
    vision = [
        loss("vision encoder", f"blocks.{i}/{kind}", "w8a8", 1024, 1040, 0.006 + j / 10000)
        for i in range(BLOCKS)
        for j, kind in enumerate(["attn/q", "attn/k", "attn/v", "attn/proj"])
    ]
    pieces = [
        loss("vision encoder", f"blocks.{i}/mlp/fc2.{piece}{end}", "w8a8", 1024, 1040, 0.004 + 0.002 * piece)
        for i in range(BLOCKS)
        for piece in range(2)
        for end in ("/fc1", "")
    ]
    outside = [
        loss("vision encoder", "patch_embed", "fp32", 512, 2048, 0.0),
        loss("vision encoder", "merger/mlp.0", "w8a8", 2048, 2080, 0.0087),
        loss("head", "lm_head", "int8 block 128", 8192, 8500, 0.0123),
    ]
    return (*decoder, *vision, *pieces, *outside)


def flip(
    reasoning_a: str = "The nodule is on the left side.", reasoning_b: str = "The nodule is on the right."
) -> Flip:
    return Flip(
        index=17,
        images=("/home/somebody/patients/scan-017.png",),
        problem="Where is it?\nA) Left\nB) Right",
        solution="A",
        choice_a="A",
        choice_b=None,
        reasoning_a=reasoning_a,
        reasoning_b=reasoning_b,
        text_a="<think>...</think><answer>A</answer>",
        text_b="no answer at all",
    )


def comparison(**changes: Any) -> Comparison:
    found = Comparison(
        questions=120,
        tokens=4567,
        kl=0.0123,
        kl_p95=0.0456,
        kl_max=1.789,
        top1_agreement=0.9876,
        accuracy_a=0.825,
        accuracy_b=0.8,
        flips=9,
        lost=5,
        won=2,
        mcnemar_p=0.453125,
        flipped=(flip(),),
    )
    return dataclasses.replace(found, **changes)


def report(**changes: Any) -> Report:
    made = Report(
        source="MedVLM-R1",
        created_by="medvlm 0.1.0",
        recipe=make_recipe("int4").to_json(),
        total_bytes=1_234_567_890,
        tensors=tensors(),
        dataset="held-out.json",
        comparison=comparison(),
        calibration=Calibration(dataset="calibration.json", images=32, method="gptq"),
        seconds=321.5,
    )
    return dataclasses.replace(made, **changes)


def other(label: str, megabytes: float, kl: float, **changes: Any) -> Tried:
    return dataclasses.replace(report().tried(), label=label, megabytes=megabytes, kl=kl, **changes)


class Page(HTMLParser):
    """What a browser would find in a page: tags with their attributes, and the text outside of styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._in_style = False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in_style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self._in_style else data

    @property
    def ids(self) -> list[str]:
        return [attributes["id"] or "" for _, attributes in self.tags if "id" in attributes]


@pytest.fixture(scope="module")
def html() -> str:
    return render_html(report(), [other("int8 block 128, vision w8a8", 2345.6, 0.00012), other("fp32", 8765.4, 0.0)])


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


# The data


def test_bits_count_all_that_is_stored_for_a_weight() -> None:
    # 4 bits, and for each block of 128 a float32 scale and a zero point of 4 bits.
    assert loss("decoder", "lm_head", "int4 block 128", 128 * 10, 10 * (64 + 4) + 5, 0.1).bits == 4 + 36 / 128


@pytest.mark.parametrize(
    ("scope", "layer", "kind"),
    [
        ("layers.13/attn/qkv_proj", 13, "qkv_proj"),
        ("layers.0/mlp/down_proj.4/gate_proj", 0, "gate_proj"),
        ("layers.0/mlp/down_proj.4", 0, "down_proj"),
        ("blocks.31/mlp/fc2/fc1", 31, "fc1"),
        ("merger/mlp.0", None, "merger/mlp.0"),
        ("lm_head", None, "lm_head"),
    ],
)
def test_a_scope_tells_the_layer_and_the_kind(scope: str, layer: int | None, kind: str) -> None:
    tensor = loss("decoder", scope, "int4", 1, 1, 0.1)
    assert (tensor.layer, tensor.kind) == (layer, kind)


def test_the_label_names_the_decoder_and_what_differs_from_it() -> None:
    assert report().label == "int4 block 128 gptq, head int8 block 128, vision w8a8"
    exact = [dataclasses.replace(tensor, precision="fp32", relative_error=0.0) for tensor in tensors()]
    assert report(tensors=tuple(exact)).label == "fp32"


def test_a_mixed_decoder_is_called_by_all_its_precisions_the_commonest_first() -> None:
    mixed = [
        dataclasses.replace(tensor, precision="int8 block 128")
        if tensor.layer == 0 and tensor.part == "decoder"
        else tensor
        for tensor in tensors()
    ]
    assert (
        report(tensors=tuple(mixed)).label == "int4 block 128 gptq + int8 block 128, head int8 block 128, vision w8a8"
    )


def test_json_holds_everything_under_its_keys() -> None:
    data = json.loads(report().to_json())
    assert set(data) == {
        *("format", "format_version", "label", "source", "created_by", "recipe", "calibration", "total_bytes"),
        *("seconds", "dataset", "whole_model", "tensors", "flipped"),
    }
    expected = dataclasses.asdict(comparison())
    del expected["flipped"]
    assert data["whole_model"] == expected
    assert {"kl", "top1_agreement", "accuracy_a", "accuracy_b", "flips", "mcnemar_p"} <= set(data["whole_model"])
    assert [TensorLoss(**{k: v for k, v in entry.items() if k != "bits"}) for entry in data["tensors"]] == [*tensors()]
    assert data["tensors"][0]["bits"] == 8 * 2176 / 4096
    assert data["recipe"] == make_recipe("int4").to_json()
    assert data["calibration"] == {"dataset": "calibration.json", "images": 32, "method": "gptq"}


def test_json_and_page_name_images_and_not_where_they_lie(html: str) -> None:
    assert json.loads(report().to_json())["flipped"][0]["images"] == ["scan-017.png"]
    for text in (report().to_json(), html):
        assert "scan-017.png" in text
        assert "somebody" not in text


def test_a_report_is_read_back_from_its_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(report().to_json(), encoding="utf-8")
    assert read_tried(tmp_path / "a.json") == Tried(
        label="int4 block 128 gptq, head int8 block 128, vision w8a8",
        source="MedVLM-R1",
        dataset="held-out.json",
        questions=120,
        megabytes=1234.56789,
        kl=0.0123,
        top1_agreement=0.9876,
        accuracy=0.8,
        flips=9,
    )


def changed(**changes: Any) -> str:
    return json.dumps({**json.loads(report().to_json()), **changes})


def whole_model(**changes: Any) -> str:
    return changed(whole_model={**json.loads(report().to_json())["whole_model"], **changes})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1, 2]",
        '{"kl": 1}',
        "[" * 100_000,
        changed(format_version=2),
        changed(label=7),
        changed(total_bytes=None),
        changed(total_bytes=0),
        changed(total_bytes=10**400),
        changed(whole_model=[]),
        changed(whole_model={}),
        whole_model(kl=-1),
        whole_model(kl=float("nan")),
        whole_model(kl=float("inf")),
        whole_model(kl=True),
        whole_model(accuracy_b=1.1),
        whole_model(flips="9"),
    ],
)
def test_a_file_that_is_no_report_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "some.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"some\.json") as refused:
        read_tried(path)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.write_bytes(b"\xff\xfe\x00"), lambda path: None])
def test_a_report_that_cannot_be_read_is_one_line(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "some.json")
    with pytest.raises(InputError, match=r"some\.json"):
        read_tried(tmp_path / "some.json")


# The page


def test_a_page_fetches_nothing_and_runs_nothing(html: str, page: Page) -> None:
    assert not {"script", "link", "iframe", "object", "embed", "base", "img", "form"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "data", "action", "srcset", "poster"):
                assert value is not None
                assert value.startswith(("#", "data:")), (tag, value)
    styles = re.findall(r"<style>(.*?)</style>", html, re.DOTALL) + [
        a["style"] or "" for _, a in page.tags if "style" in a
    ]
    assert not [style for style in styles if "@import" in style or re.search(r"url\((?!#)", style)]
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_no_two_elements_of_a_page_have_one_name_and_every_reference_has_its_element(page: Page) -> None:
    assert len(page.ids) == len(set(page.ids))
    text = json.dumps([attributes for _, attributes in page.tags])
    wanted = re.findall(r'"#([^"]+)"|url\(#([^)]+)\)', text)
    assert wanted
    assert {a or b for a, b in wanted} <= set(page.ids)


def test_the_page_says_every_figure(page: Page) -> None:
    for value in (
        *("1234.6 MB", "82.5 %", "80.0 %", "9 of 120", "5 / 2", "0.453", "98.76 %", "0.0123", "0.0456", "1.79"),
        *("4567 tokens", "held-out.json", "MedVLM-R1", "medvlm 0.1.0", "322 seconds"),
        *("gptq with 32 images of calibration.json", "in blocks of 128, asymmetric"),
        # exp(-0.0123)
        "98.8 % of the probability",
    ):
        assert value in " ".join(page.text.split()), value


def test_the_page_lists_every_matrix_with_its_error_bits_and_bytes(html: str) -> None:
    rows = [re.sub(r"<[^>]*>", " ", row).split() for row in re.findall(r"<tr><td><code>.*?</tr>", html)]
    expected = [
        [
            t.scope,
            *t.precision.split(),
            f"{100 * t.relative_error:.3f}",
            "%",
            f"{t.bits:.2f}",
            f"{t.weights:,}",
            f"{t.bytes:,}",
        ]
        for t in tensors()
    ]
    assert sorted(rows) == sorted(expected)


def test_the_largest_error_of_each_part_comes_first() -> None:
    for part in parts(tensors()):
        errors = [tensor.relative_error for tensor in part.tensors]
        assert errors == sorted(errors, reverse=True)


def test_a_parts_mean_error_counts_every_weight_alike() -> None:
    (part,) = parts([loss("head", "a", "int8", 100, 100, 0.1), loss("head", "b", "int8", 300, 300, 0.2)])
    assert part.mean == pytest.approx(0.175)
    assert (part.weights, part.bytes, part.bits) == (400, 400, 8)


def test_a_flipped_question_is_shown_with_both_reasonings_and_an_answer_without_one_with_its_text() -> None:
    shown = Page(render_html(report(comparison=comparison(flipped=(flip(reasoning_b=""),))), [])).text
    assert "Full precision: A) Left, right" in shown
    assert "This bundle: no letter, wrong" in shown
    assert "The nodule is on the left side." in shown
    assert "no answer at all" in shown
    assert "Right answer: A) Left" in shown


def test_words_that_only_one_side_has_are_marked() -> None:
    left, right = "It is on the left side.", "It is on the right side."
    assert list(marked_words(left, right)) == [("It is on the ", True), ("left", False), (" side.", True)]
    assert "".join(words for words, _ in marked_words(left, HOSTILE)) == left


def test_hostile_text_is_text_everywhere() -> None:
    made = report(
        source=HOSTILE,
        dataset=HOSTILE,
        tensors=tuple(dataclasses.replace(tensor, precision=HOSTILE) for tensor in tensors()),
        calibration=Calibration(dataset=HOSTILE, images=1, method=HOSTILE),
        comparison=comparison(
            flipped=(dataclasses.replace(flip(HOSTILE, HOSTILE), problem=HOSTILE, images=(HOSTILE,), choice_a=HOSTILE),)
        ),
    )
    others = [other(HOSTILE, 1.0, 0.1), other("$\\frac{1}{0}$ 医学", 2.0, 0.1)]
    others = [*others, *(dataclasses.replace(one, source=HOSTILE, dataset=HOSTILE) for one in others)]
    html = render_html(made, others)
    tags = [tag for tag, _ in Page(html).tags]
    assert "script" not in tags
    assert "img" not in tags
    assert "\x1b" not in html
    assert "{{ 7 * 7 }}" in Page(html).text
    # Once as a row for each of the two, once in the plot for the one that can be compared.
    assert Page(html).text.count("$\\frac{1}{0}$ 医学") == 3


def test_the_same_report_gives_the_same_page(html: str) -> None:
    others = [other("fp32", 8765.4, 0.0), other("int8 block 128, vision w8a8", 2345.6, 0.00012)]
    assert render_html(report(), others) == html


def test_a_bundle_that_lost_nothing_has_a_page_too() -> None:
    exact = tuple(dataclasses.replace(tensor, precision="fp32", relative_error=0.0) for tensor in tensors())
    nothing = comparison(
        kl=0.0, kl_p95=0.0, kl_max=0.0, top1_agreement=1.0, flips=0, lost=0, won=0, mcnemar_p=1.0, flipped=()
    )
    shown = Page(render_html(report(tensors=exact, comparison=nothing, calibration=None), [])).text
    assert "None: the bundle gave every question the letter" in shown
    assert "Without any error, and in no plot: decoder, head, vision encoder." in shown


def test_bundles_measured_on_other_questions_are_listed_and_not_drawn() -> None:
    html = render_html(report(), [other("same questions", 1.0, 0.1), other("fewer questions", 2.0, 0.2, questions=60)])
    assert re.search(r"<td>same questions</td>", html)
    assert re.search(r"<td>fewer questions \*</td>", html)
    assert "same questions</text>" in html
    assert "fewer questions</text>" not in html


# The plots


def test_each_kind_of_matrix_is_a_series_with_a_point_for_each_layer(page: Page) -> None:
    kinds = {
        "Decoder-and-head": ["qkv_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"],
        "Vision-encoder": ["q", "k", "v", "proj", "fc1", "fc2", "merger/mlp.0"],
    }
    drawn = [name for name in page.ids if "/" in name and not name.startswith("tried")]
    assert drawn == [f"{plot}/{kind}" for plot, names in kinds.items() for kind in names]
    for series in error_series(tensors()):
        count = {True: 1, False: LAYERS if "_proj" in series.kind else BLOCKS}[series.layers == (None,)]
        assert len(series.errors) == len(series.layers) == count


def test_pieces_of_one_matrix_are_one_point_at_their_mean() -> None:
    series = {one.kind: one for one in error_series(tensors())}
    assert series["fc2"].layers == (0, 1)
    assert series["fc2"].errors == pytest.approx((0.005, 0.005))
    assert series["fc1"].errors == pytest.approx((0.005, 0.005))


def test_errors_in_a_plot_are_those_of_the_layers() -> None:
    series = {one.kind: one for one in error_series(tensors())}
    assert series["o_proj"].layers == (0, 1, 2)
    assert series["o_proj"].errors == pytest.approx((0.101, 0.111, 0.121))


def test_every_bundle_tried_is_a_point_with_its_label(page: Page, html: str) -> None:
    assert [name for name in page.ids if name.startswith("tried/")] == ["tried/2", "tried/1", "tried/0"]
    for label in ("int4 block 128 gptq (this bundle)", "int8 block 128", "fp32 (KL is 0)"):
        assert f"{label}</text>" in html


def test_labels_are_whole_where_the_decoder_alone_does_not_tell_bundles_apart() -> None:
    tried = [other(label, 1.0, 0.1) for label in ("int4, vision w8a8", "int4, vision fp32", "int8, vision w8a8")]
    assert plot_labels(tried) == ["int4, vision w8a8 (this bundle)", "int4, vision fp32", "int8"]


def test_labels_of_a_crowd_do_not_overlap() -> None:
    """Twelve points nearly in one place. Letters are taken to be half as wide as high, a little less than they are."""
    crowd = [other(f"int4 block {i}", 100 + i / 10, 0.01 * (1 + i / 50)) for i in range(12)]
    svg = tried_svg([*crowd, other("fp32", 400.0, 0.0)])
    found = re.findall(r'font-size: 8px[^"]*text-anchor: (\w+)[^"]*" x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]+)<', svg)
    boxes = []
    for anchor, x, y, text in found:
        width = 8 * 0.5 * len(text)
        left = float(x) - {"start": 0, "middle": width / 2, "end": width}[anchor]
        boxes.append((left, left + width, float(y) - 6, float(y)))
    assert len(boxes) == 13
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert a[1] <= b[0] or b[1] <= a[0] or a[3] <= b[2] or b[3] <= a[2], (a, b)


# The words


def test_every_figure_says_what_it_means() -> None:
    for figure in figures(comparison()):
        assert figure.meaning.endswith(".")
        assert len(figure.meaning) > 20


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lost": 0, "won": 0, "mcnemar_p": 1.0}, "No right answer was lost or won"),
        ({"lost": 5, "won": 2, "mcnemar_p": 0.453}, "chance is enough to explain it"),
        ({"lost": 12, "won": 1, "mcnemar_p": 0.0034}, "gives fewer right answers"),
        ({"lost": 1, "won": 12, "mcnemar_p": 0.0034}, "gives more right answers"),
    ],
)
def test_what_mcnemars_p_means_follows_from_the_data(changes: dict[str, Any], words: str) -> None:
    meanings = {figure.name: figure.meaning for figure in figures(comparison(**changes))}
    assert words in meanings["Chance of that (McNemar's exact p)"]


def test_small_numbers_are_written_with_a_power_of_ten() -> None:
    assert [number(value) for value in (0, 1, 0.0123456, 0.0001, 4.95e-6, 1e-5)] == [
        *("0", "1", "0.0123", "0.0001", "4.95 \u00d7 10⁻⁶", "10⁻⁵")
    ]


# The files


def test_a_page_has_its_json_beside_it_and_nothing_else_is_left(tmp_path: Path, html: str) -> None:
    others = [other("int8 block 128, vision w8a8", 2345.6, 0.00012), other("fp32", 8765.4, 0.0)]
    assert write_report(tmp_path / "a.b.html", report(), others) == [tmp_path / "a.b.json", tmp_path / "a.b.html"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.b.html", "a.b.json"]
    assert (tmp_path / "a.b.html").read_text(encoding="utf-8") == html
    assert read_tried(tmp_path / "a.b.json") == report().tried()


def test_json_alone_needs_no_matplotlib_and_a_page_says_that_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert write_report(tmp_path / "a.json", report()) == [tmp_path / "a.json"]
    with pytest.raises(InputError, match=r"pip install 'medvlm\[plot\]'"):
        check_report_path(tmp_path / "a.html")
    with pytest.raises(InputError, match=r"pip install 'medvlm\[plot\]'"):
        report_plots.check_plotting()
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_report_is_written_over_an_older_one(tmp_path: Path) -> None:
    for seconds in (1.0, 2.0):
        write_report(tmp_path / "a.html", report(seconds=seconds))
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["seconds"] == 2.0


@pytest.mark.parametrize(
    "name", ["report", "report.pdf", "missing/report.html", "folder.json", "dataset.html", "dataset.json"]
)
def test_a_path_that_cannot_take_a_report_is_one_line_and_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "dataset.json").write_text('[{"image": "a.png"}]')
    with pytest.raises(InputError) as refused:
        check_report_path(tmp_path / name)
    assert one_line(refused.value).count("\n") == 0
    with pytest.raises(InputError):
        write_report(tmp_path / name, report())
    assert (tmp_path / "dataset.json").read_text() == '[{"image": "a.png"}]'
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset.json", "folder.json"]


def test_a_report_does_not_go_into_the_bundle(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with pytest.raises(InputError, match="would lie in the bundle"):
        check_report_path(tmp_path / "bundle" / "report.html", tmp_path / "bundle")
    check_report_path(tmp_path / "report.html", tmp_path / "bundle")


def test_a_full_disk_leaves_the_older_report_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(tmp_path / "a.json", report())
    before = (tmp_path / "a.json").read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(MedVLMError, match="No space left"):
        write_report(tmp_path / "a.json", report(seconds=5.0))
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_bytes() == before
