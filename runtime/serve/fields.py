"""Values of a JSON object, by name and type."""

from collections.abc import Callable
from typing import Any, TypeVar

from ..sampling import is_whole
from .errors import ApiError

T = TypeVar("T")


def get(values: dict[str, Any], name: str, read: Callable[[Any], T | None], absent: T) -> T:
    """A value of the type that `read` takes, `absent` where it is null or not there. Raises `ApiError`."""
    value = values.get(name)
    if value is None:
        return absent
    found = read(value)
    if found is None:
        raise ApiError(400, f"{name} is not of the right type", param=name)
    return found


def string(value: Any) -> str | None:
    """A text."""
    return value if isinstance(value, str) else None


def boolean(value: Any) -> bool | None:
    """A truth value."""
    return value if isinstance(value, bool) else None


def json_object(value: Any) -> dict[str, Any] | None:
    """An object."""
    return value if isinstance(value, dict) else None


def whole(value: Any) -> int | None:
    """A whole number that 64 bits hold."""
    return value if is_whole(value) and abs(value) < 2**63 else None


def number(value: Any) -> float | None:
    """A number."""
    return value if is_whole(value) or isinstance(value, float) else None
