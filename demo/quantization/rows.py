"""Figures of bundles in a file of JSON lines, one a bundle, and as tables."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...runtime.comparison import Comparison
from ...runtime.errors import InputError
from ...runtime.manifest import Manifest
from .cases import BASELINE, Case, Setting

_DECODER = "decoder and head"


@dataclass(frozen=True)
class Row:
    """What a bundle lost against the float32 one of its checkpoint, as `Comparison` has it, and its size in bytes.

    model: "plain" or "stress". calibrating: questions that activations are collected on where the way wants them.
    """

    model: str
    setting: Setting
    way: str
    block_size: int
    questions: int
    calibrating: int
    tokens: int
    kl: float
    top1_agreement: float
    reference_accuracy: float
    accuracy: float
    flips: int
    lost: int
    won: int
    mcnemar_p: float
    bundle_bytes: int
    decoder_bytes: int

    @property
    def case(self) -> Case:
        """Which bundle it is of."""
        return Case(self.way, self.block_size, self.setting)


def make_row(model: str, case: Case, calibrating: int, found: Comparison, manifest: Manifest) -> Row:
    """The figures of one bundle."""
    return Row(
        model=model,
        setting=case.setting,
        way=case.way,
        block_size=case.block_size,
        questions=found.questions,
        calibrating=calibrating,
        tokens=found.tokens,
        kl=found.kl,
        top1_agreement=found.top1_agreement,
        reference_accuracy=found.accuracy_a,
        accuracy=found.accuracy_b,
        flips=found.flips,
        lost=found.lost,
        won=found.won,
        mcnemar_p=found.mcnemar_p,
        bundle_bytes=sum(file.size for file in manifest.files.values()),
        decoder_bytes=sum(part.bytes for part in manifest.parts if part.name == _DECODER),
    )


def read_rows(path: Path) -> list[Row]:
    """The rows in a file; none where there is no file. Raises `InputError` for a line that is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); choose another --out") from None
    return [_row(line, f"line {number} of {path}") for number, line in enumerate(lines, 1)]


def _row(line: str, where: str) -> Row:
    try:
        return Row(**json.loads(line))
    except (TypeError, ValueError):
        raise InputError(f"{where} is no row of this version; remove it, or the file") from None


def append_row(path: Path, row: Row) -> None:
    """Add a row to a file in one write, so that two processes may share it. Raises `InputError` where it cannot."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(row)) + "\n")
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror}); choose another --out") from None


def tables(rows: Sequence[Row]) -> str:
    """A Markdown table for each model and setting."""
    groups = dict.fromkeys((row.model, row.setting) for row in rows)
    return "\n\n".join(
        _table(model, setting, [row for row in rows if (row.model, row.setting) == (model, setting)])
        for model, setting in groups
    )


def _table(model: str, setting: str, rows: Sequence[Row]) -> str:
    """The rows of one model and setting, in their order; "of rtn's": KL over that of `rtn` at the same block size."""
    first = rows[0]
    title = (
        f"**{model}, {setting}** ({first.questions} questions, {first.tokens} tokens; "
        f"fp32 accuracy {100 * first.reference_accuracy:.1f} %)"
    )
    head = ("method", "block", "KL", "of rtn's", "top-1", "accuracy", "flips", "lost, won", "McNemar's p", "bundle MB")
    baseline = {row.block_size: row.kl for row in rows if row.way == BASELINE}
    lines = [title, "", _line([*head, "decoder + head MB"]), _line(["---"] * (len(head) + 1))]
    lines += [_line(_cells(row, baseline.get(row.block_size))) for row in rows]
    return "\n".join(lines)


def _cells(row: Row, baseline: float | None) -> list[str]:
    return [
        row.way,
        str(row.block_size),
        f"{row.kl:.2e}",
        f"{row.kl / baseline:.2f}" if baseline else "-",
        f"{100 * row.top1_agreement:.2f} %",
        f"{100 * row.accuracy:.1f} %",
        str(row.flips),
        f"{row.lost}, {row.won}",
        f"{row.mcnemar_p:.2g}",
        f"{row.bundle_bytes / 1e6:.2f}",
        f"{row.decoder_bytes / 1e6:.2f}",
    ]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
