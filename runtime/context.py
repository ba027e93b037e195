"""How many tokens a prompt and its answer may have together."""

from .bundle import Bundle
from .errors import InputError
from .processor import Request

# 5,000 visual tokens and a long conversation; the cache takes memory only as far as it is used.
DEFAULT_MAX_LENGTH = 8192


def context_length(bundle: Bundle, max_length: int | None) -> int:
    """The cache's length in tokens. Raises `InputError` for one that the model does not hold."""
    limit = bundle.manifest.text.max_positions
    if max_length is None:
        return min(DEFAULT_MAX_LENGTH, limit)
    if not 2 <= max_length <= limit:
        raise InputError(f"max_length is {max_length}; this model takes 2 to {limit}")
    return max_length


def check_fit(request: Request, max_length: int) -> None:
    """Raise `InputError`, with the numbers, where the prompt leaves no room for an answer."""
    tokens = len(request.token_ids)
    if tokens >= max_length:
        raise InputError(
            f"the prompt has {tokens} tokens ({request.visual_tokens} of them visual) and the context holds "
            f"{max_length}; lower --max-pixels, give fewer images, or raise --max-length"
        )
