"""All wheels that medvlm needs on another machine, and the lock that names each with its sha256."""

import email.parser
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from email.message import Message
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime.bundle import sha256
from ..runtime.errors import InputError, MedVLMError
from .own_wheel import write_own_wheel
from .target import Target

if TYPE_CHECKING:
    from packaging.requirements import Requirement

# A requirement that only the other machine has may bring others of its kind.
_ROUNDS = 5


@dataclass(frozen=True)
class Wheel:
    """A wheel in the wheelhouse."""

    path: Path

    @cached_property
    def metadata(self) -> Message:
        """Its core metadata. Raises `MedVLMError` where it is no wheel."""
        try:
            with zipfile.ZipFile(self.path) as wheel:
                name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
                return email.parser.Parser().parsestr(wheel.read(name).decode("utf-8"))
        except (zipfile.BadZipFile, StopIteration, UnicodeDecodeError) as error:
            raise MedVLMError(f"{self.path.name} is not a wheel; try again") from error

    @cached_property
    def sha256(self) -> str:
        """Its digest."""
        return sha256(self.path)

    @property
    def name(self) -> str:
        """The distribution's name, normalized."""
        from packaging.utils import canonicalize_name

        return canonicalize_name(self.metadata["Name"])

    @property
    def version(self) -> str:
        """The distribution's version."""
        return self.metadata["Version"]

    def requirements(self, target: Target, extras: Sequence[str]) -> "Iterator[Requirement]":
        """What it needs on the target with these extras."""
        from packaging.requirements import Requirement

        for text in self.metadata.get_all("Requires-Dist") or ():
            requirement = Requirement(text)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({**target.markers, "extra": e}) for e in ("", *extras)):
                yield requirement


@dataclass(frozen=True)
class Wheelhouse:
    """wheels: what the target needs, by name. extras: of medvlm. needs: the names that each needs there."""

    wheels: dict[str, Wheel]
    extras: tuple[str, ...]
    needs: dict[str, list[str]]

    def lock(self) -> str:
        """The requirements file: every wheel with its version and sha256."""
        lines = []
        for name, wheel in sorted(self.wheels.items()):
            extras = f"[{','.join(self.extras)}]" if name == "medvlm" and self.extras else ""
            lines.append(f"{name}{extras}=={wheel.version} \\\n    --hash=sha256:{wheel.sha256}\n")
        return "".join(lines)


def check_tools() -> None:
    """Raise `InputError` where pip or packaging is not installed."""
    for name, advice in (("pip", "python -m ensurepip"), ("packaging", "pip install 'medvlm[export]'")):
        if find_spec(name) is None:
            raise InputError(f"--kit needs {name}, which is not installed; {advice}")


def fill_wheelhouse(folder: Path, extras: Sequence[str], target: Target) -> Wheelhouse:
    """Download into `folder`, which exists and is empty, what medvlm with `extras` needs on the target.

    pip chooses the versions and checks the digests of its index. It reads markers as on this machine, so what only the
    target needs is asked for by itself, and what only this machine needs is left out. Raises `MedVLMError`.
    """
    own = write_own_wheel(folder)
    # As a URL, in which a folder's name may hold what ends a path in a requirement.
    wanted = f"medvlm[{','.join(extras)}] @ {own.resolve().as_uri()}"
    missing: list[str] = []
    for _ in range(_ROUNDS):
        _download(folder, [wanted, *missing], target)
        wheels = {wheel.name: wheel for path in folder.iterdir() for wheel in [Wheel(path)]}
        needs, absent = _closure(wheels, extras, target)
        if not absent:
            for name in wheels.keys() - needs.keys():
                wheels.pop(name).path.unlink()
            return Wheelhouse(wheels, tuple(extras), needs)
        missing += sorted(absent)
    raise MedVLMError(f"no wheels of {missing[-1]} were found for {target.tag} and Python {target.python}")


def _closure(wheels: dict[str, Wheel], extras: Sequence[str], target: Target) -> tuple[dict[str, list[str]], set[str]]:
    """What each wheel needs that medvlm leads to, and the requirements among them that have no wheel."""
    from packaging.utils import canonicalize_name

    needs: dict[str, list[str]] = {}
    absent: set[str] = set()
    waiting, seen = [("medvlm", frozenset(extras))], set()
    while waiting:
        name, asked = waiting.pop()
        if (name, asked) in seen:
            continue
        seen.add((name, asked))
        listed = needs.setdefault(name, [])
        for requirement in wheels[name].requirements(target, sorted(asked)):
            needed = canonicalize_name(requirement.name)
            listed += [needed] if needed not in listed else []
            if needed in wheels:
                waiting.append((needed, frozenset(requirement.extras)))
            else:
                absent.add(str(requirement).partition(";")[0].strip())
    return needs, absent


def _download(folder: Path, wanted: Sequence[str], target: Target) -> None:
    options = [option for tag in target.tags for option in ("--platform", tag)]
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"),
        *("--only-binary", ":all:", "--implementation", "cp", "--python-version", target.python, *options),
        *("--find-links", str(folder), "--dest", str(folder), *wanted),
    ]
    # A pip that is stopped leaves what it had unpacked.
    with tempfile.TemporaryDirectory(prefix="medvlm-pip-") as temporary:
        result = subprocess.run(  # noqa: S603
            command,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), temporary)},
        )
    if result.returncode:
        errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
        reason = (errors or result.stderr.splitlines() or ["it said nothing"])[-1].removeprefix("ERROR: ")
        raise MedVLMError(f"pip could not download the wheels for {target.tag}, Python {target.python}: {reason}")
