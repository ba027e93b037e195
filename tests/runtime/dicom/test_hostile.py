"""Files made to harm: each is refused by one line, within limits of memory and time, by a process of its own."""

import io
import json
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medvlm.runtime.dicom import load
from medvlm.runtime.dicom.child import MEMORY_BYTES, decode_file
from medvlm.runtime.dicom.codestream import StreamSize, stream_size
from medvlm.runtime.dicom.view import View
from medvlm.runtime.errors import InputError, MedVLMError
from medvlm.runtime.images import load_image

pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")
pytest.importorskip("pylibjpeg", reason="needs the extra dicom")

Make = Callable[..., bytes]
Edit = Callable[[bytes, Callable[[Any], None]], bytes]
Refusal = Callable[..., str]
Sample = Callable[[str], Path]

JPEG_LOSSLESS, RLE, DEFLATED = "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.1.99"
MPEG4 = "1.2.840.10008.1.2.4.102"


def says(content: bytes) -> str:
    """The message of a refusal, in this process: what is small may be looked at here."""
    with pytest.raises(InputError) as error:
        decode_file(io.BytesIO(content), View())
    return str(error.value)


def with_syntax(content: bytes, syntax: str) -> bytes:
    """The same bytes, said to be encoded in another way of an equally long UID, or a padded one."""
    old = b"1.2.840.10008.1.2.1\0"
    assert content.count(old) == 1
    padded = syntax.encode() + b"\0" * (len(syntax) % 2)
    start = content.index(old)
    length = struct.pack("<H", len(padded))
    grown = content[: start - 2] + length + padded + content[start + len(old) :]
    # (0002,0000), the length of the group, is the first element after the mark.
    at = 132 + 8
    group = struct.unpack("<I", grown[at : at + 4])[0] + len(padded) - len(old)
    return grown[:at] + struct.pack("<I", group) + grown[at + 4 :]


def deflated(make: Make, rest: bytes) -> bytes:
    """A deflated file whose inflated content ends in `rest`."""
    header = with_syntax(make(), DEFLATED)
    meta = 132 + 12 + struct.unpack("<I", header[140:144])[0]
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return header[:meta] + packer.compress(header[meta:] + rest) + packer.flush()


# What the header says and what is there


@pytest.mark.parametrize("change", [-2, -48, 2, 96, 5000])
def test_pixels_that_are_more_or_fewer_than_the_header_says_are_refused(make: Make, change: int) -> None:
    pixels = bytes(96 + change)
    assert says(make(PixelData=pixels)).startswith(f"has {96 + change} bytes of pixels, where 96 should be")


def test_a_size_far_beyond_the_data_is_refused_before_room_is_made(make: Make, refusal: Refusal) -> None:
    content = make(Rows=65535, Columns=65535, PixelData=bytes(1024))
    assert refusal(content) == ("the image has 65535 x 65535 pixels, more than 100 megapixels; scale it down")


@pytest.mark.parametrize(
    ("syntax", "message"),
    [
        (JPEG_LOSSLESS, "cannot be "),
        (RLE, "cannot be "),
        ("1.2.840.10008.1.2.2", ""),  # big-endian
        (MPEG4, "has a transfer syntax that is not read (MPEG-4 AVC/H.264 High Profile / Level 4.1)"),
        ("1.2.3.4.5", "has a transfer syntax that is not read (an unknown one)"),
    ],
)
def test_a_wrong_transfer_syntax_is_refused(make: Make, syntax: str, message: str) -> None:
    assert says(with_syntax(make(), syntax)).startswith(message)


def test_compressed_frames_said_to_be_uncompressed_are_refused(sample: Sample, edit: Edit) -> None:
    compressed = sample("MR_small_jp2klossless.dcm").read_bytes()
    plain = compressed.replace(b"1.2.840.10008.1.2.4.90", b"1.2.840.10008.1.2.1\0\0\0")
    assert "bytes of pixels, where 8192 should be" in says(plain)


