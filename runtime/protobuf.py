"""Protobuf's wire format, read field by field without a schema and without protobuf itself.

The format: https://protobuf.dev/programming-guides/encoding. Groups (wire types 3 and 4), which nothing here uses, are
refused.
"""

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_WIDTHS = {_FIXED64: 8, _FIXED32: 4}
_MAX_VARINT_BITS = 63
_TAG_LIMIT = 1 << 32

Field = tuple[int, memoryview | int]
"""A field's number with its value: bytes where the field has a length, an integer where it is a varint."""


def read_fields(message: memoryview) -> Iterator[Field]:
    """The fields of a message in their order; those of fixed width are skipped. Raises ValueError for a fault."""
    at, end = 0, len(message)
    while at < end:
        # Every graph is read at loading, and nearly all of its numbers have one byte: those need no call.
        tag, at = (message[at], at + 1) if message[at] < 0x80 else _read_varint(message, at)
        number, wire = tag >> 3, tag & 7
        if tag >= _TAG_LIMIT:
            raise ValueError("a field number is too large")
        if wire not in (_BYTES, _VARINT):
            if wire not in _WIDTHS:
                raise ValueError(f"wire type {wire}")
            value, length = 0, _WIDTHS[wire]
        else:
            short = at < end and message[at] < 0x80
            value, at = (message[at], at + 1) if short else _read_varint(message, at)
            length = value if wire == _BYTES else 0
        if length > end - at:
            raise ValueError("a field is longer than its message")
        if wire == _BYTES:
            yield number, message[at : at + length]
        elif wire == _VARINT:
            yield number, value
        at += length


def read_messages(message: memoryview, number: int) -> Iterator[memoryview]:
    """The bytes of each field `number` of a message. Raises ValueError where one is an integer."""
    return (_as_bytes(value) for found, value in read_fields(message) if found == number)


def read_text(message: memoryview, number: int) -> str:
    """The text in field `number`: the last one counts, and none is the empty text. Raises ValueError."""
    return ([bytes(value).decode() for value in read_messages(message, number)] or [""])[-1]


def read_message(message: memoryview, number: int) -> memoryview:
    """The bytes of field `number`, empty where it is absent. Raises ValueError for several: protobuf merges them."""
    found = list(read_messages(message, number))
    if len(found) > 1:
        raise ValueError("a field stands twice")
    return found[0] if found else memoryview(b"")


def read_integer(message: memoryview, number: int) -> int | None:
    """The integer in field `number`: the last one counts, and None is none. Raises ValueError for what is not one."""
    last = None
    for field, value in read_fields(message):
        if field == number:
            if not isinstance(value, int):
                raise ValueError("a field has a length that should be a number")
            last = value
    return last


def read_integers(message: memoryview, number: int) -> list[int]:
    """The integers in field `number`, one a field or packed; negative ones are 2^64 larger. Raises ValueError."""
    found: list[int] = []
    for field, value in read_fields(message):
        if field != number:
            continue
        if isinstance(value, int):
            found.append(value)
            continue
        at = 0
        while at < len(value):
            integer, at = _read_varint(value, at)
            found.append(integer)
    return found


def _as_bytes(value: memoryview | int) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a field is a number that should have a length")
    return value


def _read_varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, _MAX_VARINT_BITS + 1, 7):
        if at == len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number does not end")
