"""Ways of decoding, end to end: drafts change no token, constraints no text that is well-formed, seeds repeat."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from medvlm.demo.dataset import Item
from medvlm.export.convert import export
from medvlm.export.recipe import make_recipe
from medvlm.runtime import InputError, MedVLM
from medvlm.runtime import graphs as graphs_module
from medvlm.runtime.cli import main
from medvlm.runtime.constrain import MAX_ENDING
from medvlm.runtime.decoding import Decoding
from medvlm.runtime.options import margin
from medvlm.runtime.result import Answer
from medvlm.runtime.sampling import Sampling
from medvlm.runtime.votes import count_votes, vote

QUESTION = "Which is it?\nA) MRI\nB) CT\nC) X-ray"
TOKENS = 96
TAGS = "</think>|<answer>|</answer>"
WELL_FORMED = re.compile(rf"(?:(?!{TAGS}).)*(?:</think>\s{{0,8}})?<answer>\s*([A-D])\s*</answer>", re.DOTALL)
WARM = Sampling(temperature=1.0, seed=7)


@dataclasses.dataclass(frozen=True)
class Answers:
    """The answers to one question: with neither drafts nor constraints, with drafts, and with both."""

    plain: Answer
    drafted: Answer
    constrained: Answer


@pytest.fixture
def items(demo_items: list[Item]) -> list[Item]:
    return demo_items


def offered(item: Item) -> list[str]:
    return list("ABCD"[: len(item.question.options)])


@pytest.fixture(scope="module")
def answered(demo_model: MedVLM, demo_items: list[Item]) -> list[Answers]:
    ways = [Decoding(TOKENS, constrained=False, max_draft=drafts) for drafts in (0, 7)] + [Decoding(TOKENS)]
    return [Answers(*(demo_model.ask(item.image, item.question.problem, way) for way in ways)) for item in demo_items]


@pytest.fixture(scope="module")
def exact_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose decoder multiplies in float32.

    A call of several tokens adds up in another order than calls of one. Where activations are rounded to int8, a last
    bit can become a step, and a random model's two likeliest tokens lie closer than that.
    """
    out = tmp_path_factory.mktemp("exact") / "bundle"
    export(tiny_checkpoint, out, make_recipe("int4", 32, accuracy_level=0))
    return out


# Drafts


def test_drafts_change_no_token_of_200_answers(answered: list[Answers]) -> None:
    for one in answered:
        assert one.drafted.token_ids == one.plain.token_ids
        assert one.plain.drafted_tokens == one.plain.accepted_tokens == 0
    drafted, accepted = (
        sum(getattr(one.drafted, name) for one in answered) for name in ("drafted_tokens", "accepted_tokens")
    )
    assert drafted >= accepted > 0


def test_drafts_change_no_constrained_token(demo_model: MedVLM, items: list[Item], answered: list[Answers]) -> None:
    for item, one in list(zip(items, answered, strict=True))[:50]:
        undrafted = demo_model.ask(item.image, item.question.problem, Decoding(TOKENS, max_draft=0))
        assert one.constrained.token_ids == undrafted.token_ids
        assert one.constrained.options == pytest.approx(undrafted.options, abs=1e-3)


@pytest.mark.parametrize("max_draft", [1, 2, 5, 7])
@pytest.mark.parametrize("penalty", [1.0, 0.5])
@pytest.mark.parametrize("question", ["abc " * 60, "so and so, " * 20, "ab"])
def test_drafts_change_no_token_of_a_random_model(
    exact_bundle: Path, image_path: Path, question: str, penalty: float, max_draft: int
) -> None:
    """A penalty below 1 makes it say again what was said, so that drafts are often right."""
    model = MedVLM.load(exact_bundle, threads=1)
    sampling = Sampling(repetition_penalty=penalty)
    plain, drafted = (
        model.ask(image_path, question, Decoding(150, sampling, max_draft=drafts), raw=True)
        for drafts in (0, max_draft)
    )
    assert drafted.token_ids == plain.token_ids
    assert drafted.new_tokens > 40 or drafted.finish_reason == "end"
    assert (drafted.accepted_tokens > 0) or penalty == 1


