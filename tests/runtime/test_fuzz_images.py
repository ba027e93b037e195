"""Samples of PNG, JPEG, TIFF and DICOM with random damage: each is read or refused by one line, within limits.

The suite looks at a few hundred, the same in every run. `python tests/runtime/test_fuzz_images.py --minutes 10` looks
at others for longer, says how many of each, and keeps what did harm. Both send the files to a process with the limits
of memory and time that decoding DICOM has, where a crash or a hang shows as such.
"""

import collections
import contextlib
import io
import random
import resource
import select
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from medvlm.runtime.dicom.child import MEMORY_BYTES, decode_file
from medvlm.runtime.dicom.view import View
from medvlm.runtime.errors import InputError
from medvlm.runtime.images import load_image
from PIL import Image

# Of computing for one file, however busy the machine is; and of waiting, for a file that makes a process sleep.
CPU_S, WAIT_S = 10.0, 600.0
FINE = ("read", "refused", "memory")
# Values at which sizes, offsets and signs turn.
EDGES = (0, 1, 2, 7, 8, 16, 127, 128, 255, 256, 32767, 32768, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1)
DICOM_NAMES = ["CT_small", "MR_small_RLE", "MR_small_jp2klossless", "MR_small_jpeg_ls_lossless", "SC_rgb_jpeg_gdcm"]
DICOM_NAMES += ["SC_rgb_rle_2frame", "SC_rgb_jpeg_dcmtk", "image_dfl", "JPEGLSNearLossless_08", "MR_small_implicit"]


@dataclass(frozen=True)
class Edit:
    """One piece of damage. place: a share of the file, 0 to 1. value, length: what it writes, or how much goes."""

    kind: str
    place: float
    value: int
    length: int


def set_byte(content: bytes, at: int, edit: Edit) -> bytes:
    return content[:at] + bytes([edit.value % 256]) + content[at + 1 :]


def set_number(content: bytes, at: int, edit: Edit) -> bytes:
    """A number of 16 or 32 bits, of either byte order."""
    form = ("<H", ">H", "<I", ">I")[edit.length % 4]
    number = struct.pack(form, edit.value % 2 ** (8 * struct.calcsize(form)))
    return content[:at] + number + content[at + len(number) :]


def flip_bit(content: bytes, at: int, edit: Edit) -> bytes:
    return content[:at] + bytes([content[at] ^ 1 << edit.value % 8]) + content[at + 1 :]


EDITS: dict[str, Callable[[bytes, int, Edit], bytes]] = {
    "byte": set_byte,
    "number": set_number,
    "bit": flip_bit,
    "delete": lambda content, at, edit: content[:at] + content[at + edit.length :],
    "insert": lambda content, at, edit: content[:at] + bytes([edit.value % 256]) * edit.length + content[at:],
    "repeat": lambda content, at, edit: content[:at] + content[at : at + edit.length] * 3 + content[at:],
    "cut": lambda content, at, edit: content[:at],
}


def damaged(content: bytes, edits: Sequence[Edit], kind: str) -> bytes:
    """The sample after all edits. Of DICOM, what makes it one stays, or nothing else would be looked at."""
    kept = 132 if kind == "DICOM" else 0
    for edit in edits:
        if len(content) > kept + 1:
            # Headers are at the start, and every bit of them counts: half of the edits go to the first 2 KiB.
            reach = len(content) if edit.value % 2 else min(len(content), 2048)
            content = EDITS[edit.kind](content, kept + int(edit.place * (reach - kept - 1)), edit)
    return with_right_sums(content) if kind == "PNG" and len(edits) % 2 else content


def with_right_sums(png: bytes) -> bytes:
    """The PNG with the checksum of each chunk made right, or decoders would look no further."""
    mended, at = bytearray(png), 8
    while at + 12 <= len(png):
        length = int.from_bytes(png[at : at + 4], "big")
        end = at + 8 + length
        if end + 4 > len(png):
            break
        mended[end : end + 4] = struct.pack(">I", zlib.crc32(png[at + 4 : end]))
        at = end + 4
    return bytes(mended)


@cache
def samples(kind: str) -> tuple[bytes, ...]:
    """Small files of one kind, in the forms that it has."""
    if kind == "DICOM":
        find = pytest.importorskip("pydicom", reason="needs the extra dicom").data.get_testdata_file
        pytest.importorskip("pylibjpeg", reason="needs the extra dicom")
        paths = [find(f"{name}.dcm", download=False) for name in DICOM_NAMES]
        return tuple(Path(path).read_bytes() for path in paths if path is not None)
    deep = np.random.default_rng(1).integers(0, 4096, (24, 32)).astype(np.uint16)
    colour = Image.fromarray((deep % 256).astype(np.uint8)).convert("RGB")
    saved: dict[str, list[tuple[Image.Image, dict[str, Any]]]] = {
        "PNG": [(colour, {}), (Image.fromarray(deep), {}), (colour.convert("P"), {}), (colour.convert("1"), {})],
        "JPEG": [
            (colour, {}),
            (colour, {"progressive": True}),
            (colour.convert("L"), {}),
            (colour.convert("CMYK"), {}),
        ],
        "TIFF": [
            (colour, {}),
            (Image.fromarray(deep), {"compression": "tiff_adobe_deflate"}),
            (colour, {"compression": "tiff_lzw"}),
            (colour, {"compression": "jpeg"}),
            (colour.convert("1"), {"compression": "group4"}),
            (colour, {"save_all": True, "append_images": [colour]}),
        ],
    }
    return tuple(map(_file_of, *zip(*((image, kind, options) for image, options in saved[kind]), strict=True)))


