"""Questions of a given size about images of noise: what a benchmark asks, whatever the bundle's vocabulary."""

import dataclasses
import io

import numpy as np
from PIL import Image

from ..model import MedVLM
from ..processor import Request, lay_out


def noise_image(side: int, rng: np.random.Generator) -> bytes:
    """The PNG of a square image of coarse noise, of `side` pixels."""
    coarse = rng.integers(0, 256, (-(-side // 8), -(-side // 8)), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def make_request(model: MedVLM, image: bytes, text_tokens: int, rng: np.random.Generator) -> Request:
    """A question about `image` with `text_tokens` tokens of text in all, those of the chat template included.

    The question's tokens are drawn at random. A template that is longer is left as it is.
    """
    request = model.processor.prepare([image], "x", raw=True)
    (span,) = request.contents.images
    missing = text_tokens - (len(request.token_ids) - request.visual_tokens)
    # Behind the token that ends the image.
    at = min(span.end + 1, len(request.token_ids))
    words = rng.integers(0, model.processor.tokenizer.get_vocab_size(with_added_tokens=False), max(0, missing))
    ids = np.insert(request.token_ids, at, words)
    positions, contents = lay_out(ids, model.manifest.image_token_id, request.images)
    return dataclasses.replace(request, token_ids=ids, positions=positions, contents=contents)