def test_drafts_change_no_drawn_token(demo_model: MedVLM, items: list[Item]) -> None:
    for item in items[:20]:
        plain, drafted = (
            demo_model.ask(item.image, item.question.problem, Decoding(TOKENS, WARM, max_draft=drafts))
            for drafts in (0, 7)
        )
        assert drafted.token_ids == plain.token_ids


def test_drafts_respect_the_context(demo_bundle: Path, items: list[Item]) -> None:
    """Every context from one free slot on: the same tokens as of a model that drafts nothing."""
    whole = MedVLM.load(demo_bundle, threads=1).ask(items[0].image, items[0].question.problem, Decoding(TOKENS))
    for room in range(1, whole.new_tokens + 3, 3):
        narrow = MedVLM.load(demo_bundle, threads=1, max_length=whole.prompt_tokens + room)
        ways = (Decoding(TOKENS, max_draft=drafts, constrained=False) for drafts in (0, 7))
        plain, drafted = (narrow.ask(items[0].image, items[0].question.problem, way) for way in ways)
        assert drafted.token_ids == plain.token_ids
        assert drafted.finish_reason == plain.finish_reason
        assert plain.new_tokens == min(room + 1, whole.new_tokens)


# Constraints


def test_constraints_change_nothing_that_is_well_formed(answered: list[Answers]) -> None:
    well_formed = [one for one in answered if WELL_FORMED.fullmatch(one.plain.text) and one.plain.choice]
    assert len(well_formed) > 0.9 * len(answered)
    for one in well_formed:
        assert one.constrained.token_ids == one.plain.token_ids
        assert one.constrained.choice == one.plain.choice


def test_constrained_answers_always_have_an_offered_letter(answered: list[Answers], items: list[Item]) -> None:
    for one, item in zip(answered, items, strict=True):
        assert one.constrained.choice in offered(item)
        assert one.constrained.strict_choice == one.constrained.choice
        assert one.constrained.finish_reason == "answer"


def test_probabilities_are_of_the_letters_and_only_where_constrained(
    answered: list[Answers], items: list[Item]
) -> None:
    for one, item in zip(answered, items, strict=True):
        assert (one.plain.options, one.plain.margin) == ({}, None)
        options = one.constrained.options
        assert list(options) == offered(item)
        assert sum(options.values()) == pytest.approx(1, abs=1e-12)
        assert min(options.values()) >= 0
        assert one.constrained.margin == pytest.approx(margin(options))
        assert one.constrained.choice == max(options, key=lambda letter: options[letter])


@pytest.mark.parametrize("think_tokens", [0, 1, 5, 20])
def test_thinking_that_is_cut_short_still_gives_an_offered_letter(
    demo_model: MedVLM, items: list[Item], think_tokens: int
) -> None:
    for item in items[:40]:
        for drafts in (0, 7):
            way = Decoding(TOKENS, think_tokens=think_tokens, max_draft=drafts)
            answer = demo_model.ask(item.image, item.question.problem, way)
            assert answer.choice in offered(item)
            assert answer.strict_choice == answer.choice
            assert answer.new_tokens <= think_tokens + MAX_ENDING
            assert WELL_FORMED.fullmatch(answer.text)
            assert answer.choice == max(answer.options, key=lambda letter: answer.options[letter])


@pytest.mark.parametrize("think_tokens", [0, 5, None])
def test_form_chooses_the_likeliest_letter_where_the_model_says_noise(
    tiny_bundle: Path, image_path: Path, think_tokens: int | None
) -> None:
    """The random model hardly ever writes a letter by itself, so that the form chooses it."""
    model = MedVLM.load(tiny_bundle, threads=1)
    for question in (QUESTION, "Where?\nA) Left\nB) Right", "What?\nA) a\nB) b\nC) c\nD) d\nE) e"):
        answer = model.ask(image_path, question, Decoding(120, think_tokens=think_tokens))
        assert WELL_FORMED.fullmatch(answer.text) or answer.choice == "E"
        assert sum(answer.options.values()) == pytest.approx(1)
        assert answer.choice == max(answer.options, key=lambda letter: answer.options[letter])
        assert answer.new_tokens <= 120