def _file_of(image: Image.Image, kind: str, options: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


class Worker:
    """A process that reads images, one after the other; another takes its place where one dies."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def read(self, kind: str, content: bytes) -> str:
        """What became of a file: "read", "refused", "memory" (refused by the limit), or how it did harm."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(struct.pack("<?I", kind == "DICOM", len(content)) + content)
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], WAIT_S)
        if not ready:
            self.close()
            self._start()
            return "hung"
        said = self._process.stdout.readline().decode().strip()
        if not said:
            self.close()
            code = self._process.returncode
            self._start()
            return "hung" if code == -signal.SIGPROF else f"crashed ({-code})"
        return said

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        if self._process.poll() is None and not select.select([self._process.stdout], [], [], 0)[0]:
            self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()


def work() -> None:
    """What the worker does until its input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while header := sys.stdin.buffer.read(5):
        is_dicom, length = struct.unpack("<?I", header)
        content = sys.stdin.buffer.read(length)
        # Its signal ends the process, in the midst of a decoder too.
        signal.setitimer(signal.ITIMER_PROF, CPU_S)
        outcome = attempt(content, is_dicom=is_dicom)
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(f"{outcome}\n")
        sys.stdout.flush()


def attempt(content: bytes, *, is_dicom: bool) -> str:
    try:
        if is_dicom:
            decode_file(io.BytesIO(content), View())
        else:
            load_image(content)
    except InputError as error:
        return "refused" if str(error).isprintable() and len(str(error)) < 400 else "said too much"
    except MemoryError:
        return "memory" if is_dicom else "memory escaped"
    except BaseException as error:  # noqa: BLE001 - whatever gets through is what this is about
        return f"escaped: {type(error).__name__}"
    return "read"


EDIT = st.builds(
    Edit,
    kind=st.sampled_from(sorted(EDITS)),
    place=st.floats(0, 1),
    value=st.sampled_from(EDGES) | st.integers(0, 2**32 - 1),
    length=st.integers(1, 64),
)


@pytest.fixture(scope="module")
def worker() -> Any:
    process = Worker()
    yield process
    process.close()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "DICOM"])
def test_undamaged_samples_are_read(worker: Worker, kind: str) -> None:
    assert {worker.read(kind, content) for content in samples(kind)} == {"read"}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "DICOM"])
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_damaged_files_are_read_or_refused(worker: Worker, kind: str, data: st.DataObject) -> None:
    content = data.draw(st.sampled_from(samples(kind)))
    edits = data.draw(st.lists(EDIT, min_size=1, max_size=5))
    assert worker.read(kind, damaged(content, edits, kind)) in FINE


def random_edits(rng: random.Random) -> list[Edit]:
    return [
        Edit(
            rng.choice(sorted(EDITS)),
            rng.random(),
            rng.choice(EDGES) if rng.random() < 0.5 else rng.getrandbits(32),
            rng.randint(1, 64),
        )
        for _ in range(rng.randint(1, 5))
    ]


@click.command()
@click.option("--minutes", default=5.0, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--kind", "kinds", multiple=True, default=("PNG", "JPEG", "TIFF", "DICOM"), show_default=True)
@click.option("--keep", default="fuzz-found", type=click.Path(path_type=Path), help="Where harmful files go.")
@click.option("--worker", is_flag=True, hidden=True)
def main(minutes: float, seed: int, kinds: tuple[str, ...], keep: Path, worker: bool) -> None:
    """Send damaged files for some minutes and count what became of them."""
    if worker:
        work()
        return
    rng, reader, counts = random.Random(seed), Worker(), collections.Counter[tuple[str, str]]()  # noqa: S311 - no secret
    end = time.monotonic() + minutes * 60
    while time.monotonic() < end:
        kind = rng.choice(kinds)
        content = damaged(rng.choice(samples(kind)), random_edits(rng), kind)
        outcome = reader.read(kind, content)
        counts[kind, outcome] += 1
        if outcome not in FINE:
            keep.mkdir(exist_ok=True)
            (keep / f"{kind}-{sum(counts.values())}-{outcome.replace(' ', '-').replace(':', '')}").write_bytes(content)
    reader.close()
    click.echo(f"{sum(counts.values())} files in {minutes:g} minutes, seed {seed}")
    for (kind, outcome), count in sorted(counts.items()):
        click.echo(f"{kind:6} {outcome:24} {count:8}")


if __name__ == "__main__":
    main()
