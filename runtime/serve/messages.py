"""Messages of OpenAI's chat protocol as turns: questions with their images, and what was answered."""

import base64
import binascii
from dataclasses import dataclass
from typing import Any

from ..dicom.view import DEFAULT_VIEW, View, read_view
from .errors import ApiError
from .fields import get, string, whole
from .settings import Limits

_LONGEST_HEAD = 200
# Of other models' messages: what is left out would change what the answer rests on.
_FOREIGN = ("tool_calls", "function_call", "audio")
MEDIA_TYPES = ("application/dicom", "application/octet-stream")


@dataclass(frozen=True)
class ImagePart:
    """An image's file as it was sent, and how to show it where it is DICOM."""

    content: bytes
    view: View


@dataclass(frozen=True)
class Turn:
    """A question with its images, which go before it wherever they stood, and what was answered; None of the last."""

    images: tuple[ImagePart, ...]
    text: str
    answer: str | None


def read_messages(messages: Any, limits: Limits) -> tuple[str | None, tuple[Turn, ...]]:
    """The system message, None where there is none, and the turns, the last of which is to be answered."""
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        raise ApiError(400, "messages should be a list of at least one message", param="messages")
    system: list[str] = []
    turns = _Turns(limits)
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if foreign := [name for name in _FOREIGN if message.get(name)]:
            raise ApiError(400, f"this model knows no {foreign[0]} in a message; leave it out", param="messages")
        if role in ("system", "developer") and not turns.begun:
            system.append(_joined_text(content))
        elif role == "user":
            turns.ask(*_read_content(content))
        elif role == "assistant":
            turns.answer(_read_answer(message))
        else:
            raise ApiError(
                400, "a message's role should be system, before all others, user or assistant", param="messages"
            )
    turns.check(sum(map(len, system)))
    return "\n".join(system) if system else None, turns.finished()


class _Turns:
    """Puts messages together into turns: several questions behind each other are one."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._finished: list[Turn] = []
        self._images: list[ImagePart] = []
        self._texts: list[str] = []
        self._asked = False

    @property
    def begun(self) -> bool:
        return self._asked or bool(self._finished)

    def ask(self, images: list[ImagePart], text: str) -> None:
        self._asked = True
        self._images += images
        self._texts.append(text)

    def answer(self, text: str) -> None:
        if not self._asked:
            raise ApiError(400, "an assistant's message should follow a user's", param="messages")
        self._finished.append(Turn(tuple(self._images), "\n".join(self._texts), text))
        self._images, self._texts, self._asked = [], [], False

    def check(self, more_text: int) -> None:
        images = len(self._images) + sum(len(turn.images) for turn in self._finished)
        if images > self._limits.images:
            raise ApiError(400, f"there are {images} images; give at most {self._limits.images}", param="messages")
        earlier = sum(len(turn.text) + len(turn.answer or "") for turn in self._finished)
        if more_text + earlier + sum(map(len, self._texts)) > self._limits.text:
            raise ApiError(400, f"the text is longer than {self._limits.text} characters; shorten it", param="messages")

    def finished(self) -> tuple[Turn, ...]:
        if not self._asked:
            raise ApiError(400, "the last message should be a user's", param="messages")
        return (*self._finished, Turn(tuple(self._images), "\n".join(self._texts), None))


def _read_content(content: Any) -> tuple[list[ImagePart], str]:
    """A user's message: its images and its text, the text's parts on lines of their own."""
    if isinstance(content, str):
        return [], content
    images, texts = [], []
    for part in _parts(content):
        if part.get("type") == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif part.get("type") == "image_url":
            images.append(_read_image(part.get("image_url")))
        else:
            raise ApiError(400, "a part of a message should be a text or an image_url", param="messages")
    return images, "\n".join(texts)


def _read_answer(message: dict[str, Any]) -> str:
    """An assistant's message, with its reasoning where the client sends that back."""
    text = _joined_text(message.get("content"))
    reasoning = get(message, "reasoning_content", string, "")
    return f"<think>{reasoning}</think>\n\n{text}" if reasoning else text


def _joined_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    texts = [part.get("text") for part in _parts(content) if part.get("type") == "text"]
    if not texts or len(texts) < len(content) or not all(isinstance(text, str) for text in texts):
        raise ApiError(400, "a message of the system or an assistant should be text", param="messages")
    return "\n".join(map(str, texts))


def _parts(content: Any) -> list[dict[str, Any]]:
    if not isinstance(content, list) or not content or not all(isinstance(part, dict) for part in content):
        raise ApiError(400, "a message's content should be a text or a list of parts", param="messages")
    return content


def _read_image(image: Any) -> ImagePart:
    url = image.get("url") if isinstance(image, dict) else None
    if not isinstance(url, str):
        raise ApiError(400, "an image_url should be an object with a url", param="messages")
    return ImagePart(read_data_url(url), _read_view(image.get("view")))


def read_data_url(url: str) -> bytes:
    """What a `data:` URL holds. Raises `ApiError`, for every other URL too."""
    # No more is looked at than such a head takes: the rest may be megabytes.
    head, comma, _ = url[:_LONGEST_HEAD].partition(",")
    scheme, _, kind = head.lower().partition(":")
    if scheme != "data":
        raise ApiError(400, "images are taken from data: URLs alone; nothing is fetched", code="invalid_image_url")
    media, *parameters = kind.split(";")
    if not comma or not parameters or parameters[-1].strip() != "base64":
        raise ApiError(400, "an image's data: URL should be in base64", code="invalid_image_url")
    if not media.startswith("image/") and media not in MEDIA_TYPES:
        raise ApiError(400, f"a data: URL should be of an image or {MEDIA_TYPES[0]}", code="invalid_image_url")
    try:
        return base64.b64decode(url[len(head) + 1 :], validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, "an image's data: URL is not sound base64", code="invalid_image_url") from None


def _read_view(view: Any) -> View:
    """Our extension: {"window": "40,400", "frame": 3, "montage": "3x3"}, each of which may be left out."""
    if view is None:
        return DEFAULT_VIEW
    if not isinstance(view, dict) or not set(view) <= {"window", "frame", "montage"}:
        raise ApiError(400, "an image's view should be an object with window, frame or montage", param="messages")
    window, montage = (get(view, name, string, None) for name in ("window", "montage"))
    return read_view(window, get(view, "frame", whole, None), montage)