def test_without_room_for_an_answer_decoding_is_plain(tiny_bundle: Path, image_path: Path) -> None:
    model = MedVLM.load(tiny_bundle, threads=1)
    constrained, plain = (model.ask(image_path, QUESTION, Decoding(9, constrained=c)) for c in (True, False))
    assert constrained.token_ids == plain.token_ids
    assert (constrained.options, constrained.finish_reason) == ({}, "length")


def test_question_without_options_is_not_constrained(tiny_bundle: Path, image_path: Path) -> None:
    model = MedVLM.load(tiny_bundle, threads=1)
    constrained, plain = (model.ask(image_path, "Why?", Decoding(100, constrained=c)) for c in (True, False))
    assert constrained.token_ids == plain.token_ids
    assert constrained.options == {}


# Sampling


def test_seed_repeats_the_answer_and_another_gives_another(demo_model: MedVLM, items: list[Item]) -> None:
    def drawn(seed: int) -> list[tuple[int, ...]]:
        way = Decoding(TOKENS, Sampling(temperature=1.5, seed=seed))
        return [demo_model.ask(item.image, item.question.problem, way).token_ids for item in items[:10]]

    first = drawn(1)
    assert drawn(1) == first
    assert drawn(2) != first


def test_narrowest_draw_is_greedy(demo_model: MedVLM, items: list[Item]) -> None:
    ways = [Sampling(temperature=1, top_k=1), Sampling(temperature=2, top_p=1e-6), Sampling(temperature=0.001)]
    for item in items[:10]:
        greedy, *drawn = (
            demo_model.ask(item.image, item.question.problem, Decoding(TOKENS, sampling)).token_ids
            for sampling in (Sampling(), *ways)
        )
        assert drawn == [greedy] * len(ways)


@pytest.mark.parametrize("temperature", [0.7, 3.0, 1000.0])
def test_however_it_is_drawn_a_letter_is_chosen(demo_model: MedVLM, items: list[Item], temperature: float) -> None:
    for item in items[:15]:
        way = Decoding(TOKENS, Sampling(temperature=temperature, seed=3))
        answer = demo_model.ask(item.image, item.question.problem, way)
        assert answer.choice in offered(item)
        assert sum(answer.options.values()) == pytest.approx(1)


# Votes


def test_votes_share_the_prefill_and_are_counted(demo_bundle: Path, items: list[Item]) -> None:
    model = MedVLM.load(demo_bundle, threads=1)
    request = model.processor.prepare([items[1].image], items[1].question.problem)
    way = Decoding(TOKENS, Sampling(temperature=2.0))
    counted = vote(model, request, way, 9)
    assert counted.answers[0].cached_tokens == 0
    assert {answer.cached_tokens for answer in counted.answers[1:]} == {len(request.token_ids)}
    assert len({answer.token_ids for answer in counted.answers}) > 1
    choices = [answer.choice for answer in counted.answers]
    assert counted.counts == {letter: choices.count(letter) for letter in counted.counts}
    assert sum(counted.counts.values()) == 9
    assert counted.choice is not None
    assert counted.counts[counted.choice] == max(counted.counts.values())
    assert counted.choice_text == request.options[counted.choice]
    again = vote(model, request, way, 9)
    assert [answer.token_ids for answer in again.answers] == [answer.token_ids for answer in counted.answers]


def test_first_vote_is_the_answer_without_votes(demo_model: MedVLM, items: list[Item]) -> None:
    request = demo_model.processor.prepare([items[2].image], items[2].question.problem)
    way = Decoding(TOKENS, Sampling(temperature=1.5, seed=5))
    alone = demo_model.ask(items[2].image, items[2].question.problem, way)
    assert vote(demo_model, request, way, 3).answers[0].token_ids == alone.token_ids


