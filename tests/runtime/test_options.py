"""Probabilities of the offered letters: values worked out by hand from scripted steps."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from medvlm.demo.evaluate import CHECKPOINT
from medvlm.demo.random_checkpoint import make_tokenizer
from medvlm.runtime import MedVLMError
from medvlm.runtime.constrain import AnswerForm
from medvlm.runtime.detokenize import TextStream
from medvlm.runtime.options import Ballot, margin, ways_of
from numpy.typing import NDArray
from tokenizers import Tokenizer, models

DEMO = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
BYTES = make_tokenizer()


@pytest.fixture(params=["demo", "qwen"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """Vocabularies with `>A`, `A` and ` A` as tokens."""
    return DEMO if request.param == "demo" else request.getfixturevalue("qwen")


def token(tokenizer: Tokenizer, piece: str) -> int:
    found = tokenizer.token_to_id(piece.replace(" ", "Ġ").replace("\n", "Ċ"))
    assert found is not None, f"no token {piece!r}"
    return found


def make_logits(tokenizer: Tokenizer, likely: Mapping[str, float]) -> NDArray[np.float32]:
    """The logarithms of single tokens' probabilities; what they lack of 1 goes to "x"."""
    logits = np.full(tokenizer.get_vocab_size() + 9, -np.inf, np.float32)
    rest = 1 - sum(likely.values())
    for piece, probability in {**likely, **({"x": rest} if rest > 1e-9 else {})}.items():
        logits[token(tokenizer, piece)] = np.log(probability)
    return logits


class Written:
    """A form whose text so far is `text`, and that is then told step by step what the model says and chooses."""

    def __init__(self, tokenizer: Tokenizer, text: str, letters: Sequence[str] = "AB") -> None:
        self.tokenizer = tokenizer
        self.form = AnswerForm(tokenizer, letters, (), 1000)
        self.stream = TextStream(tokenizer)
        for token_id in tokenizer.encode(text).ids:
            self.form.accept(token_id, self.stream.feed(token_id))

    def step(self, likely: Mapping[str, float], plain: str) -> str:
        """The piece that was written."""
        chosen = self.form.choose(make_logits(self.tokenizer, likely), token(self.tokenizer, plain))
        text = self.stream.feed(chosen)
        self.form.accept(chosen, text)
        return text


OPEN = "<think>x</think>\n\n<answer"


def test_one_token_way(tokenizer: Tokenizer) -> None:
    written = Written(tokenizer, OPEN)
    assert written.form.probabilities == {}
    assert written.step({">A": 0.4, ">B": 0.2, ">": 0.0005}, ">A") == ">A"
    assert written.form.probabilities == pytest.approx({"A": 0.4 / 0.6, "B": 0.2 / 0.6})
    assert written.form.wants_branch is None


def test_way_not_taken_is_asked_for_and_added(tokenizer: Tokenizer) -> None:
    written = Written(tokenizer, OPEN)
    written.step({">A": 0.4, ">B": 0.2, ">": 0.3}, ">A")
    assert written.form.wants_branch == [token(tokenizer, ">")]
    assert written.form.probabilities == pytest.approx({"A": 0.4 / 0.6, "B": 0.2 / 0.6})
    written.form.give_branch(make_logits(tokenizer, {"A": 0.1, " A": 0.1, "B": 0.7}))
    total = 0.4 + 0.3 * 0.2 + 0.2 + 0.3 * 0.7
    assert written.form.probabilities == pytest.approx({"A": 0.46 / total, "B": 0.41 / total})
    assert written.form.wants_branch is None
    written.form.give_branch(make_logits(tokenizer, {"B": 1}))
    assert written.form.probabilities == pytest.approx({"A": 0.46 / total, "B": 0.41 / total})


@pytest.mark.parametrize(("closer", "wanted"), [(0.0005, False), (0.0007, True)])
def test_branch_is_asked_for_above_a_thousandth_of_the_mass(tokenizer: Tokenizer, closer: float, wanted: bool) -> None:
    written = Written(tokenizer, OPEN)
    written.step({">A": 0.4, ">B": 0.2, ">": closer}, ">A")
    assert (written.form.wants_branch is not None) == wanted


def test_two_token_way_counts_both_steps(tokenizer: Tokenizer) -> None:
    written = Written(tokenizer, OPEN)
    assert written.step({">A": 0.1, ">B": 0.2, ">": 0.6}, ">") == ">"
    assert written.form.probabilities == {}
    assert written.form.wants_branch is None
    assert written.step({"A": 0.5, " A": 0.1, "B": 0.3}, "A") == "A"
    a, b = 0.1 + 0.6 * 0.6, 0.2 + 0.6 * 0.3
    assert written.form.probabilities == pytest.approx({"A": a / (a + b), "B": b / (a + b)})
    assert written.form.wants_branch is None


def test_blanks_that_were_taken_count_as_a_way(tokenizer: Tokenizer) -> None:
    written = Written(tokenizer, OPEN + ">")
    written.step({"A": 0.2, "\n": 0.5}, "\n")
    written.step({"B": 0.8, "A": 0.1}, "B")
    a, b = 0.2 + 0.5 * 0.1, 0.5 * 0.8
    assert written.form.probabilities == pytest.approx({"A": a / (a + b), "B": b / (a + b)})


def test_closer_with_a_newline_leaves_the_plain_closer_as_a_branch(tokenizer: Tokenizer) -> None:
    written = Written(tokenizer, OPEN)
    written.step({">A": 0.1, ">\n": 0.5, ">": 0.4}, ">\n")
    assert written.form.wants_branch == [token(tokenizer, ">")]
    written.form.give_branch(make_logits(tokenizer, {"B": 1}))
    written.step({"A": 1}, "A")
    assert written.form.probabilities == pytest.approx({"A": 0.6, "B": 0.4})


