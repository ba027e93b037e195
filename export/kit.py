"""A folder with everything to carry to a machine without internet: the bundle, wheels, how to install, checksums.

bundle/            as medvlm-export wrote it
wheelhouse/        every wheel that medvlm needs there, medvlm's own among them
requirements.txt   each wheel's version and sha256
INSTALL.md         the commands for the other side
sbom.cdx.json      what it consists of (CycloneDX)
SHA256SUMS         the sha256 of every file above
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from ..runtime.bundle import SIGNATURE, read_manifest, sha256
from ..runtime.errors import InputError
from ..runtime.manifest import MANIFEST
from .install_text import install_text
from .output import atomic_directory, check_space
from .sbom import make_sbom
from .target import Target
from .wheelhouse import Wheelhouse, check_tools, fill_wheelhouse

SUMS = "SHA256SUMS"
# onnxruntime and numpy are a hundred megabytes.
_WHEELS_BYTES = 300_000_000


@dataclass(frozen=True)
class KitPlan:
    """Where a kit goes, for which machine, and with which of medvlm's extras."""

    directory: Path
    target: Target
    extras: tuple[str, ...]


def check_kit(plan: KitPlan, out: Path, bundle_bytes: int) -> None:
    """Raise `InputError` where the kit cannot be written, before any work."""
    directory = plan.directory
    if os.path.lexists(directory):
        raise InputError(f"{directory} exists; give --kit a new folder")
    if not os.access(directory.parent, os.W_OK | os.X_OK):
        raise InputError(f"{directory.parent} is not a folder that can be written to; create it first")
    kit, bundle = directory.resolve(), out.resolve()
    if kit == bundle or kit in bundle.parents or bundle in kit.parents:
        raise InputError(f"OUT {out} and the kit {directory} lie in each other; give --kit another folder")
    known = metadata.metadata("medvlm").get_all("Provides-Extra") or []
    for extra in sorted({*plan.extras} - {*known}):
        raise InputError(f"--kit-extra {extra} is not known; medvlm has {', '.join(known)}")
    check_space(directory, bundle_bytes + _WHEELS_BYTES)
    check_tools()


class Kit:
    """A kit whose wheels are there."""

    def __init__(self, folder: Path, plan: KitPlan, wheelhouse: Wheelhouse) -> None:
        self._folder, self._plan, self._wheelhouse = folder, plan, wheelhouse
        # The sha256 of the list of checksums, once it is written.
        self.digest = ""

    def add_bundle(self, bundle: Path) -> None:
        """Copy the bundle, and write all that speaks of it."""
        folder = self._folder
        shutil.copytree(bundle, folder / "bundle", copy_function=shutil.copyfile)
        manifest = read_manifest(folder / "bundle")
        unlisted = [name for name in (MANIFEST, SIGNATURE) if (folder / "bundle" / name).exists()]
        digests = {name: sha256(folder / "bundle" / name) for name in unlisted}
        sbom = make_sbom(self._wheelhouse, manifest, digests)
        _write(folder / "requirements.txt", self._wheelhouse.lock())
        plan = self._plan
        text = install_text(plan.target, signed=SIGNATURE in digests, serves="serve" in plan.extras)
        _write(folder / "INSTALL.md", text)
        _write(folder / "sbom.cdx.json", json.dumps(sbom, indent=1, ensure_ascii=False) + "\n")
        _write(folder / SUMS, _sums(folder))
        self.digest = sha256(folder / SUMS)


@contextlib.contextmanager
def new_kit(plan: KitPlan) -> Iterator[Kit]:
    """A kit that is whole when the block ends well, after `add_bundle`, and gone when it does not.

    The wheels come first: an index that cannot be reached shows before the work of an export. Raises `MedVLMError`.
    """
    with atomic_directory(plan.directory) as folder:
        (folder / "wheelhouse").mkdir()
        yield Kit(folder, plan, fill_wheelhouse(folder / "wheelhouse", plan.extras, plan.target))


def _write(path: Path, text: str) -> None:
    # Line ends as they are, on Windows too: sha256sum reads this list.
    path.write_bytes(text.encode("utf-8"))


def _sums(folder: Path) -> str:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return "".join(f"{sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in paths)