@pytest.mark.parametrize("name", ["MR_small_jp2klossless", "MR_small_jpeg_ls_lossless", "SC_rgb_jpeg_gdcm"])
def test_a_compressed_frame_of_another_size_than_the_header_says_is_refused(
    sample: Sample, edit: Edit, name: str
) -> None:
    def halve(dataset: Any) -> None:
        dataset.Rows, dataset.Columns = dataset.Rows // 2, dataset.Columns * 2

    assert "and its compressed frame" in says(edit(sample(f"{name}.dcm").read_bytes(), halve))


def test_a_compressed_frame_that_says_too_much_is_refused_before_it_is_decoded(sample: Sample) -> None:
    content = sample("MR_small_jp2klossless.dcm").read_bytes()
    at = content.index(b"\xff\x4f\xff\x51") + 8
    huge = content[:at] + struct.pack(">II", 2**31 - 1, 2**31 - 1) + content[at + 8 :]
    assert "its compressed frame 2147483647 x 2147483647" in says(huge)


def test_sizes_are_read_from_the_streams_own_headers(sample: Sample) -> None:
    expected = {
        "MR_small_jp2klossless": StreamSize(64, 64, 1),
        "MR_small_jpeg_ls_lossless": StreamSize(64, 64, 1),
        "SC_rgb_jpeg_gdcm": StreamSize(100, 100, 3),
        "examples_ybr_color": StreamSize(240, 320, 3),
        "MR_small_RLE": None,
    }
    for name, size in expected.items():
        dataset = pydicom.dcmread(sample(f"{name}.dcm"))
        frames = int(dataset.get("NumberOfFrames", 1))
        frame = pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=frames)
        assert stream_size(frame) == size


@pytest.mark.parametrize(
    "stream", [b"", b"\xff\xd8", b"\xff\xd8\xff\xc0", b"\xff\x4f\xff\x51", b"\xff\xd8" + b"\xff" * 50]
)
def test_streams_that_end_early_have_no_size(stream: bytes) -> None:
    assert stream_size(stream) is None


@pytest.mark.filterwarnings("ignore")
def test_runs_that_go_on_beyond_the_frame_are_refused(sample: Sample) -> None:
    """The RLE decoder, in Rust, panics: what it raises is no Exception."""
    content = sample("MR_small_RLE.dcm").read_bytes()
    dataset = pydicom.dcmread(io.BytesIO(content))
    frame = pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
    # The first run is behind the header of 64 bytes; 0x81 repeats its byte 128 times, and all after it is shifted.
    at = content.index(frame) + 64
    assert says(content[:at] + b"\x81" + content[at + 1 :]).startswith("cannot be decoded (")


# What is no image


def test_dicomdirs_are_refused(sample: Sample, refusal: Refusal) -> None:
    path = sample("dicomdirtests/DICOMDIR")
    assert refusal(path) == (
        f"{path} is a DICOMDIR, a table of contents; give one of the files that it lists, or their folder"
    )


@pytest.mark.parametrize("program", [b"MZ\x90\0", b"\x7fELF\x02\x01", b"\xcf\xfa\xed\xfe", b"#!/bin/sh\n"])
def test_programs_in_the_preamble_are_refused_unopened(
    make: Make, refusal: Refusal, program: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("it was opened"))
    content = make()
    assert "has a program in front of its DICOM content" in refusal(program + content[len(program) :])


def test_a_tiff_header_in_the_preamble_is_no_fault(make: Make) -> None:
    """Whole-slide images are files of both kinds."""
    content = make()
    assert load_image(b"II*\0" + content[4:]).pixels.size == (8, 6)


# What never ends


def nested(make: Make, depth: int, *, closed: bool) -> bytes:
    """A file with sequences of undefined length in each other, before its pixels."""
    content = make()
    pixels = content.index(struct.pack("<HH2sH", 0x7FE0, 0x10, b"OW", 0))
    opening = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    closing = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    first = content.index(struct.pack("<HH", 0x0008, 0x0060))
    return (
        content[:first]
        + opening * depth
        + (closing * depth if closed else b"")
        + content[first:pixels]
        + content[pixels:]
    )


def test_sequences_nested_without_end_are_refused(make: Make, refusal: Refusal) -> None:
    for closed in (True, False):
        assert "its sequences are nested without end" in refusal(nested(make, 100_000, closed=closed))


