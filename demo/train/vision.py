"""Stage 1: the vision encoder learns to see before the decoder learns to speak.

Words carry almost all of a language loss, and few of them need the image, so an encoder that starts blind learns late.
Here it is told, for each visual token, which finding the token shows a part of and at which of its places, and for the
whole, which kind of scan with which finding it is. The two heads are thrown away.
"""

from typing import Any

import torch
from torch.nn import functional

from ..questions import Facts
from ..scans.catalog import KINDS, places_of
from .batch import images
from .pool import SIGHTS, Sample

_WHOLES = tuple(
    Facts(kind, finding, place)
    for kind in KINDS
    for finding in (None, *KINDS[kind].findings)
    for place in places_of(kind, finding)
)
# Most tokens show no finding; without this, saying so everywhere is a long plateau.
_BACKGROUND_WEIGHT = 0.15


class Heads(torch.nn.Module):
    """What a visual token shows, and what the whole image is."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.token = torch.nn.Linear(hidden, 1 + len(SIGHTS))
        self.whole = torch.nn.Linear(hidden, len(_WHOLES))


def features(model: Any, samples: list[Sample]) -> torch.Tensor:
    """The features [visual tokens of all samples, hidden] of the samples' scans."""
    batch = images(samples)
    return model.model.visual(batch.patches, grid_thw=batch.grids).pooler_output


@torch.no_grad()
def encode(model: Any, samples: list[Sample], batch: int = 16) -> list[torch.Tensor]:
    """The features [visual tokens, hidden] of each sample's scan."""
    encoded: list[torch.Tensor] = []
    for start in range(0, len(samples), batch):
        part = samples[start : start + batch]
        encoded.extend(features(model, part).split([len(sample.labels) for sample in part]))
    return encoded


def vision_loss(model: Any, heads: Heads, samples: list[Sample]) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss of a batch, and how much of it was right."""
    seen = features(model, samples)
    lengths = [len(sample.labels) for sample in samples]
    labels = torch.cat([torch.from_numpy(sample.labels).long() for sample in samples])
    wholes = torch.tensor([_WHOLES.index(sample.facts) for sample in samples])
    weights = torch.ones(1 + len(SIGHTS))
    weights[0] = _BACKGROUND_WEIGHT
    by_token = heads.token(seen)
    by_scan = heads.whole(torch.stack([part.mean(0) for part in seen.split(lengths)]))
    loss = functional.cross_entropy(by_token, labels, weights) + 0.5 * functional.cross_entropy(by_scan, wholes)
    shown = labels > 0
    return loss, {
        "scan": float((by_scan.argmax(1) == wholes).float().mean()),
        "found": float((by_token.argmax(1) == labels)[shown].float().mean()) if shown.any() else 1.0,
        "quiet": float((by_token.argmax(1) == 0)[~shown].float().mean()),
    }
