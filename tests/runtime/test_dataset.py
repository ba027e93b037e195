"""Datasets in the authors' form: what is read, and how what cannot be used is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from medvlm.demo.dataset import make_item
from medvlm.demo.saved import save_dataset
from medvlm.runtime import InputError
from medvlm.runtime.dataset import DatasetItem, read_dataset
from PIL import Image

PROBLEM = "Which is it?\nA) MRI\nB) CT"
ENTRY: dict[str, Any] = {"image": ["scan.png"], "problem": PROBLEM, "solution": "B"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one image, for a dataset beside it."""
    Image.new("L", (56, 56)).save(tmp_path / "scan.png")
    return tmp_path


def write(folder: Path, data: Any) -> Path:
    path = folder / "dataset.json"
    path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    return path


def refusal(path: Path, images: Path | None = None) -> str:
    with pytest.raises(InputError) as error:
        read_dataset(path, images)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert message.isprintable()
    assert ";" in message, "it says what to do"
    return message


def test_what_the_demo_saves_is_read(tmp_path: Path) -> None:
    made = [make_item("test", index) for index in range(4)]
    paths = save_dataset(tmp_path, made)
    read = read_dataset(tmp_path / "dataset.json")
    assert [item.index for item in read] == [0, 1, 2, 3]
    assert [item.images for item in read] == [(path,) for path in paths]
    for item, original in zip(read, made, strict=True):
        question = original.question
        assert (item.problem, item.solution, item.options) == (question.problem, question.solution, question.options)
    assert {item.subset for item in read} <= {"MR (Mag-netic Resonance Imaging)", "CT(Computed Tomography)", "X-Ray"}


def test_the_authors_file_is_read(shared: Path) -> None:
    items = read_dataset(shared / "medvlm-r1" / "questions-with-images.json")
    assert [item.solution for item in items] == ["B", "A", "A", "A", "A", "B"]
    assert items[0].images == (shared / "medvlm-r1" / "images" / "mdb146.png",)


def test_only_image_problem_and_solution_are_needed(folder: Path) -> None:
    assert read_dataset(write(folder, [ENTRY])) == [DatasetItem(0, (folder / "scan.png",), PROBLEM, "B", (), None)]


def test_image_may_be_one_path_and_several_keep_their_order(folder: Path) -> None:
    Image.new("L", (56, 56)).save(folder / "after.png")
    entries = [{**ENTRY, "image": "scan.png"}, {**ENTRY, "image": ["scan.png", "after.png"]}]
    one, two = read_dataset(write(folder, entries))
    assert one.images == (folder / "scan.png",)
    assert two.images == (folder / "scan.png", folder / "after.png")


def test_images_may_lie_elsewhere(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = write(tmp_path_factory.mktemp("other"), [ENTRY])
    assert read_dataset(path, folder)[0].images == (folder / "scan.png",)
    assert "dataset.json[0]: there is no image" in refusal(path)


def test_byte_order_mark_and_spaces_around_a_letter_are_no_fault(folder: Path) -> None:
    path = write(folder, b"\xef\xbb\xbf" + json.dumps([{**ENTRY, "solution": " B\n"}]).encode())
    assert read_dataset(path)[0].solution == "B"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is not JSON"),
        (b"[{]", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"\xff\xfe[\0]\0", "is not UTF-8"),
        ({"questions": []}, "is not a JSON list"),
        ("text", "is not a JSON list"),
        ([], "has no questions"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_what_is_no_list_of_questions_is_refused(folder: Path, data: Any, says: str) -> None:
    assert says in refusal(write(folder, data))


@pytest.mark.parametrize("name", ["absent.json", ".", "x" * 300])
def test_file_that_cannot_be_read_is_refused(folder: Path, name: str) -> None:
    assert "cannot read" in refusal(folder / name)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"image": ...}, "has no image"),
        ({"problem": ...}, "has no problem"),
        ({"solution": ..., "problem": ...}, "has no problem and no solution"),
        ({"image": []}, "has no image"),
        ({"image": ""}, "has no image"),
        ({"image": [""]}, "has no image"),
        ({"image": ["scan.png", "absent.png"]}, "absent.png"),
        ({"image": ["a\nb\x1b.png"]}, r"a\nb\x1b.png"),
        ({"image": ["x" * 300]}, "there is no image"),
        ({"image": ["\ud800"]}, "there is no image"),
        ({"image": ["a\0b"]}, "there is no image"),
        ({"image": [7]}, "image is int"),
        ({"image": {"path": "scan.png"}}, "image is dict"),
        ({"problem": ""}, "has no problem"),
        ({"problem": [PROBLEM]}, "problem is list"),
        ({"problem": "What is seen?"}, "offers none"),
        ({"solution": "C"}, "the solution is 'C' and its problem offers A, B"),
        ({"solution": "b"}, "the solution is 'b'"),
        ({"solution": "CT"}, "the solution is 'CT'"),
        ({"solution": 1}, "solution is int"),
        ({"options": ["MRI", 7]}, "options is int"),
        ({"subset": 7}, "subset is int"),
    ],
    ids=str,
)
def test_entry_that_cannot_be_asked_is_named(folder: Path, change: dict[str, Any], says: str) -> None:
    entry = {name: value for name, value in {**ENTRY, **change}.items() if value is not ...}
    message = refusal(write(folder, [ENTRY, entry, ENTRY]))
    assert message.startswith("dataset.json[1]")
    assert says in message


