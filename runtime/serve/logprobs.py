"""OpenAI's log probabilities of tokens: what the model itself finds likely, whatever chose the token.

They are read off the logits after the answer is complete (`MedVLM.score`), before temperature, top-p and the answer's
form: a letter that the form made the answer be may have been unlikely.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ..model import MedVLM
from ..processor import Request
from ..result import Answer

# The logits of all tokens are held together: 0.3 GB at full size.
MOST_TOKENS = 512
MOST_TOP = 20


@dataclass(frozen=True)
class TokenLikelihood:
    """A token's id and the logarithm of its probability, and those of the likeliest tokens in its place."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def measure(model: MedVLM, request: Request, answer: Answer, most: int) -> list[TokenLikelihood]:
    """The likelihood of each token of an answer but the one that ends it, with the `most` likeliest in its place."""
    ends = model.manifest.generation.eos_token_ids
    token_ids = [token_id for token_id in answer.token_ids if token_id not in ends]
    if not token_ids:
        return []
    rows = model.score(request, token_ids)
    return [likelihood(row, token_id, most) for row, token_id in zip(rows, token_ids, strict=True)]


def likelihood(logits: NDArray[np.float32], token_id: int, most: int) -> TokenLikelihood:
    """A token's among logits [vocab_size], with the `most` likeliest in order."""
    scores = logits.astype(np.float64)
    scores -= scores.max()
    scores -= np.log(np.exp(scores).sum())
    kept = min(most, scores.size)
    best = np.argpartition(-scores, kept - 1)[:kept] if kept else np.empty(0, np.int64)
    best = best[np.argsort(-scores[best], kind="stable")]
    return TokenLikelihood(token_id, float(scores[token_id]), tuple((int(one), float(scores[one])) for one in best))


def written(likelihoods: list[TokenLikelihood], tokenizer: Tokenizer) -> dict[str, Any]:
    """OpenAI's object of them."""
    content = [
        _written(one.token_id, one.logprob, tokenizer)
        | {"top_logprobs": [_written(token_id, logprob, tokenizer) for token_id, logprob in one.top]}
        for one in likelihoods
    ]
    return {"content": content, "refusal": None}


def _written(token_id: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    content = token_bytes(tokenizer, token_id)
    return {"token": content.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(content)}


def token_bytes(tokenizer: Tokenizer, token_id: int) -> bytes:
    """The bytes that a token of a byte-level vocabulary stands for, which may be a part of a character."""
    token = tokenizer.id_to_token(token_id) or ""
    if any(letter not in _BYTES for letter in token):
        # Special tokens are written as they are.
        return token.encode()
    return bytes(_BYTES[letter] for letter in token)


def _alphabet() -> dict[str, int]:
    """The letters in which byte-level vocabularies write bytes (GPT-2's `bytes_to_unicode`).

    Visible characters of Latin-1 stand for themselves, all other bytes for the letters from U+0100 on, in order.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTES = _alphabet()
