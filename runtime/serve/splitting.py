"""Generated text as it comes: where it must stop, and what of it is reasoning."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..reasoning import beginnings

_OPEN, _CLOSE, _ANSWER = "<think>", "</think>", "<answer>"


class StopFilter:
    """Ends a text before the first of some words that stands in it.

    What could still become one of them is held back until it does or cannot.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""

    def feed(self, piece: str) -> tuple[str, bool]:
        """The text that `piece` completes, and whether it ends there."""
        text, self._held = self._held + piece, ""
        found = [place for place in map(text.find, self._stops) if place >= 0]
        if found:
            return text[: min(found)], True
        keep = beginnings(text, self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """What was held back and became none of the words."""
        held, self._held = self._held, ""
        return held


@dataclass(frozen=True)
class Part:
    """A piece of text, and whether it is reasoning."""

    text: str
    reasoning: bool


class ThinkSplitter:
    """Turns pieces of generated text into pieces of reasoning and of the rest.

    Reasoning is what stands between `<think>` and `</think>`, or `<answer>` where that comes first; these two think
    tags are left out, all other text is kept as it is but for blanks around the two parts. A tag may be split over any
    number of pieces.
    """

    def __init__(self) -> None:
        self._held = ""
        self._thinking = False
        # Blanks that are dropped unless text follows, for each part; None before its first text.
        self._blanks: dict[bool, str | None] = {True: None, False: None}

    def feed(self, piece: str) -> list[Part]:
        """What `piece` completes."""
        text, self._held = self._held + piece, ""
        parts: list[Part] = []
        while True:
            tags = (_CLOSE, _ANSWER) if self._thinking else (_OPEN, _CLOSE)
            found = [(place, tag) for tag in tags if (place := text.find(tag)) >= 0]
            if not found:
                break
            place, tag = min(found)
            self._add(text[:place], parts)
            # `<answer>` belongs to the rest; a `</think>` that closes nothing is left out as well.
            text = text[place if tag == _ANSWER else place + len(tag) :]
            self._thinking = tag == _OPEN
        keep = beginnings(text, tags)
        self._held = text[len(text) - keep :]
        self._add(text[: len(text) - keep], parts)
        return parts

    def flush(self) -> list[Part]:
        """What was held back and became no tag."""
        parts: list[Part] = []
        self._add(self._held, parts)
        self._held = ""
        return parts

    def _add(self, text: str, parts: list[Part]) -> None:
        """Append `text` to what is thought or said now, without the blanks at that part's beginning and end."""
        blanks = self._blanks[self._thinking]
        text = text.lstrip() if blanks is None else blanks + text
        shown = text.rstrip()
        if shown:
            parts.append(Part(shown, self._thinking))
        if shown or blanks is not None:
            self._blanks[self._thinking] = text[len(shown) :]
