"""Stage 1: the vision encoder learns to see before the decoder learns to speak.

Words carry almost all of a language loss, and few of them need the image, so an encoder that starts blind learns late.
Here it is told, for each visual token, which finding the token shows a part of and at which place that finding is, and
for the whole, which kind of scan with which finding it is. Finding and place are told apart, so that a fracture of one
finger teaches what a fracture of another looks like. The three linear heads are thrown away.
"""

from typing import Any

import torch
from torch.nn import functional

from ..phrases import PLACE_PHRASES
from ..scans.catalog import KINDS
from .batch import images
from .pool import SIGHTS, Sample

_FINDINGS = tuple(dict.fromkeys(finding for finding, _ in SIGHTS))
_PLACES = tuple(PLACE_PHRASES)
_WHOLES = tuple((kind, finding) for kind in KINDS for finding in (None, *KINDS[kind].findings))
# By label of a visual token: its finding, 0 for none, and its finding's place, -1 for none.
_FINDING_OF = torch.tensor([0, *(1 + _FINDINGS.index(finding) for finding, _ in SIGHTS)])
_PLACE_OF = torch.tensor([-1, *(_PLACES.index(place) if place else -1 for _, place in SIGHTS)])
# Most tokens show no finding; at the same weight, saying so everywhere is a long plateau.
_BACKGROUND_WEIGHT = 0.15
# The weight of all tokens together that show one scan's finding: a fracture has one or two, an effusion a dozen.
_FINDING_WEIGHT = 5.0


class Heads(torch.nn.Module):
    """What a visual token shows, where that is, and what the whole image is."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.finding = torch.nn.Linear(hidden, 1 + len(_FINDINGS))
        self.place = torch.nn.Linear(hidden, len(_PLACES))
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
    labels = [torch.from_numpy(sample.labels).long() for sample in samples]
    weights = torch.cat([_weights(label) for label in labels])
    findings, places = _FINDING_OF[torch.cat(labels)], _PLACE_OF[torch.cat(labels)]
    wholes = torch.tensor([_WHOLES.index((sample.facts.kind, sample.facts.finding)) for sample in samples])
    by_token, by_place = heads.finding(seen), heads.place(seen)
    by_scan = heads.whole(torch.stack([part.mean(0) for part in seen.split([len(label) for label in labels])]))
    placed = places >= 0
    loss = _weighted(by_token, findings, weights) + 0.5 * functional.cross_entropy(by_scan, wholes)
    loss = loss + 0.5 * _weighted(by_place[placed], places[placed], weights[placed])
    shown = findings > 0
    return loss, {
        "scan": _share(by_scan.argmax(1) == wholes),
        "found": _share((by_token.argmax(1) == findings)[shown]),
        "placed": _share((by_place.argmax(1) == places)[placed]),
        "quiet": _share((by_token.argmax(1) == 0)[~shown]),
    }


def _weights(labels: torch.Tensor) -> torch.Tensor:
    """[visual tokens of a scan] labels -> each one's weight."""
    shown = labels > 0
    return torch.where(shown, _FINDING_WEIGHT / shown.sum().clamp(min=1), _BACKGROUND_WEIGHT)


def _weighted(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The weighted mean of the cross-entropy; 0 where there is nothing to average."""
    return (weights * functional.cross_entropy(logits, targets, reduction="none")).sum() / weights.sum().clamp(min=1)


def _share(right: torch.Tensor) -> float:
    return float(right.float().mean()) if len(right) else 1.0