@pytest.mark.parametrize("entry", [None, 7, "text", [ENTRY]])
def test_entry_that_is_no_object_is_named(folder: Path, entry: Any) -> None:
    assert refusal(write(folder, [ENTRY, entry])).startswith("dataset.json[1] is not an object")


# JSON lines and tables


def saved(folder: Path, name: str, text: str, encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_text(text, encoding=encoding, newline="")
    return path


def test_json_lines_are_read_blank_ones_left_out(folder: Path) -> None:
    # JSON may hold what Python takes for the end of a line.
    odd = json.dumps({**ENTRY, "subset": "a\u2028b"}, ensure_ascii=False)
    for name in ("own.jsonl", "own.NDJSON"):
        items = read_dataset(saved(folder, name, f"{json.dumps(ENTRY)}\r\n\n{odd}"))
        assert [(item.index, item.solution, item.subset) for item in items] == [(0, "B", None), (1, "B", "a\u2028b")]


def test_table_is_read_as_the_json_list_is(folder: Path) -> None:
    Image.new("L", (56, 56)).save(folder / "after.png")
    table = (
        "solution,image,problem,options,subset,unused\r\n"
        'B,scan.png,"Which is it?\nA) MRI\nB) CT",,,x\r\n'
        'B, scan.png | after.png ,"Which, ""now""? A) MRI B) CT",MRI|CT,MR,\r\n'
    )
    one, two = read_dataset(saved(folder, "own.csv", table, "utf-8-sig"))
    assert one == DatasetItem(0, (folder / "scan.png",), PROBLEM, "B", (), None)
    pictures = (folder / "scan.png", folder / "after.png")
    assert two == DatasetItem(1, pictures, 'Which, "now"? A) MRI B) CT', "B", ("MRI", "CT"), "MR")


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_table_may_be_divided_as_other_countries_do(folder: Path, delimiter: str) -> None:
    rows = [["image", "problem", "solution"], ["scan.png", "Which, then? A) MRI B) CT", "A"]]
    (item,) = read_dataset(saved(folder, "own.csv", "\n".join(delimiter.join(row) for row in rows)))
    assert (item.solution, item.problem) == ("A", "Which, then? A) MRI B) CT")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("own.jsonl", "", "has no questions"),
        ("own.jsonl", "[]\n", "own.jsonl[0] is not an object"),
        ("own.jsonl", json.dumps(ENTRY) + "\n\n{\n", "line 3 of "),
        ("own.jsonl", "[" * 100_000, "line 1 of "),
        ("own.csv", "", "has no column image and no problem and no solution"),
        ("own.csv", "image,question,solution\n", "has no column problem"),
        ("own.csv", "image,problem,solution\n", "has no questions"),
        ("own.csv", "image,problem,solution\nscan.png,,B\n", "own.csv[0] has no problem"),
        ("own.csv", "image,problem,solution\nscan.png\n", "own.csv[0] has no problem and no solution"),
        ("own.csv", 'image,problem,solution\nscan.png,"A) x B) y,B\n', "is not CSV"),
        ("own.csv", "image,problem,solution\nscan.png," + "x" * 200_000 + ",B\n", "is not CSV"),
        ("own.csv", "image,problem,solution\n|,A) x B) y,B\n", "has no image"),
        ("own.csv", "image,problem,solution\nscan.png,A) x B) y,C,left over\n", "the solution is 'C'"),
    ],
    ids=lambda text: text[:24],
)
def test_lines_and_tables_that_cannot_be_used_are_refused(folder: Path, name: str, text: str, says: str) -> None:
    assert says in refusal(saved(folder, name, text))


def test_missing_image_is_no_fault_where_images_are_not_looked_for(folder: Path) -> None:
    path = write(folder, [{**ENTRY, "image": ["absent.png"]}])
    assert read_dataset(path, find_images=False)[0].images == (folder / "absent.png",)
