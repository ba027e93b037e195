"""How an answer is decoded: everything that can be chosen about it."""

from dataclasses import dataclass, field

from .errors import InputError
from .sampling import Sampling, is_whole

DEFAULT_MAX_NEW_TOKENS = 512
MOST_DRAFTED = 7


@dataclass(frozen=True)
class Decoding:
    """max_new_tokens: after how many tokens an answer is cut.

    sampling: greedy by default. constrained: let the answer to a multiple-choice question always be one of its letters.
    think_tokens: after how many tokens the reasoning is then ended; None leaves just room for the answer.
    max_draft: at most so many tokens are drafted by prompt lookup, 0 to 7; 0 turns it off.
    Raises `InputError` for a number out of range.
    """

    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    sampling: Sampling = field(default_factory=Sampling)
    constrained: bool = True
    think_tokens: int | None = None
    max_draft: int = MOST_DRAFTED

    def __post_init__(self) -> None:
        if not (is_whole(self.max_new_tokens) and self.max_new_tokens >= 1):
            raise InputError(f"max_new_tokens is {self.max_new_tokens!r}; at least 1 is needed")
        if self.think_tokens is not None and not (is_whole(self.think_tokens) and self.think_tokens >= 0):
            raise InputError(f"think_tokens is {self.think_tokens!r}; give 0 or more")
        if not (is_whole(self.max_draft) and 0 <= self.max_draft <= MOST_DRAFTED):
            raise InputError(f"max_draft is {self.max_draft!r}; give 0 to {MOST_DRAFTED}")


DEFAULT_DECODING = Decoding()
