"""Token ids to text while they come."""

from tokenizers import Tokenizer

_REPLACEMENT = "\ufffd"


class TextStream:
    """Gives the text that each token completes; the pieces add up to the decoding of all tokens.

    A byte-level token may end in the middle of a character, which decodes to U+FFFD: such text is held back until the
    character is whole. (tokenizers has a DecodeStream of its own, which panics on bytes that never become one.)
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._pending: list[int] = []

    def feed(self, token_id: int) -> str:
        """The text that `token_id` completes, special tokens left out."""
        self._pending.append(token_id)
        text = self._tokenizer.decode(self._pending)
        if text.endswith(_REPLACEMENT):
            return ""
        self._pending.clear()
        return text

    def flush(self) -> str:
        """The text of the tokens at the end that completed nothing."""
        text = self._tokenizer.decode(self._pending)
        self._pending.clear()
        return text
