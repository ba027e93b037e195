"""What the audit log is told of each answer."""

import dataclasses
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from PIL import Image

from .audit import AuditLog, Entry
from .bundle import Bundle, sha256
from .decoding import Decoding
from .errors import AuditError, InputError, MedVLMError, plain
from .files import lies_in
from .manifest import MANIFEST
from .processor import Request
from .result import Answer


class Recorder:
    """Writes a line for each answer of a loaded bundle."""

    def __init__(self, path: Path, bundle: Bundle, loaded_with: dict[str, int]) -> None:
        """Open the log, or begin it. Raises `InputError` as `AuditLog`, and for a log in the bundle's folder.

        loaded_with: what was chosen when the bundle was loaded.
        """
        # A bundle's files are all listed: one more would damage it.
        if lies_in(path, bundle.directory):
            raise InputError(f"{plain(str(path))} lies in the bundle; give --audit a file elsewhere")
        self._log = AuditLog(path)
        self._bundle = sha256(bundle.path(MANIFEST))
        self._settings = {"medvlm": metadata.version("medvlm"), **loaded_with}

    def record(
        self, request: Request, decoding: Decoding, vote: int, outcome: str, seconds: float, answer: Answer | None
    ) -> None:
        """Add a line and wait until the disk has it; `answer` is None where there is none. Raises `AuditError`."""
        limits = {(image.settings.min_pixels, image.settings.max_pixels) for image in request.images}
        settings = {
            **self._settings,
            **dataclasses.asdict(decoding),
            "vote": vote,
            "raw": request.raw,
            "pixel_limits": sorted(limits),
        }
        entry = Entry(
            time=datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            bundle=self._bundle,
            images=tuple(self._digest(image.image.pixels) for image in request.images),
            settings=settings,
            choice=answer and answer.choice,
            options=answer.options if answer else {},
            seconds=round(seconds, 3),
            outcome=outcome,
        )
        try:
            self._log.append(entry)
        except MedVLMError as error:
            raise AuditError(str(error)) from error

    def _digest(self, pixels: Image.Image) -> str:
        return self._log.digest(pixels.size, pixels.tobytes())
