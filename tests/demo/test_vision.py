"""What the vision encoder is taught: which token shows what, and how much each counts."""

import math

import numpy as np
import pytest
import torch
from medvlm.demo.questions import Facts
from medvlm.demo.scans.catalog import KINDS
from medvlm.demo.train import vision
from medvlm.demo.train.model import TEXT, new_model
from medvlm.demo.train.pool import SIGHTS, Sample
from medvlm.demo.train.tokenizer import train_tokenizer
from medvlm.demo.train.vision import Heads, vision_loss


def test_labels_are_taken_apart_into_finding_and_place() -> None:
    assert int(vision._FINDING_OF[0]) == 0
    assert int(vision._PLACE_OF[0]) == -1
    for label, (finding, place) in enumerate(SIGHTS, 1):
        assert vision._FINDINGS[int(vision._FINDING_OF[label]) - 1] == finding
        index = int(vision._PLACE_OF[label])
        assert (vision._PLACES[index] if index >= 0 else None) == place


def test_a_finding_weighs_the_same_however_many_tokens_show_it() -> None:
    assert vision._weights(torch.tensor([0, 3, 3, 0])).tolist() == pytest.approx([0.15, 2.5, 2.5, 0.15])
    assert vision._weights(torch.tensor([7, 0])).tolist() == pytest.approx([5, 0.15])
    assert vision._weights(torch.tensor([0, 0])).tolist() == pytest.approx([0.15, 0.15])


def sample(finding: str | None, place: str | None, *shown: int) -> Sample:
    """A 56x56 chest X-ray, four visual tokens, of which `shown` show the finding."""
    labels = np.zeros(4, np.uint8)
    labels[list(shown)] = 1 + SIGHTS.index((finding, place)) if finding else 0
    return Sample(np.full((56, 56), 90, np.uint8), labels, Facts("chest X-ray", finding, place), "finding")


def test_loss_of_heads_that_know_nothing_is_that_of_guessing() -> None:
    model, heads = new_model(train_tokenizer(200), 0), Heads(TEXT.hidden_size)
    for parameter in heads.parameters():
        torch.nn.init.zeros_(parameter)
    loss, measures = vision_loss(model, heads, [sample("nodule", "left", 1), sample(None, None)])
    # log n each: 18 findings and none, 9 places at half weight, 19 + 7 findings of kinds at half weight.
    wholes = sum(1 + len(kind.findings) for kind in KINDS.values())
    by_hand = math.log(19) + 0.5 * math.log(9) + 0.5 * math.log(wholes)
    assert float(loss.detach()) == pytest.approx(by_hand, rel=1e-5)
    assert measures["quiet"] == 1.0
    assert measures["found"] == 0.0


def test_scans_without_a_place_have_no_loss_of_place() -> None:
    model, heads = new_model(train_tokenizer(200), 0), Heads(TEXT.hidden_size)
    for batch in ([sample(None, None)], [sample("enlarged heart", None, 0, 1)]):
        loss, measures = vision_loss(model, heads, batch)
        assert torch.isfinite(loss)
        assert measures["placed"] == 1.0
        loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in heads.parameters() if p.grad is not None)
