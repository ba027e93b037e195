"""What a calibration has done so far, on disk: it can be interrupted and goes on from there."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..quant.blockwise import Blockwise
from .passing import Streams
from .samples import Sample

_EIGHT_BITS, _STREAMS, _SAMPLES = "eight_bits.json", "streams", "samples"
_RESULTS = ".blocks.npz"
_WAYS = ("exact", "quantized")


@dataclass(frozen=True)
class Calibrated:
    """Scales [channels] by the name of their site, and blocks by the scope of their product."""

    scales: Mapping[str, NDArray[np.float32]]
    blocks: Mapping[str, Blockwise]


class Workdir:
    """A folder for one calibration. Every file is whole: it is written beside its place and then moved."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(exist_ok=True)

    def eight_bits(self) -> tuple[str, ...] | None:
        """The scopes that were chosen for 8 bits, where they were saved."""
        path = self.path / _EIGHT_BITS
        return tuple(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None

    def save_eight_bits(self, scopes: Sequence[str]) -> None:
        """Keep the scopes that were chosen for 8 bits."""
        partial = self.path / f"{_EIGHT_BITS}.partial"
        partial.write_text(json.dumps(scopes), encoding="utf-8")
        partial.replace(self.path / _EIGHT_BITS)

    def samples(self) -> list[Sample] | None:
        """The samples, where they were saved."""
        stored = self._load(_SAMPLES)
        if stored is None:
            return None
        starts = stored["starts"]
        return [
            Sample(*(stored[f"{kind}.{i}"] for kind in ("embeddings", "cos", "sin")), start=int(start))
            for i, start in enumerate(starts)
        ]

    def save_samples(self, samples: Sequence[Sample]) -> None:
        """Keep the samples."""
        arrays: dict[str, NDArray[Any]] = {"starts": np.array([sample.start for sample in samples])}
        for i, sample in enumerate(samples):
            arrays |= {f"{kind}.{i}": getattr(sample, kind) for kind in ("embeddings", "cos", "sin")}
        self._save(_SAMPLES, arrays)

    def streams(self) -> tuple[int, Streams] | None:
        """How many layers are done, and the streams behind them, where they were saved."""
        stored = self._load(_STREAMS)
        if stored is None:
            return None
        samples = range(int(stored["samples"]))
        exact, quantized = ([stored[f"{way}.{i}"] for i in samples] for way in _WAYS)
        return int(stored["done"]), Streams(exact, quantized)

    def save_streams(self, done: int, streams: Streams) -> None:
        """Keep the streams behind `done` layers, whose results were saved before."""
        arrays = {"done": np.array(done), "samples": np.array(len(streams.exact))}
        for way in _WAYS:
            arrays |= {f"{way}.{i}": stream for i, stream in enumerate(getattr(streams, way))}
        self._save(_STREAMS, arrays)

    def holds(self, name: str) -> bool:
        """Whether the results called `name`, a layer's scope or the head's, were saved."""
        return (self.path / f"{name}{_RESULTS}").is_file()

    def save(self, name: str, calibrated: Calibrated) -> None:
        """Keep results as `name`."""
        arrays: dict[str, NDArray[Any]] = {f"scales|{site}": scales for site, scales in calibrated.scales.items()}
        for scope, blocks in calibrated.blocks.items():
            arrays[f"packed|{scope}"], arrays[f"step|{scope}"] = blocks.packed, blocks.scales
            arrays[f"form|{scope}"] = np.array([blocks.bits, blocks.block_size, blocks.in_features])
            if blocks.zero_points is not None:
                arrays[f"zero|{scope}"] = blocks.zero_points
        self._save(name, arrays, _RESULTS)

    def scales(self) -> dict[str, NDArray[np.float32]]:
        """The scales of all results, by site."""
        found = {}
        for path in sorted(self.path.glob(f"*{_RESULTS}")):
            with np.load(path) as stored:
                found |= {key.partition("|")[2]: stored[key] for key in stored.files if key.startswith("scales|")}
        return found

    def blocks(self, scope: str) -> Blockwise | None:
        """The blocks of a product, where a result has them."""
        name = scope.partition("/")[0]
        if not self.holds(name):
            return None
        with np.load(self.path / f"{name}{_RESULTS}") as stored:
            if f"packed|{scope}" not in stored.files:
                return None
            zeros = stored[f"zero|{scope}"] if f"zero|{scope}" in stored.files else None
            bits, block_size, in_features = map(int, stored[f"form|{scope}"])
            return Blockwise(stored[f"packed|{scope}"], stored[f"step|{scope}"], zeros, bits, block_size, in_features)

    def remove(self) -> None:
        """Remove the folder: its results are in a bundle."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _save(self, name: str, arrays: Mapping[str, NDArray[Any]], suffix: str = ".npz") -> None:
        partial = self.path / f"{name}.partial"
        with partial.open("wb") as file:
            # numpy's own annotation wants the option beside the arrays typed as one of them.
            np.savez(file, **arrays)  # type: ignore[arg-type]
        partial.replace(self.path / f"{name}{suffix}")

    def _load(self, name: str) -> dict[str, NDArray[Any]] | None:
        path = self.path / f"{name}.npz"
        if not path.is_file():
            return None
        with np.load(path) as stored:
            return dict(stored)