def test_opening_without_closed_thinking_counts_too(tokenizer: Tokenizer) -> None:
    written = Written(tokenizer, "<think>x <answer")
    written.step({">A": 0.3, ">B": 0.1}, ">B")
    assert written.form.probabilities == pytest.approx({"A": 0.75, "B": 0.25})


def test_replaced_letter_is_the_likeliest_over_all_ways(tokenizer: Tokenizer) -> None:
    written = Written(tokenizer, OPEN + ">")
    assert written.step({"A": 0.2, " A": 0.25, "B": 0.3}, "x") == " A"
    assert written.form.probabilities == pytest.approx({"A": 0.6, "B": 0.4})


@pytest.mark.parametrize(("closer", "said"), [(0.1, ">B"), (0.4, ">")])
def test_replaced_letter_waits_for_a_likelier_closer(tokenizer: Tokenizer, closer: float, said: str) -> None:
    written = Written(tokenizer, OPEN)
    assert written.step({">A": 0.05, ">B": 0.2, ">": closer}, "x") == said


def test_order_is_that_of_the_offer_and_other_letters_do_not_count(tokenizer: Tokenizer) -> None:
    written = Written(tokenizer, OPEN + ">", letters="CAB")
    written.step({"A": 0.1, "B": 0.2, "C": 0.3, "D": 0.4}, "D")
    assert list(written.form.probabilities.items()) == [
        ("C", pytest.approx(0.5)),
        ("A", pytest.approx(1 / 6)),
        ("B", pytest.approx(1 / 3)),
    ]


def test_vocabulary_of_bytes_has_the_two_token_way_alone() -> None:
    written = Written(BYTES, OPEN)
    assert written.step({"x": 0.9, ">": 0.1}, "x") == ">"
    written.step({"A": 0.3, "B": 0.1}, "A")
    assert written.form.probabilities == pytest.approx({"A": 0.75, "B": 0.25})


def test_letters_that_the_model_excludes_are_equal() -> None:
    written = Written(BYTES, OPEN + ">")
    assert written.step({"x": 1}, "x") == "A"
    assert written.form.probabilities == {"A": 0.5, "B": 0.5}


@given(
    st.lists(st.floats(-60, 60, width=32), min_size=6, max_size=6),
    st.floats(-1000, 1000),
    st.sampled_from([">A", ">B", ">"]),
)
def test_constant_added_to_the_logits_changes_nothing(values: list[float], constant: float, taken: str) -> None:
    pieces = [">A", ">B", ">", "A", "B", "x"]
    at = [token(DEMO, piece) for piece in pieces]
    logits = np.full(DEMO.get_vocab_size(), -80, np.float32)
    logits[at] = values

    def count(logits: NDArray[np.float32]) -> dict[str, float]:
        ballot = Ballot(ways_of(DEMO), "AB")
        ballot.count(logits, ">", token(DEMO, taken))
        if taken == ">":
            ballot.count(logits, "", token(DEMO, "A"))
        elif ballot.wants_branch:
            ballot.give_branch(logits)
        return ballot.probabilities

    probabilities = count(logits)
    assert sum(probabilities.values()) == pytest.approx(1)
    # float32 keeps a thousand and a number to 6e-5; the way that a branch is worth may be dropped on one side only.
    assert count((logits + np.float32(constant)).astype(np.float32)) == pytest.approx(probabilities, abs=2e-3)


def test_differences_too_large_for_exp_are_no_trouble() -> None:
    logits = np.full(DEMO.get_vocab_size(), 0, np.float32)
    logits[[token(DEMO, "A"), token(DEMO, "B")]] = [-5000, -5001]
    logits[token(DEMO, " A")] = logits[token(DEMO, " B")] = -9000
    ballot = Ballot(ways_of(DEMO), "AB")
    ballot.count(logits, "", token(DEMO, "A"))
    assert ballot.probabilities == pytest.approx({"A": 1 / (1 + np.exp(-1)), "B": 1 / (1 + np.exp(1))})


def test_vocabulary_is_read_once() -> None:
    assert ways_of(DEMO) is ways_of(DEMO)


def test_ways_are_tokens_of_a_letter_and_nothing_that_breaks_the_form() -> None:
    tokenizer = make_tokenizer()
    more = [
        ">A",
        " A",
        "\tA\n",
        "A</",
        "A </answer> so",
        ">\n A<",
        "A.",
        "A<b",
        "AA",
        "x>A",
        ">>A",
        "A</answers>",
        "AÃ§",
    ]
    tokenizer.add_tokens(more)
    ways = ways_of(tokenizer)
    pieces = {due: [tokenizer.decode([one]) for one in ways.tokens[due, "A"]] for due in (">", "")}
    assert pieces == {">": [">A", ">\n A<"], "": ["A", " A", "\tA\n", "A</", "A </answer> so"]}


def test_vocabulary_without_the_closer_is_refused() -> None:
    with pytest.raises(MedVLMError, match="no token '>'"):
        ways_of(Tokenizer(models.BPE(vocab={"A": 0}, merges=[])))


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [
        ({"A": 0.2, "B": 0.7, "C": 0.1}, 0.5),
        ({"A": 0.5, "B": 0.5}, 0),
        ({"A": 1.0}, 1),
        ({}, 0),
    ],
)
def test_margin(probabilities: dict[str, float], expected: float) -> None:
    assert margin(probabilities) == pytest.approx(expected)