def ballots(answer: Answer, *votes: tuple[str | None, dict[str, float]]) -> list[Answer]:
    return [
        dataclasses.replace(answer, choice=choice, choice_text=choice and f"text {choice}", options=options)
        for choice, options in votes
    ]


@pytest.mark.parametrize(
    ("votes", "choice", "counts"),
    [
        ([("B", {}), ("A", {}), ("B", {})], "B", {"B": 2, "A": 1}),
        # Of equals the one with more probability over all answers, also those that chose another.
        ([("A", {"A": 0.6, "B": 0.4}), ("B", {"A": 0.1, "B": 0.9})], "B", {"B": 1, "A": 1}),
        ([("B", {"A": 0.2, "B": 0.3, "C": 0.5}), ("A", {"A": 0.7, "B": 0.1, "C": 0.2})], "A", {"A": 1, "B": 1}),
        # Then the first letter.
        ([("C", {}), ("B", {})], "B", {"B": 1, "C": 1}),
        ([(None, {}), ("D", {}), (None, {})], "D", {"D": 1}),
        ([(None, {}), (None, {})], None, {}),
    ],
)
def test_most_votes_win(
    answered: list[Answers],
    votes: list[tuple[str | None, dict[str, float]]],
    choice: str | None,
    counts: dict[str, int],
) -> None:
    counted = count_votes(ballots(answered[0].plain, *votes))
    assert counted.choice == choice
    assert list(counted.counts.items()) == list(counts.items())
    assert counted.choice_text == (choice and f"text {choice}")
    assert len(counted.answers) == len(votes)


@pytest.mark.parametrize(
    ("votes", "way", "says"),
    [
        (0, Decoding(), "votes is 0"),
        (-3, Decoding(9, WARM), "votes is -3"),
        (2, Decoding(), "at temperature 0 are all the same"),
    ],
)
def test_votes_that_make_no_sense_are_refused(demo_model: MedVLM, votes: int, way: Decoding, says: str) -> None:
    request = demo_model.processor.prepare([], QUESTION)
    with pytest.raises(InputError, match=says):
        vote(demo_model, request, way, votes)


# What is refused


