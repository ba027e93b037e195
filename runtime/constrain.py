"""Answers that always parse: plain decoding while its text is well-formed, what is missing where it is not."""

import re
from collections.abc import Collection, Sequence

import numpy as np
from tokenizers import Tokenizer

from .logits import Logits
from .options import AFTER_LETTER, END_ANSWER, Ballot, Due, beginning, ways_of

_THINK, _END_THINK, _ANSWER = "<think>", "</think>", "<answer>"
# The letter's token may hold the `>`, so what is forced ends before it.
_OPEN_ANSWER = _ANSWER[:-1]
_TO_ANSWER = "\n\n" + _OPEN_ANSWER
# What ends thinking. `</answer>` may not, but decoding stops at it.
_ENDING = re.compile(f"{_END_THINK}|{_ANSWER}|{END_ANSWER}")
# Characters of thinking that are kept: no less than any tag has.
_TAIL = 16

MAX_BLANKS = 8
"""How many tokens of nothing but white space may stand behind `</think>`: a model may emit newlines for ever."""

MAX_ENDING = len(_THINK + _END_THINK + _ANSWER + "X" + END_ANSWER) + MAX_BLANKS
"""The most tokens that follow the thinking's budget: one a character, as in a vocabulary of bytes, and blanks."""


def ending_tokens(tokenizer: Tokenizer) -> int:
    """The most tokens of `tokenizer` that follow the thinking's budget: at most `MAX_ENDING`."""
    pieces = (_THINK + _END_THINK + _TO_ANSWER, ">", "X", END_ANSWER)
    return sum(len(tokenizer.encode(piece, add_special_tokens=False).ids) for piece in pieces) + MAX_BLANKS


class AnswerForm:
    r"""Holds one answer to the form `<think>...</think> <answer>X</answer>` with X among the offered letters.

    The tokens are those of plain decoding for as long as their text is well-formed:

        thinking   any text without `</think>`, `<answer>` or `</answer>`; a `<think>` before it is not asked for
        ending     `</think>`, white space, `<answer>`, white space, X, white space, `</answer>`, anything in the same
                   token. `<answer>` without `</think>` is taken as it is.

    A token that breaks this is replaced, and so is an end token before `</answer>`: by the likeliest offered letter
    where the letter is due, elsewhere by what is missing of `</think>\n\n<answer` or `</answer>`. So is thinking cut
    after `think_tokens` tokens, and the whole takes `think_tokens + MAX_ENDING` at most. Where that strikes before
    `<think>` is written, `<think></think>` is completed.

    For each token, in this order: `choose` (or the next of `forced`), `wants_branch` if probabilities are of
    interest, `accept`.
    """

    def __init__(
        self, tokenizer: Tokenizer, letters: Sequence[str], end_ids: Collection[int], think_tokens: int
    ) -> None:
        self._tokenizer = tokenizer
        self._end_ids = frozenset(end_ids)
        self._think_tokens = think_tokens
        self._form = _form(letters)
        self._ballot = Ballot(ways_of(tokenizer), letters)
        self._tokens = 0
        self._blanks = 0
        self._queue: list[int] = []
        # The last tokens, while they end within a character.
        self._pending: list[int] = []
        self._tail = ""
        # The text from what ends thinking on; None until then.
        self._ending: str | None = None
        self._end_thinking_if_spent()

    def choose(self, logits: Logits, plain: int) -> int:
        """The token to write: `plain`, what plain decoding or sampling chose, or what the form demands instead.

        logits: [vocab_size], what `plain` was chosen from; read only where the letter may come. Call it once a token.
        """
        if self._queue:
            return self._queue[0]
        if self._answered:
            return plain
        new = self._tokenizer.decode([*self._pending, plain])
        ending = self._ending_with(new)
        ends = plain in self._end_ids
        if ending is None and not ends:
            return plain
        fits = ending is not None and not ends and self._fits(ending, new)
        if not fits:
            self._force()
            if self._queue:
                return self._queue[0]
        due = _letter_due(self._ending if self._ending is not None else (ending or "")[: -len(new)])
        if due is None:
            return plain
        values = np.asarray(logits)
        chosen = plain if fits else self._ballot.best(values, due)
        self._ballot.count(values, due, chosen)
        return chosen

    def accept(self, token_id: int, text: str) -> None:
        """Take note of a token that was written and of the text it completed, as `TextStream.feed` gives it."""
        self._tokens += 1
        self._pending.append(token_id)
        if text or not self._tokenizer.decode(self._pending):
            self._pending.clear()
        if self._ending is None:
            self._ending = self._ending_with(text)
            self._tail = (self._tail + text)[-_TAIL:]
        else:
            self._ending += text
            self._blanks += text.isspace()
        if self._queue:
            self._queue.pop(0)
            if not self._queue and self._ending is None:
                self._ending = _OPEN_ANSWER
        else:
            self._end_thinking_if_spent()

    @property
    def forced(self) -> list[int]:
        """The tokens that follow whatever the logits say; they may be accepted without `choose`."""
        return list(self._queue)

    @property
    def probabilities(self) -> dict[str, float]:
        """Offered letter -> probability, in the order offered: see `Ballot`. Empty before the letter was chosen.

        Also empty where a single token wrote the letter and more of `<answer>` than its `>`.
        """
        return self._ballot.probabilities

    @property
    def wants_branch(self) -> list[int] | None:
        """Tokens to evaluate behind the history that `choose` saw, without the token it chose; usually None.

        Their logits, given to `give_branch`, complete `probabilities`. The text does not depend on them.
        """
        return self._ballot.wants_branch

    def give_branch(self, logits: Logits) -> None:
        """The logits [vocab_size] after the tokens of `wants_branch`."""
        self._ballot.give_branch(np.asarray(logits))

    @property
    def _answered(self) -> bool:
        return self._ending is not None and END_ANSWER in self._ending

    def _ending_with(self, new: str) -> str | None:
        """The ending if `new` is written; None if thinking goes on."""
        if self._ending is not None:
            return self._ending + new
        begin = _ENDING.search(self._tail + new)
        return (self._tail + new)[begin.start() :] if begin else None

    def _fits(self, ending: str, new: str) -> bool:
        """Whether `ending` is the beginning of a well-formed one, and `new`, its last token, leads towards its end."""
        blank = self._ending is not None and new.isspace()
        return bool(new) and not (blank and self._blanks >= MAX_BLANKS) and bool(self._form.fullmatch(ending))

    def _end_thinking_if_spent(self) -> None:
        if self._ending is None and self._tokens >= self._think_tokens:
            self._force()

    def _force(self) -> None:
        """Queue what is missing up to the next place with a choice: up to the letter, or up to the end."""
        if self._ending is None:
            text = _rest_of_thinking(self._tail + self._tokenizer.decode(self._pending))
        else:
            text = _rest_of_ending(self._ending)
        self._queue = self._tokenizer.encode(text, add_special_tokens=False).ids
        if not text and self._ending is None:
            self._ending = _OPEN_ANSWER