def test_a_few_nested_sequences_are_no_fault(make: Make) -> None:
    assert len(decode_file(io.BytesIO(nested(make, 20, closed=True)), View()).frames) == 1


def test_a_deflate_bomb_is_refused(make: Make, refusal: Refusal) -> None:
    """Four GiB of zeros in four MB: more than the process may have."""
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    header = with_syntax(make(), DEFLATED)
    meta = 132 + 12 + struct.unpack("<I", header[140:144])[0]
    block = packer.compress(bytes(2**24)) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(2**24)) + packer.flush(zlib.Z_FULL_FLUSH)
    bomb = header[:meta] + block + again * 255
    assert len(bomb) < 2**25
    assert "needs more than 2 GiB of memory to read" in refusal(bomb)


def test_deflated_files_are_read(make: Make) -> None:
    assert len(decode_file(io.BytesIO(deflated(make, b"")), View()).frames) == 1


# The process


def child_that(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Have another program answer in place of the decoder."""
    monkeypatch.setattr(load, "_BOOT", "import sys, time, os, json\nsys.stdin.buffer.readline()\n" + code)


def test_a_decoder_that_hangs_is_given_up(make: Make, refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "DEADLINE_SECONDS", 0.3)
    child_that(monkeypatch, "time.sleep(60)")
    assert "took longer than 0.3 s to decode and was given up" in refusal(make())


def test_a_decoder_that_crashes_is_one_line(make: Make, refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    child_that(monkeypatch, "os.kill(os.getpid(), 11)")
    assert "its decoder stopped (signal 11)" in refusal(make())


def test_a_decoder_that_computes_without_end_is_given_up(
    make: Make, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    child_that(monkeypatch, "import resource; resource.setrlimit(resource.RLIMIT_CPU, (1, 2))\nwhile True: pass")
    assert "took more than 30 s to decode and was given up" in refusal(make())


def stating(shape: list[int], size: list[int]) -> str:
    """A child that answers with a frame of this form."""
    frame = {"shape": shape, "size": size, "frames": 1, "window": None, "extent": None, "inverted": False}
    return f"print({json.dumps({'frames': [frame], 'notes': []})!r})"


@pytest.mark.parametrize(
    "code",
    [
        "print('DOE^JOHN')",
        "print('x' * 10**7)",
        "print('[' * 100000)",
        "print('{}')",
        stating([100000, 100000], [1, 1]),
        stating([4, 4], [4, 4]) + "; print('short')",
        stating([4, -4], [4, 4]) + "; print('x' * 99)",
        'print(\'{"frames": 5, "notes": []}\')',
        'print(\'{"frames": [], "notes": []}\')',
    ],
)
def test_an_answer_that_is_none_is_not_believed(make: Make, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    child_that(monkeypatch, code)
    with pytest.raises(MedVLMError) as error:
        load_image(make())
    assert "DOE" not in str(error.value)
    assert str(error.value).isprintable()


LIMITS = """
import resource
from medvlm.runtime.dicom import child
child._limit()
print(*(resource.getrlimit(kind)[0] for kind in
    (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE)))
try:
    bytearray(3 * 2**30)
except MemoryError:
    print("refused")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux' limits")
def test_the_process_has_limits_of_memory_time_and_files() -> None:
    result = subprocess.run([sys.executable, "-c", LIMITS], capture_output=True, text=True, check=True)
    assert result.stdout.split() == [str(MEMORY_BYTES), "30", "0", "0", "refused"]


def test_files_are_opened_from_several_threads_at_once(make: Make) -> None:
    content, found = [make(np.full((2, 2), 5 + n, np.uint16), WindowCenter=128, WindowWidth=256) for n in range(4)], {}

    def read(n: int) -> None:
        found[n] = load_image(content[n]).pixels.getpixel((0, 0))

    threads = [threading.Thread(target=read, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: (5 + n,) * 3 for n in range(4)}


def test_nothing_is_left_running_or_open(make: Make) -> None:
    before = threading.active_count()
    load_image(make())
    with pytest.raises(InputError):
        load_image(make(Rows=None))
    assert threading.active_count() == before


def test_without_the_extra_the_line_says_what_to_install(
    make: Make, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert refusal(make()).endswith("what reads those is not installed; install medvlm[dicom]")
