"""The wheel of the medvlm that is installed, made again from its files: a kit holds what exported its bundle.

The form: https://packaging.python.org/specifications/binary-distribution-format (a wheel's RECORD lists every file with
its sha256).
"""

import base64
import csv
import hashlib
import io
import zipfile
from importlib import metadata
from pathlib import Path

from ..runtime.errors import InputError

_NAME = "medvlm"
# What pip adds beside the wheel's own files.
_ADDED = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"}
# The earliest time that a zip can hold: the same files give the same wheel.
_TIME = (1980, 1, 1, 0, 0, 0)


def write_own_wheel(folder: Path) -> Path:
    """Write the wheel into `folder`; its path. Raises `InputError` where medvlm is not installed as files."""
    # Beside the installed one a clone in which it was built has another description of it, without a RECORD.
    installed = next((found for found in metadata.distributions(name=_NAME) if found.read_text("RECORD")), None)
    own = [file for file in (installed and installed.files) or () if ".." not in file.parts and file.suffix != ".pyc"]
    own = [file for file in own if not (_is_info(file) and file.name in _ADDED)]
    if installed is None or "medvlm/runtime/__init__.py" not in {file.as_posix() for file in own}:
        raise InputError("--kit packs the installed medvlm, and this one is editable or not installed; pip install it")
    try:
        contents = {file.as_posix(): Path(str(file.locate())).read_bytes() for file in own}
    except OSError as error:
        raise InputError(f"{error.filename} of the installed medvlm cannot be read; install it again") from None
    info = next(name for name in contents if name.endswith(".dist-info/METADATA")).removesuffix("METADATA")
    path = folder / f"{_NAME}-{installed.version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name in sorted(contents, key=lambda name: (name.startswith(info), name)):
            _add(wheel, name, contents[name])
        _add(wheel, f"{info}RECORD", _record(contents, f"{info}RECORD"))
    return path


def _is_info(file: metadata.PackagePath) -> bool:
    return file.parts[0].endswith(".dist-info")


def _add(wheel: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, _TIME)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o100644 << 16
    wheel.writestr(entry, content)


def _record(contents: dict[str, bytes], own: str) -> bytes:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    for name, content in sorted(contents.items()):
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        rows.writerow((name, f"sha256={digest}", len(content)))
    rows.writerow((own, "", ""))
    return text.getvalue().encode()
