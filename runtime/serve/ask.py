"""POST /ask and POST /preview: one question, or one look at an image, as a form."""

import base64
import dataclasses
import io
import re
from contextlib import ExitStack
from typing import Any

from PIL import Image
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..decoding import DEFAULT_MAX_NEW_TOKENS, Decoding
from ..dicom.view import View, read_view
from ..images import LoadedImage
from .asking import client_of, entered, taken_in, wait_for_turn
from .body import Form, read_form
from .chat_request import check_user, make_decoding
from .errors import ApiError
from .job import Ended, Job
from .messages import ImagePart, Turn
from .service import Service

# As JSON writes it.
_NUMBER = r"-?[0-9]{1,20}(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?"
_VIEW = ("window", "frame", "montage")
_ASK = ("question", *_VIEW, "max_new_tokens", "temperature", "top_p", "seed", "user")
# The longer side of a preview: more than a screen shows, and a page holds it several times.
_LONGEST_SIDE = 4096


async def ask(service: Service, request: Request, held: ExitStack) -> Response:
    """Answer with the JSON of `medvlm ask --json`."""
    job = await _read(service, request, held)
    async for _ in wait_for_turn(service, job):
        pass
    answers = [event.answer async for event in job.events() if isinstance(event, Ended)]
    return JSONResponse(dataclasses.asdict(answers[-1]))


async def _read(service: Service, request: Request, held: ExitStack) -> Job:
    """What is asked, in the line. The images' files are not kept while it waits."""
    async with taken_in(service, request, service.questions, held, read_form) as (form, presence):
        turn, decoding, user = _asked(form, service)
        del form
        prepared, seconds = await presence.during(service.preparer.prepare([turn], presence.left))
    job = Job(prepared, decoding, preprocess_s=seconds, client=client_of(request, user))
    held.enter_context(entered(service, presence, job))
    return job


def _asked(form: Form, service: Service) -> tuple[Turn, Decoding, str]:
    """The question with its images, how it is to be answered, and for whom."""
    _check_names(form, ("image",), _ASK)
    images, question = _read_images(form, service), form.text("question")
    if question is None or len(question) > service.settings.limits.text:
        raise ApiError(400, f"give one question of at most {service.settings.limits.text} characters", param="question")
    decoding = _read_decoding(form)
    # As from a file of Windows: a form sends its lines' ends so.
    turn = Turn(images, question.replace("\r\n", "\n").strip(), None)
    return turn, decoding, check_user(form.text("user") or "")


async def preview(service: Service, request: Request, held: ExitStack) -> Response:
    """Show an image as the model would see it before it is resized."""
    async with taken_in(service, request, service.looks, held, read_form) as (form, presence):
        _check_names(form, ("image",), _VIEW)
        (part, *others) = _read_images(form, service) or (None,)
        if part is None or others:
            raise ApiError(400, "give one image", param="image")
        del form
        return JSONResponse(await presence.during(service.preparer.run(_look, service, part)))


def _look(service: Service, part: ImagePart) -> dict[str, Any]:
    (loaded,) = service.preparer.load([part])
    shown = loaded.shown
    return {
        "width": loaded.pixels.width,
        "height": loaded.pixels.height,
        "frames": shown.frames if shown else 1,
        "window": shown and shown.window,
        "window_range": shown and shown.extent,
        "inverted": shown is not None and shown.inverted,
        "dicom": shown is not None,
        "notes": loaded.notes,
        "png": base64.b64encode(_png(loaded)).decode(),
    }


def _png(loaded: LoadedImage) -> bytes:
    """The pixels, scaled down where they are too many."""
    pixels, content = loaded.pixels, io.BytesIO()
    if max(pixels.size) > _LONGEST_SIDE:
        pixels = pixels.copy()
        pixels.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE), Image.Resampling.BICUBIC)
    pixels.save(content, "PNG", compress_level=1)
    return content.getvalue()


def _check_names(form: Form, files: tuple[str, ...], texts: tuple[str, ...]) -> None:
    unknown = [name for name in form.files if name not in files] + [name for name in form.texts if name not in texts]
    if unknown:
        name = unknown[0][:60]
        where = "a file; give it a filename" if name in files else f"not known; give {', '.join((*files, *texts))}"
        raise ApiError(400, f"the part {name!r} is {where}", code="unknown_parameter", param=name)


def _read_images(form: Form, service: Service) -> tuple[ImagePart, ...]:
    """The images of a form, all shown alike."""
    contents, most = form.files.get("image", []), service.settings.limits.images
    if len(contents) > most:
        raise ApiError(400, f"there are {len(contents)} images; give at most {most}", param="image")
    view = _read_form_view(form)
    return tuple(ImagePart(content, view) for content in contents)


def _read_form_view(form: Form) -> View:
    return read_view(form.text("window") or None, _whole(form, "frame"), form.text("montage") or None)


def _read_decoding(form: Form) -> Decoding:
    tokens, top_p = _whole(form, "max_new_tokens"), _number(form, "top_p")
    return make_decoding(
        DEFAULT_MAX_NEW_TOKENS if tokens is None else tokens,
        _number(form, "temperature") or 0.0,
        1.0 if top_p is None else top_p,
        _whole(form, "seed"),
    )


def _whole(form: Form, name: str) -> int | None:
    """The whole number in a field; None where it is empty or not there."""
    text = (form.text(name) or "").strip()
    if not text:
        return None
    if not re.fullmatch("-?[0-9]{1,19}", text) or abs(int(text)) >= 2**63:
        raise ApiError(400, f"{name} is not a whole number", param=name)
    return int(text)


def _number(form: Form, name: str) -> float | None:
    """The number in a field; None where it is empty or not there."""
    text = (form.text(name) or "").strip()
    if not text:
        return None
    if not re.fullmatch(_NUMBER, text):
        raise ApiError(400, f"{name} is not a number", param=name)
    return float(text)
