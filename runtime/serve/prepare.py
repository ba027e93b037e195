"""From what was sent to a job: images decoded and the prompt built, in threads beside the model's."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ..cli_options import Asking
from ..context import check_fit
from ..decoded import DecodedImages
from ..errors import InputError
from ..images import LoadedImage
from ..processor import Processor, Request
from ..turns import Exchange
from .errors import ApiError, ClientGone
from .messages import ImagePart, Turn
from .settings import Limits

# Decoding an image of 100 megapixels takes some hundred megabytes, and cores that the model wants.
_AT_ONCE = 2
T = TypeVar("T")


class Preparer:
    """Turns what was sent into requests of the model. Of that it reads the processor, which nothing here changes."""

    def __init__(self, processor: Processor, max_length: int, asking: Asking, limits: Limits) -> None:
        """asking: the limits and the form of all prompts. max_length: tokens of prompt and answer together."""
        self._processor, self._max_length, self._asking, self._limits = processor, max_length, asking, limits
        self._decoded = DecodedImages()
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="medvlm-prepare")

    async def prepare(
        self, turns: Sequence[Turn], left: threading.Event, system: str | None = None
    ) -> tuple[Request, float]:
        """The request, and the seconds that it took. Raises `InputError` and `ApiError` for what will not do.

        left: set where the client is gone; no other image is decoded then.
        """
        if not any(turn.images for turn in turns):
            # Nobody's text waits for others' images.
            return await asyncio.to_thread(self._prepare, turns, left, system)
        return await self.run(self._prepare, turns, left, system)

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        """`work` in one of the threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    def close(self) -> None:
        """End the threads without waiting for what they do."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _prepare(self, turns: Sequence[Turn], left: threading.Event, system: str | None) -> tuple[Request, float]:
        started = time.perf_counter()
        loaded = iter(self.load([image for turn in turns for image in turn.images], left))
        images = [tuple(next(loaded) for _ in turn.images) for turn in turns]
        earlier = [
            Exchange(these, turn.text, turn.answer or "") for these, turn in zip(images, turns[:-1], strict=False)
        ]
        request = self._processor.prepare(
            images[-1],
            turns[-1].text,
            raw=self._asking.raw,
            min_pixels=self._asking.min_pixels,
            max_pixels=self._asking.max_pixels,
            earlier=earlier,
            system=system,
        )
        try:
            check_fit(request, self._max_length)
        except InputError:
            raise ApiError(
                400,
                f"the prompt has {len(request.token_ids)} tokens ({request.visual_tokens} of them visual) and the "
                f"context holds {self._max_length}; give fewer or smaller images, or less text",
                code="context_length_exceeded",
                param="messages",
            ) from None
        return request, time.perf_counter() - started

    def load(self, parts: Sequence[ImagePart], left: threading.Event | None = None) -> list[LoadedImage]:
        """The images, called by their numbers where there are several. Raises `InputError` and `ApiError`.

        left: as for `prepare`; raises `ClientGone`.
        """
        loaded: list[LoadedImage] = []
        pixels = 0
        for number, part in enumerate(parts, start=1):
            if left is not None and left.is_set():
                raise ClientGone
            name = "the image" if len(parts) == 1 else f"image {number}"
            loaded.append(self._decoded.load(part.content, name, part.view))
            pixels += loaded[-1].pixels.width * loaded[-1].pixels.height
            if pixels > self._limits.pixels:
                most = self._limits.pixels // 10**6
                raise ApiError(400, f"the images have more than {most} megapixels together; scale them down first")
        return loaded
