"""The checkpoint's tokenizer.json, checked before any work: the runtime reads it with the same library."""

from pathlib import Path

from tokenizers import Tokenizer

from ..runtime.errors import CheckpointError


def check_tokenizer(path: Path, image: str, image_token_id: int, vocab_size: int) -> None:
    """Raise `CheckpointError` unless `path` is a tokenizer whose image token stands once in the prompt's `image`."""
    if not path.is_file():
        raise CheckpointError(f"{path.parent} has no {path.name}; download the checkpoint's tokenizer too")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise CheckpointError(f"{path} is not a tokenizer ({error}); download it again") from error
    ids = tokenizer.encode(image, add_special_tokens=False).ids
    if ids.count(image_token_id) != 1:
        raise CheckpointError(
            f"{path}: the chat template's image, {image!r}, has {ids.count(image_token_id)} times the image_token_id "
            f"{image_token_id} of config.json; download the checkpoint again"
        )
    tokens = tokenizer.get_vocab_size(with_added_tokens=True)
    if tokens > vocab_size:
        raise CheckpointError(f"{path} has {tokens} tokens and config.json's vocab_size is {vocab_size}")
