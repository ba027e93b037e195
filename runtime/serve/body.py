"""A request's body: read within limits of size and time, kept in memory alone, and taken apart."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from starlette.requests import Request
from starlette.types import Receive

from .errors import ApiError, ClientGone
from .settings import Limits

# Far beyond any conversation of so few images; a body of nothing but brackets would else take its size a hundredfold.
_MOST_MARKS = 20_000
_MARKS = (b"{", b"[", b",")
_JSON, _MULTIPART = "application/json", "multipart/form-data"
_MOST_FIELDS = 64


@dataclass
class Form:
    """The parts of a multipart body, by name, in their order: texts, and files' contents."""

    texts: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, list[bytes]] = field(default_factory=dict)

    def text(self, name: str) -> str | None:
        """The only text of that name; None where there is none. Raises `ApiError` where there are several."""
        found = self.texts.get(name, [])
        if len(found) > 1:
            raise ApiError(400, f"{name} is given {len(found)} times; give it once", param=name)
        return found[0] if found else None


Grow: TypeAlias = Callable[[int], None]
"""Called with the size of each piece, before it is kept; raises `ApiError` where all bodies together are too large."""


async def read_json(request: Request, limits: Limits, grow: Grow) -> dict[str, Any]:
    """The object in a body. Raises `ApiError`."""
    _check_type(request, _JSON)
    content = await read_body(request, limits, grow)
    return await asyncio.to_thread(parse_json, content)


async def read_form(request: Request, limits: Limits, grow: Grow) -> Form:
    """The parts of a multipart body. Raises `ApiError`."""
    _check_type(request, _MULTIPART)
    content = await read_body(request, limits, grow)
    return await asyncio.to_thread(parse_form, content, request.headers["content-type"])


async def read_body(request: Request, limits: Limits, grow: Grow) -> bytes:
    """The body. Raises `ApiError` for one that is too large or too slow, `ClientGone` where it breaks off."""
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > limits.body_bytes:
        raise _too_large(limits)
    try:
        return await asyncio.wait_for(_receive_all(request.receive, limits, grow), limits.body_s)
    except asyncio.TimeoutError:
        raise ApiError(408, "the request took too long to arrive; send it again") from None


async def _receive_all(receive: Receive, limits: Limits, grow: Grow) -> bytes:
    content, more = bytearray(), True
    while more:
        message = await asyncio.wait_for(receive(), limits.chunk_s)
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece = message.get("body", b"")
        grow(len(piece))
        content += piece
        if len(content) > limits.body_bytes:
            raise _too_large(limits)
        more = message.get("more_body", False)
    return bytes(content)


def parse_json(content: bytes) -> dict[str, Any]:
    """The object that a body is. Raises `ApiError`."""
    if sum(map(content.count, _MARKS)) > _MOST_MARKS:
        raise ApiError(400, "the body holds too many parts; ask fewer questions in one request")
    try:
        found = json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
    # Python's own limit of an integer's digits is a ValueError.
    except (ValueError, RecursionError):
        raise ApiError(400, "the body is not JSON in UTF-8; check its form") from None
    if not isinstance(found, dict):
        raise ApiError(400, "the body is not a JSON object; check its form")
    return found


def parse_form(content: bytes, content_type: str) -> Form:
    """The parts of a multipart body with this Content-Type. Raises `ApiError`.

    Starlette's own parser would put files into temporary ones.
    """
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser, parse_options_header

    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise ApiError(400, "the multipart body's Content-Type names no boundary; let your client write it")
    reader = _PartReader(parse_options_header)
    try:
        parser = MultipartParser(boundary, reader.callbacks())  # type: ignore[arg-type]
        parser.write(content)
        parser.finalize()
    except (FormParserError, UnicodeDecodeError):
        raise ApiError(400, "the multipart body is malformed; send it again") from None
    if not reader.complete:
        raise ApiError(400, "the multipart body breaks off before its end; send it again")
    return reader.form


class _PartReader:
    """Collects what python-multipart calls out."""

    def __init__(self, parse_options: Any) -> None:
        self.form, self.complete = Form(), False
        self._parse_options = parse_options
        self._name, self._header, self._value = b"", bytearray(), bytearray()
        self._disposition, self._data, self._count = b"", bytearray(), 0

    def callbacks(self) -> dict[str, Any]:
        """By the names under which the parser calls them."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_part_data": lambda data, start, end: self._data.extend(data[start:end]),
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        self._count += 1
        if self._count > _MOST_FIELDS:
            raise ApiError(400, f"the multipart body has more than {_MOST_FIELDS} parts; send fewer")
        self._disposition, self._data = b"", bytearray()

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header, self._value = bytearray(), bytearray()

    def _end(self) -> None:
        options = self._parse_options(self._disposition)[1]
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if not name:
            raise ApiError(400, "a part of the multipart body has no name; give each one")
        if b"filename" in options:
            self.form.files.setdefault(name, []).append(bytes(self._data))
        else:
            self.form.texts.setdefault(name, []).append(self._data.decode("utf-8"))

    def _finish(self) -> None:
        self.complete = True


def _check_type(request: Request, wanted: str) -> None:
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # A page of another origin can send other types without asking first.
    if given != wanted:
        raise ApiError(415, f"the request's Content-Type should be {wanted}")


def _too_large(limits: Limits) -> ApiError:
    return ApiError(413, f"the request has more than {limits.body_bytes / 2**20:g} MiB; send smaller or fewer images")


def _refuse_constant(name: str) -> float:
    raise ValueError(name)