@pytest.mark.parametrize(
    ("make", "values", "says"),
    [
        (Decoding, {"max_new_tokens": 0}, "max_new_tokens is 0"),
        (Decoding, {"max_new_tokens": -1}, "max_new_tokens is -1"),
        (Decoding, {"max_new_tokens": 2.5}, "max_new_tokens is 2.5"),
        (Decoding, {"max_new_tokens": "9"}, "max_new_tokens is '9'"),
        (Decoding, {"max_new_tokens": True}, "max_new_tokens is True"),
        (Decoding, {"max_new_tokens": None}, "max_new_tokens is None"),
        (Decoding, {"think_tokens": -1}, "think_tokens is -1"),
        (Decoding, {"think_tokens": 0.5}, "think_tokens is 0.5"),
        (Decoding, {"max_draft": -1}, "max_draft is -1"),
        (Decoding, {"max_draft": 8}, "max_draft is 8"),
        (Decoding, {"max_draft": 1.0}, "max_draft is 1.0"),
        (Sampling, {"temperature": -1}, "temperature is -1"),
        (Sampling, {"temperature": float("nan")}, "temperature is nan"),
        (Sampling, {"temperature": float("inf")}, "temperature is inf"),
        (Sampling, {"temperature": 1e-9}, "temperature is 1e-09"),
        (Sampling, {"top_k": -1}, "top_k is -1"),
        (Sampling, {"top_p": 0}, "top_p is 0"),
        (Sampling, {"top_p": 1.1}, "top_p is 1.1"),
        (Sampling, {"repetition_penalty": 0}, "repetition_penalty is 0"),
        (Sampling, {"seed": -1}, "seed is -1"),
        (Sampling, {"seed": 0.5}, "seed is 0.5"),
    ],
)
def test_number_out_of_range_is_one_line(make: Callable[..., object], values: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as error:
        make(**values)
    assert str(error.value).startswith(f"{says}; ")
    assert len(str(error.value).splitlines()) == 1


# The command


def ask(bundle: Path, image: Path, *words: object) -> Result:
    common = ["ask", bundle, image, "-q", QUESTION, "--threads", 1, "--max-new-tokens", TOKENS]
    return CliRunner().invoke(main, [str(word) for word in (*common, *words)])


def data(result: Result) -> dict[str, Any]:
    assert (result.exit_code, result.stderr) == (0, "")
    return json.loads(result.stdout)


def test_votes_are_printed_with_their_count(demo_bundle: Path, image_path: Path) -> None:
    words = ("--votes", 4, "--temperature", 1.5, "--seed", 2)
    result = ask(demo_bundle, image_path, *words)
    assert (result.exit_code, result.stderr) == (0, "")
    counted = data(ask(demo_bundle, image_path, *words, "--json"))
    assert list(counted) == ["answers", "counts", "choice", "options"]
    counts = ", ".join(f"{letter} {count}" for letter, count in counted["counts"].items())
    text = {"A": "MRI", "B": "CT", "C": "X-ray"}[counted["choice"]]
    *votes, last = [line for line in result.stdout.splitlines() if line]
    assert last == f"Answer: {counted['choice']}) {text}  [votes: {counts} of 4]"
    assert [line for line in votes if line.startswith("   -> ")] == [f"   -> {a['choice']}" for a in counted["answers"]]
    assert [line[:2] for line in votes if re.match(r"\d: ", line)] == ["1:", "2:", "3:", "4:"]


def test_options_of_decoding_reach_the_model(demo_bundle: Path, image_path: Path) -> None:
    def asked(*words: object) -> dict[str, Any]:
        return data(ask(demo_bundle, image_path, "--json", *words))

    greedy = asked()
    assert greedy["options"]
    assert asked("--unconstrained")["options"] == {}
    assert asked("--think-tokens", 3)["new_tokens"] < greedy["new_tokens"]
    undrafted = asked("--draft-tokens", 0)
    assert (undrafted["drafted_tokens"], undrafted["token_ids"]) == (0, greedy["token_ids"])
    hot = ("--temperature", 3, "--seed")
    assert asked(*hot, 1)["token_ids"] == asked(*hot, 1)["token_ids"] != asked(*hot, 2)["token_ids"]
    assert asked("--temperature", 3, "--top-k", 1)["token_ids"] == greedy["token_ids"]
    assert asked("--temperature", 3, "--top-p", 1e-6)["token_ids"] == greedy["token_ids"]
    assert asked("--repetition-penalty", 5)["token_ids"] != greedy["token_ids"]
    assert asked("--prefix-mb", 0)["token_ids"] == greedy["token_ids"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--votes", 0), "votes is 0"),
        (("--votes", 3), "votes at temperature 0 are all the same"),
        (("--temperature", -1), "temperature is -1.0"),
        (("--temperature", "nan"), "temperature is nan"),
        (("--top-k", -1), "top_k is -1"),
        (("--top-p", 0), "top_p is 0.0"),
        (("--repetition-penalty", 0), "repetition_penalty is 0.0"),
        (("--seed", -1), "seed is -1"),
        (("--think-tokens", -1), "think_tokens is -1"),
        (("--draft-tokens", 8), "max_draft is 8"),
        (("--prefix-mb", -1), "prefix_mb is -1"),
    ],
)
def test_bad_option_is_one_line_before_a_session_is_opened(
    tiny_bundle: Path, image_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[object, ...], says: str
) -> None:
    monkeypatch.setattr(graphs_module, "open_sessions", lambda *_: pytest.fail("a session was opened"))
    result = ask(tiny_bundle, image_path, *words)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"Error: {says}")
