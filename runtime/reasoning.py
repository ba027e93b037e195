"""Show a model's reasoning as it is generated: the text without its tags, up to the answer."""

import re
from collections.abc import Sequence

_TAGS = ("<think>", "</think>", "<answer>")
_TAG = re.compile("|".join(_TAGS))


class ReasoningFilter:
    """Turns pieces of generated text into pieces of reasoning.

    Think tags are left out, and so is everything from `<answer>` on. A tag may be split over any number of pieces: what
    could still become one is held back until it does or cannot.
    """

    def __init__(self) -> None:
        self._held = ""
        self._answered = False

    def feed(self, piece: str) -> str:
        """The reasoning that `piece` completes."""
        if self._answered:
            return ""
        text, self._held = self._held + piece, ""
        shown: list[str] = []
        while match := _TAG.search(text):
            shown.append(text[: match.start()])
            if match[0] == "<answer>":
                self._answered = True
                return "".join(shown)
            text = text[match.end() :]
        keep = beginnings(text, _TAGS)
        self._held = text[len(text) - keep :]
        return "".join([*shown, text[: len(text) - keep]])

    def flush(self) -> str:
        """What was held back and became no tag."""
        held, self._held = self._held, ""
        return "" if self._answered else held


def beginnings(text: str, words: Sequence[str]) -> int:
    """Length of the longest end of `text` that one of `words` begins with, the whole word left out."""
    longest = max((len(word) for word in words), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(word.startswith(text[-length:]) for word in words):
            return length
    return 0
