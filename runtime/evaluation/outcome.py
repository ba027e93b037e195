"""What became of one question, as a line of a results file holds it."""

import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..result import Answer

# The form that the question template asks for, and nothing outside of it.
_FORM = re.compile(r"\s*<think>(?:(?!</?(?:think|answer)>).)+</think>\s*<answer>\s*[A-Z]\s*</answer>\s*", re.DOTALL)


@dataclass(frozen=True)
class Outcome:
    """What became of the question `key`: an error and nothing else, or an answer (see `Answer` for its fields).

    well_formed: whether the text is reasoning in `<think>` and a letter in `<answer>`, and nothing else. seconds: from
    reading the images to the answer's end.
    """

    key: str
    error: str | None = None
    text: str = ""
    reasoning: str = ""
    choice: str | None = None
    strict_choice: str | None = None
    well_formed: bool = False
    flags: tuple[str, ...] = ()
    finish_reason: str = ""
    options: dict[str, float] = dataclasses.field(default_factory=dict)
    prompt_tokens: int = 0
    visual_tokens: int = 0
    new_tokens: int = 0
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @classmethod
    def of_answer(cls, key: str, answer: Answer, seconds: float) -> "Outcome":
        """What an answer comes to."""
        taken = {field.name for field in dataclasses.fields(cls)} & {field.name for field in dataclasses.fields(Answer)}
        fields = {name: getattr(answer, name) for name in taken}
        return cls(key=key, well_formed=is_well_formed(answer.text), seconds=seconds, **fields)

    def to_line(self) -> dict[str, Any]:
        """The fields of its line: of an error, no others."""
        fields = dataclasses.asdict(self)
        return {"error": self.error} if self.error is not None else {k: v for k, v in fields.items() if k != "key"}

    @classmethod
    def of_line(cls, line: Mapping[str, Any]) -> "Outcome":
        """The outcome in a line, whatever else the line holds. Raises `ValueError` where it has none."""
        kinds = typing.get_type_hints(cls)
        expected = ("key", "error") if line.get("error") is not None else tuple(kinds)
        wrong = [name for name in expected if not _fits(kinds[name], line.get(name))]
        if wrong:
            raise ValueError(f"{wrong[0]} is missing, or of another type")
        fields: dict[str, Any] = {name: line[name] for name in expected}
        fields |= {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
        return cls(**fields)


def is_well_formed(text: str) -> bool:
    """Whether an answer's text is `<think>…</think><answer>X</answer>` with one letter X, blanks around each aside."""
    return _FORM.fullmatch(text) is not None


def _fits(kind: Any, value: Any) -> bool:
    """Whether a value from JSON is of a field's type, as far as what is done with it depends on that."""
    if typing.get_origin(kind) is tuple:
        return isinstance(value, list)
    if typing.get_origin(kind) is dict:
        return isinstance(value, dict)
    if isinstance(kind, types.UnionType):
        return any(_fits(one, value) for one in typing.get_args(kind))
    # JSON writes a whole number of seconds as an integer, and True is one for Python.
    return isinstance(value, (int, float) if kind is float else kind) and (kind is bool or not isinstance(value, bool))
