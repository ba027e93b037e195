"""What earlier questions left behind: image features, and caches whose beginning another question shares."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .decoder import rounded_up
from .device_decoder import AnyDecoder
from .errors import MedVLMError


@dataclass(frozen=True)
class ImageSpan:
    """An image in a prompt: the digest of what the encoder reads, and the slots `start`..`end` - 1 of its tokens."""

    digest: str
    start: int
    end: int


@dataclass(frozen=True)
class Contents:
    """What a cache holds, or a request wants it to: token ids [tokens], and the images that image tokens stand for."""

    token_ids: NDArray[np.int64]
    images: tuple[ImageSpan, ...]

    def common_prefix(self, other: "Contents") -> int:
        """The number of slots at the beginning that hold the same in both."""
        length = min(len(self.token_ids), len(other.token_ids))
        different = np.flatnonzero(self.token_ids[:length] != other.token_ids[:length])
        common = int(different[0]) if different.size else length
        for mine, theirs in zip(self.images, other.images, strict=False):
            if mine.start < common and mine != theirs:
                return min(common, mine.start, theirs.start)
        return common


_NOTHING = Contents(np.empty(0, np.int64), ())


class PrefixCache:
    """Sequences and image features of earlier questions, at most `budget` bytes of them, least recently used out.

    One sequence is always kept, whatever its size: it is the one at work. With a budget of 0 nothing is ever reused.
    """

    def __init__(self, budget: int, bytes_per_token: int, make_decoder: Callable[[], AnyDecoder]) -> None:
        """budget: bytes. bytes_per_token: what a token takes in a sequence that `make_decoder` makes."""
        self.budget = budget
        self._bytes_per_token, self._make_decoder = bytes_per_token, make_decoder
        self._features: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        self._sequences: list[tuple[AnyDecoder, Contents]] = []

    @property
    def nbytes(self) -> int:
        """Bytes that sequences and features take."""
        sequences = sum(decoder.nbytes for decoder, _ in self._sequences)
        return sequences + sum(features.nbytes for features in self._features.values())

    def features(self, digest: str, encode: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
        """The features [visual tokens, out_dim] of an image, from the cache or from `encode`."""
        found = self._features.pop(digest, None)
        features = encode() if found is None else found
        if self.budget:
            self._features[digest] = features
            self._shrink()
        return features

    def sequence(self, wanted: Contents, slots: int) -> AnyDecoder:
        """A decoder with room for `slots`, whose `length` first ones already hold the beginning of `wanted`.

        At least the last token of `wanted` is never there: it must go through the model for its logits.
        What else it held is free to be overwritten, and it counts as holding `wanted` from now on: call `forget` if
        that fails.
        """
        shared = [self._shared(contents, wanted) for _, contents in self._sequences]
        best = max(range(len(shared)), key=lambda i: (shared[i], i), default=None)
        if best is None or not self._worth_reusing(shared[best], wanted):
            best = self._free_sequence(rounded_up(slots) * self._bytes_per_token)
        decoder, contents = self._sequences[best]
        decoder.length = self._shared(contents, wanted)
        try:
            decoder.reserve(slots)
        except MedVLMError:
            if len(self._sequences) == 1:
                raise
            # What earlier questions left takes the memory that this one needs.
            best, self._sequences = 0, [self._sequences[best]]
            decoder.reserve(slots)
        # Kept until here: without memory it still holds what it did.
        self._sequences.pop(best)
        self._sequences.append((decoder, wanted))
        self._shrink()
        return decoder

    def forget(self, decoder: AnyDecoder) -> None:
        """Take it that `decoder` holds nothing: what filled it did not come to its end."""
        self._sequences = [(d, _NOTHING if d is decoder else contents) for d, contents in self._sequences]

    def _shared(self, contents: Contents, wanted: Contents) -> int:
        """Slots of `contents` that `wanted` can keep."""
        return min(contents.common_prefix(wanted), len(wanted.token_ids) - 1) if self.budget else 0

    def _worth_reusing(self, shared: int, wanted: Contents) -> bool:
        """Whether a sequence with so much in common is to be gone on with, and not kept for its own questions."""
        return shared > 0 and all(span.end <= shared for span in wanted.images[:1])

    def _free_sequence(self, needed: int) -> int:
        """The index of a sequence to overwrite: a new one where `needed` bytes have room, or the oldest."""
        while len(self._sequences) > 1 and self.nbytes + needed - self._sequences[0][0].nbytes > self.budget:
            self._sequences.pop(0)
        if not self._sequences or self.nbytes + needed <= self.budget:
            self._sequences.insert(0, (self._make_decoder(), _NOTHING))
        return 0

    def _shrink(self) -> None:
        """Drop the oldest sequences, then the oldest features, until the rest fits."""
        while self.nbytes > self.budget and len(self._sequences) > 1:
            self._sequences.pop(0)
        while self.nbytes > self.budget and self._features:
            self._features.popitem(last=False)


def find_spans(
    token_ids: NDArray[np.int64], image_token_id: int, images: Sequence[tuple[str, int]]
) -> tuple[ImageSpan, ...]:
    """Where each image, given as its digest and its number of visual tokens, lies in `token_ids` [tokens]."""
    slots = np.flatnonzero(token_ids == image_token_id)
    ends = np.cumsum([count for _, count in images])
    return tuple(
        ImageSpan(digest, int(slots[end - count]), int(slots[end - 1]) + 1)
        for (digest, count), end in zip(images, ends, strict=True)
    )
