"""A bundle on disk: the names of its files, and the checks that loading always makes."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .errors import BundleError
from .graph_faults import graph_fault
from .graph_signature import (
    Signature,
    cuda_decoder_signature,
    decoder_signature,
    embedding_bytes,
    prefill_signature,
    vision_signature,
)
from .manifest import MANIFEST, FileEntry, Manifest

VISION = "vision_encoder.onnx"
DECODER = "decoder.onnx"
PREFILL = "prefill.onnx"
CUDA_VISION = "vision_encoder.cuda.onnx"
CUDA_DECODER = "decoder.cuda.onnx"
EMBEDDINGS = "embeddings.bin"
TOKENIZER = "tokenizer.json"
SIGNATURE = "model.sig"
"""OpenSSF model-signing's own name; no manifest lists it, because it signs the manifest too."""
REQUIRED = (VISION, f"{VISION}.data", DECODER, f"{DECODER}.data", EMBEDDINGS, TOKENIZER)
"""What a bundle for CPUs holds at least."""

_CUDA_REQUIRED = (CUDA_VISION, f"{CUDA_VISION}.data", CUDA_DECODER, f"{CUDA_DECODER}.data", EMBEDDINGS, TOKENIZER)
_NEEDED = {"cpu": REQUIRED, "cuda": _CUDA_REQUIRED}
# A graph for CUDA may take what both have from the data file of its like for CPUs.
_LIKE = {CUDA_VISION: VISION, CUDA_DECODER: DECODER}

_HASH_BYTES = 1 << 22
# The full-size model's has some ten kilobytes. JSON takes up to fifty times its size in memory.
_MAX_MANIFEST_BYTES = 1 << 20
# The full-size model's has eleven megabytes, and takes many times its size in memory.
_MAX_TOKENIZER_BYTES = 1 << 26


@dataclass(frozen=True)
class Bundle:
    """A bundle whose names and sizes agree with its manifest."""

    directory: Path
    manifest: Manifest

    def path(self, name: str) -> Path:
        """The file `name` of the bundle."""
        return self.directory / name


def read_manifest(directory: Path) -> Manifest:
    """The manifest of the bundle in `directory`. Raises `BundleError`."""
    path = directory / MANIFEST
    try:
        if not directory.is_dir():
            raise BundleError(f"{directory} is not a directory; give a bundle that medvlm-export wrote")
        if not path.is_file() or path.is_symlink():
            raise BundleError(f"{directory} has no {MANIFEST}; give a bundle that medvlm-export wrote")
        with path.open("rb") as file:
            content = file.read(_MAX_MANIFEST_BYTES + 1)
        if len(content) > _MAX_MANIFEST_BYTES:
            raise BundleError(f"{path} is too large for a manifest; export the bundle again")
        manifest = Manifest.from_json(content.decode("utf-8"))
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BundleError(f"{path} is not text; export the bundle again") from None
    needed = [name for device in manifest.devices for name in _NEEDED[device]]
    absent = [name for name in needed if name not in manifest.files]
    if absent:
        raise BundleError(f"{path} does not list {absent[0]}; export the bundle again")
    return manifest


def open_bundle(directory: Path, *, hash_files: bool = False) -> Bundle:
    """Check a bundle's names and sizes, with `hash_files` its contents too. Raises `BundleError` for a fault."""
    manifest = read_manifest(directory)
    for fault in find_faults(directory, manifest, hash_files=hash_files):
        raise BundleError(f"{directory}: {fault}; export the bundle or copy it again")
    return Bundle(directory, manifest)


def find_faults(
    directory: Path,
    manifest: Manifest,
    *,
    hash_files: bool,
    progress: Callable[[str, int], None] = lambda name, size: None,
) -> list[str]:
    """Every way in which the files differ from the manifest, one line each; empty where they agree.

    progress is called with a file's name and the bytes read of it, as they are read.
    """
    faults = []
    for name, entry in manifest.files.items():
        path, read = directory / name, partial(progress, name)
        try:
            fault = _outside(directory, name) or _file_fault(path, name, entry)
            if not fault and hash_files and sha256(path, read) != entry.sha256:
                fault = f"{name} has changed (its sha256 differs)"
            fault = fault or _dimensions_fault(path, name, manifest)
        except OSError as error:
            fault = f"{name} cannot be read ({error.strerror})"
        faults += [fault] if fault else []
    return faults + [f"{name} is not in the manifest" for name in _extra(directory, manifest)]


def _extra(directory: Path, manifest: Manifest) -> list[str]:
    known = {*manifest.files, MANIFEST, SIGNATURE}
    try:
        return sorted(path.name for path in directory.iterdir() if path.name not in known)
    except OSError as error:
        raise BundleError(f"{directory} cannot be listed ({error.strerror}); check its permissions") from None


def _outside(directory: Path, name: str) -> str:
    """A fault where `name` is no plain file name, or a link: what it leads to can change after it was checked."""
    if name in ("", ".", "..") or Path(name).name != name or "\\" in name:
        return f"{name!r} names a file outside the folder"
    return f"{name} is a link and not a file" if (directory / name).is_symlink() else ""


def _file_fault(path: Path, name: str, entry: FileEntry) -> str:
    if not os.path.lexists(path):
        return f"{name} is missing"
    if not path.is_file():
        return f"{name} is not a file"
    size = path.stat().st_size
    return "" if size == entry.size else f"{name} has {size} bytes and should have {entry.size}"


def _dimensions_fault(path: Path, name: str, manifest: Manifest) -> str:
    """A fault of what onnxruntime and numpy will read: weights elsewhere, or other dimensions than the manifest's."""
    if name == EMBEDDINGS:
        size, wanted = manifest.files[name].size, embedding_bytes(manifest)
        return "" if size == wanted else f"{name} has {size} bytes and the manifest's dimensions want {wanted}"
    if name == TOKENIZER and manifest.files[name].size > _MAX_TOKENIZER_BYTES:
        return f"{name} is too large for a tokenizer"
    if name not in (VISION, DECODER, PREFILL, *_LIKE):
        return ""
    readable = [f"{graph}.data" for graph in (name, _LIKE.get(name)) if graph]
    sizes = {data: manifest.files[data].size if data in manifest.files else 0 for data in readable}
    return graph_fault(path, sizes, _signature(name, manifest))


def _signature(name: str, manifest: Manifest) -> Signature:
    if name in (VISION, CUDA_VISION):
        return vision_signature(manifest.vision)
    if name == CUDA_DECODER:
        return cuda_decoder_signature(manifest.text)
    return decoder_signature(manifest.text) if name == DECODER else prefill_signature(manifest.text)


def sha256(path: Path, progress: Callable[[int], None] = lambda size: None) -> str:
    """The sha256 of a file in hexadecimal; `progress` is called with the bytes of each piece read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_HASH_BYTES):
            digest.update(piece)
            progress(len(piece))
    return digest.hexdigest()
