"""The options of `medvlm-export` for carrying a bundle away: its signature, and the kit around it."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ..runtime.cli_options import with_options
from ..runtime.errors import InputError
from ..runtime.signing import check_signing_key, sign_bundle
from .kit import Kit, KitPlan, check_kit, new_kit
from .target import Target, this_machine, this_python

Command = Callable[..., None]


@dataclass(frozen=True)
class Carrying:
    """sign: the private key to sign with. kit: the folder to write, for which platform and Python, with what extras.

    devices: what the bundle is for, which decides on the onnxruntime in the kit where no extra is given.
    """

    sign: Path | None
    kit: Path | None
    platform: str | None
    python: str | None
    extras: tuple[str, ...]
    devices: tuple[str, ...] = ("cpu",)

    def for_devices(self, devices: tuple[str, ...]) -> "Carrying":
        """The same, of a bundle for these devices."""
        return dataclasses.replace(self, devices=devices)

    def check(self, out: Path, bundle_bytes: int) -> None:
        """Raise `InputError` for what would fail after the export."""
        if self.sign:
            check_signing_key(self.sign)
        if self.kit:
            check_kit(self._plan(self.kit), out, bundle_bytes)
        elif self.platform or self.python or self.extras:
            raise InputError("--kit-platform, --kit-python and --kit-extra describe a kit; give --kit too")

    @contextlib.contextmanager
    def carry(self, out: Path) -> Iterator[list[Kit]]:
        """Around the export: collects a kit's wheels before it, and signs and packs the bundle after it.

        Yields a list that then holds the kit, where one was asked for.
        """
        kits: list[Kit] = []
        with contextlib.ExitStack() as stack:
            if self.kit:
                kits = [stack.enter_context(new_kit(self._plan(self.kit)))]
            yield kits
            if self.sign:
                sign_bundle(out, self.sign)
            for kit in kits:
                kit.add_bundle(out)

    def _plan(self, directory: Path) -> KitPlan:
        # onnxruntime-gpu computes on CPUs too, and the two must not both be there.
        default = ("gpu",) if "cuda" in self.devices else ("cpu",)
        extras = {*(self.extras or default), *(("sign",) if self.sign else ())}
        target = Target(self.platform or this_machine().tag, self.python or this_python())
        return KitPlan(directory, target, tuple(sorted(extras)))


_CARRYING = (
    click.option(
        "--sign",
        type=click.Path(path_type=Path),
        metavar="KEY",
        help="Sign the bundle with this private key, an elliptic curve's in PEM.",
    ),
    click.option(
        "--kit",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Write a folder with all that a machine without internet needs: the bundle, wheels, how to install.",
    ),
    click.option(
        "--kit-platform", metavar="TAG", help="manylinux_2_28_x86_64, win_amd64, …  [default: as this machine]"
    ),
    click.option("--kit-python", metavar="VERSION", help="3.10, 3.11, …  [default: as this one]"),
    click.option(
        "--kit-extra",
        multiple=True,
        metavar="EXTRA",
        help="Wheels for this extra of medvlm; may be given several times  [default: cpu, or gpu for CUDA]",
    ),
)


def carrying_options(command: Command) -> Command:
    """Add the options of carrying, which reach the command as `carrying`."""

    @functools.wraps(command)
    def wrapped(
        *args: Any,
        sign: Path | None,
        kit: Path | None,
        kit_platform: str | None,
        kit_python: str | None,
        kit_extra: tuple[str, ...],
        **others: Any,
    ) -> None:
        command(*args, carrying=Carrying(sign, kit, kit_platform, kit_python, kit_extra), **others)

    return with_options(wrapped, _CARRYING)