def _form(letters: Sequence[str]) -> re.Pattern[str]:
    """What matches every beginning of a well-formed ending."""
    to_answer = rf"(?:{_END_THINK}\s*)?"
    letter = rf"\s*(?:[{''.join(letters)}]{AFTER_LETTER})?"
    return re.compile(
        f"{beginning(_END_THINK)}|{to_answer}{beginning(_ANSWER)}|{to_answer}{_ANSWER}{letter}", re.DOTALL
    )


def _letter_due(ending: str) -> Due | None:
    """What is due before the letter, where the letter may come next; None elsewhere."""
    if ending.endswith(_OPEN_ANSWER):
        return ">"
    return "" if ending.rstrip().endswith(_ANSWER) else None


def _rest_of_thinking(text: str) -> str:
    """What is missing behind thinking that ends in `text`, up to the letter. Part of a tag may be there already."""
    whole = _END_THINK + _TO_ANSWER
    if len(text) < len(_THINK) and _THINK.startswith(text):
        return _THINK[len(text) :] + whole
    if begun := _overlap(text, _END_THINK):
        return whole[begun:]
    begun = _overlap(text, _OPEN_ANSWER)
    return _OPEN_ANSWER[begun:] if begun else whole


def _rest_of_ending(ending: str) -> str:
    """What is missing of an ending up to its letter, or behind its letter."""
    _, opened, inside = ending.partition(_ANSWER)
    if inside.strip():
        return END_ANSWER[len(inside.lstrip()[1:].lstrip()) :]
    if opened or ending.endswith(_OPEN_ANSWER):
        return ""
    behind = ending.removeprefix(_END_THINK)
    if _TO_ANSWER.startswith(behind):
        return _TO_ANSWER[len(behind) :]
    return _OPEN_ANSWER[len(behind.lstrip()) :]


def _overlap(text: str, tag: str) -> int:
    """How much of `tag`'s beginning `text` ends in."""
    return next((n for n in range(len(tag), 0, -1) if text.endswith(tag[:n])), 0)
