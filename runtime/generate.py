"""The decoding loop: token by token, or several at once where it is likely or certain what comes."""

from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from .constrain import AnswerForm
from .detokenize import TextStream
from .logits import Logits
from .lookup import PromptLookup

FinishReason = Literal["end", "answer", "length", "context", "stop"]
"""Why decoding stopped: an end token, a closed answer, --max-new-tokens, a full context, or a reader who had enough."""

STOP_TEXT = "</answer>"

Choose = Callable[[Logits, Sequence[int]], int]
"""Chooses a token from the logits [vocab_size] and the new tokens so far."""

Rows = NDArray[np.float32] | Sequence[Logits]
"""The logits after each token of a call."""


class Cache(Protocol):
    """What the loop asks of a model: to append tokens, and to take the last ones back."""

    def extend(self, token_ids: Sequence[int]) -> Rows:
        """Append `token_ids`; the logits [tokens, vocab_size] after each of them."""
        ...

    def rewind(self, tokens: int) -> None:
        """Take back the last `tokens`."""
        ...


@dataclass(frozen=True)
class Token:
    """One new token: its id, the text that it completes, and why decoding ends with it, if it does.

    The texts of all tokens add up to the decoding of all ids.
    """

    id: int
    text: str
    finish_reason: FinishReason | None


@dataclass(frozen=True)
class Limits:
    """When decoding ends.

    free_slots: how many tokens the cache still takes; the last token of an answer needs none.
    """

    end_ids: Collection[int]
    max_new_tokens: int
    free_slots: int

    def reason(self, token_id: int, count: int, *, answered: bool) -> FinishReason | None:
        """Why decoding ends with the `count`-th token, if it does; the model's own end goes before a limit."""
        if token_id in self.end_ids:
            return "end"
        if answered:
            return "answer"
        if count >= self.max_new_tokens:
            return "length"
        return "context" if count > self.free_slots else None

    def room(self, count: int) -> int:
        """How many tokens may be drafted beyond the `count`-th, which goes into the cache with them."""
        return max(0, min(self.max_new_tokens - count - 1, self.free_slots - count))


@dataclass(frozen=True)
class Feed:
    """A call that decoding waits for: take the last `surplus` tokens back, then append `token_ids`."""

    token_ids: list[int]
    surplus: int = 0


Generation = Generator[Token | Feed, Rows, None]
"""An answer in the making. It yields each new token, and a `Feed` whose logits [tokens, vocab_size] it wants sent."""


@dataclass(frozen=True)
class _Draft:
    """Tokens that go through the model unasked for; `looked_up` where they are only likely."""

    token_ids: list[int]
    looked_up: bool = False


def generate(
    logits: Logits,
    choose: Choose,
    *,
    tokenizer: Tokenizer,
    limits: Limits,
    form: AnswerForm | None = None,
    lookup: PromptLookup | None = None,
    one_by_one: bool = False,
) -> Generation:
    """Yield what `choose` takes from the logits after the prompt [vocab_size], and so on, until an end is reached.

    form: what the text must look like; it overrules `choose` where the text would not. lookup: drafts of what may
    come. A draft goes through the model in one call with the token before it, and as much of it is kept as `choose`
    would have written: the tokens are those of decoding without drafts. one_by_one: no call is of more than a token,
    not even where it is certain what comes.
    """
    stream, tail = TextStream(tokenizer), ""
    new_ids: list[int] = []
    rows: Rows = [logits]
    draft = _Draft([])
    accepted = surplus = 0
    while True:
        for accepted, row in enumerate(rows):
            surplus = len(draft.token_ids) - accepted
            token_id = choose(row, new_ids)
            if form is not None:
                token_id = form.choose(row, token_id)
                branch = form.wants_branch
                if branch and len(branch) <= limits.free_slots - len(new_ids):
                    form.give_branch((yield Feed(branch, surplus))[-1])
                    draft, surplus = _Draft(draft.token_ids[:accepted], draft.looked_up), len(branch)
            new_ids.append(token_id)
            text = stream.feed(token_id)
            tail = (tail + text)[-len(STOP_TEXT) - len(text) :]
            reason = limits.reason(token_id, len(new_ids), answered=STOP_TEXT in tail)
            if form is not None:
                form.accept(token_id, text)
            if lookup is not None:
                lookup.feed(token_id)
            yield Token(token_id, text + stream.flush() if reason else text, reason)
            if reason:
                return
            if draft.token_ids[accepted : accepted + 1] != [token_id]:
                break
        if lookup is not None and draft.looked_up:
            lookup.record(len(draft.token_ids), accepted)
        draft = _next_draft(0 if one_by_one else limits.room(len(new_ids)), form, lookup)
        rows = yield Feed([new_ids[-1], *draft.token_ids], surplus)


def generate_alone(generation: Generation, cache: Cache) -> Iterator[Token]:
    """The tokens of an answer that has `cache` to itself."""
    event = next(generation, None)
    while event is not None:
        if isinstance(event, Token):
            yield event
            event = next(generation, None)
        else:
            cache.rewind(event.surplus)
            event = generation.send(cache.extend(event.token_ids))


def _next_draft(room: int, form: AnswerForm | None, lookup: PromptLookup | None) -> _Draft:
    """What comes next as far as it can be known, at most `room` tokens."""
    if form is not None and form.forced:
        return _Draft(form.forced[:room])
    return _Draft(lookup.draft()[:room], looked_up=True) if lookup is not None else _Draft([])
