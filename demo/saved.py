"""Questions and their scans as files: PNG images, and one JSON in OmniMedVQA's form beside them."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .dataset import Item, make_item
from .scans.catalog import KINDS

DATASET, IMAGES = "dataset.json", "images"
# The names of MedVLM-R1's three subsets, as its authors' files spell them.
_SUBSETS = {"MRI": "MR (Mag-netic Resonance Imaging)", "CT": "CT(Computed Tomography)", "X-ray": "X-Ray"}


def save_dataset(directory: Path, items: Iterable[Item]) -> list[Path]:
    """Write `dataset.json`, and the images that it names, relative to itself, into `images`; returns the images."""
    (directory / IMAGES).mkdir()
    entries, images = [], []
    for index, item in enumerate(items):
        name = f"{item.facts.kind.replace(' ', '-').lower()}-{index:03}.png"
        images.append(directory / IMAGES / name)
        item.image.save(images[-1])
        entries.append(_entry(item, f"{IMAGES}/{name}"))
    (directory / DATASET).write_text(json.dumps(entries, indent=1), encoding="utf-8")
    return images


def _entry(item: Item, image: str) -> dict[str, Any]:
    question = item.question
    return {
        "image": [image],
        "problem": question.problem,
        "solution": question.solution,
        "question": question.text,
        "options": list(question.options),
        "answer": question.options[question.answer],
        "dataset": "medvlm demo (drawings)",
        "subset": _SUBSETS[KINDS[item.facts.kind].modality],
        "question_type": question.type,
    }


def write_questions(directory: Path, count: int) -> Path:
    """Questions that the model was not trained on, as `save_dataset` writes them, in `directory`; the JSON's path."""
    save_dataset(directory, (make_item("validate", index) for index in range(count)))
    return directory / DATASET
