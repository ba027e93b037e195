"""Guided attention: the looks of a lesson are from and to the words that they should be, and their loss is by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from medvlm.demo import phrases
from medvlm.demo.train.batch import Encoder
from medvlm.demo.train.looking import (
    CONCLUDED_LETTER,
    FINDING,
    NAME,
    NAMED_OPTION,
    OPTION_LETTER,
    RIGHT_OPTION,
    TOLD,
    Head,
    Look,
    looking_loss,
)
from medvlm.demo.train.model import TEXT
from medvlm.demo.train.pool import load_pool
from medvlm.demo.train.reading import reading_lesson
from medvlm.demo.train.supervised import Lesson, make_lesson
from medvlm.demo.train.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(train_tokenizer(400))


@pytest.fixture(scope="module")
def lessons(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> list[Lesson]:
    samples = load_pool("validate", 20, tmp_path_factory.mktemp("pool") / "pool.npz")
    return [
        make_lesson(encoder, np.random.default_rng(i), s, torch.zeros(len(s.labels), TEXT.hidden_size))
        for i, s in enumerate(samples)
    ]


class Reader:
    """A lesson's tokens as text."""

    def __init__(self, encoder: Encoder, lesson: Lesson) -> None:
        self._encoder, self.ids = encoder, np.concatenate([lesson.prompt, lesson.answer])
        self._looks = lesson.looks

    def text(self, *places: int) -> str:
        return self._encoder.tokenizer.decode(self.ids[list(places)].tolist()).strip()

    def of(self, head: Head) -> list[Look]:
        return [look for look in self._looks if look.head == head]


def test_words_of_options_look_at_their_letter(encoder: Encoder, lessons: list[Lesson]) -> None:
    for lesson in lessons:
        reader = Reader(encoder, lesson)
        looks = reader.of(OPTION_LETTER)
        assert all(len(look.to) == 1 and look.to[0] < look.at for look in looks)
        words: dict[str, list[int]] = {}
        for look in looks:
            words.setdefault(reader.text(*look.to), []).append(look.at)
        read = {letter: reader.text(*places) for letter, places in words.items()}
        assert read == dict(zip("ABCD", lesson.question.options, strict=False))


def test_the_conclusion_looks_at_the_right_option_and_the_answer_at_the_concluded_letter(
    encoder: Encoder, lessons: list[Lesson]
) -> None:
    for lesson in lessons:
        reader, question = Reader(encoder, lesson), lesson.question
        option = question.options[question.answer]
        (named,) = reader.of(NAME)
        assert reader.text(named.at) == "("
        assert reader.text(named.at + 1) == question.solution
        assert reader.text(*named.to) == question.named(question.answer)
        (found,) = reader.of(NAMED_OPTION)
        assert (found.at, reader.text(*found.to)) == (named.at, option)
        assert max(found.to) < len(lesson.prompt) < min(named.to)
        (right,) = reader.of(RIGHT_OPTION)
        assert (right.at + 1, right.to) == (named.to[0], found.to)
        (told,) = reader.of(TOLD)
        assert told.at == right.at
        deciding = {
            "modality": phrases.KIND_PHRASES[lesson.facts.kind],
            "body part": phrases.KIND_PHRASES[lesson.facts.kind],
            "place": phrases.PLACE_PHRASES.get(lesson.facts.place or "", "nowhere"),
        }.get(question.type, "")
        assert deciding in reader.text(*told.to)
        assert ("This is" in reader.text(*told.to) or "The image" in reader.text(*told.to)) == (
            question.type in ("modality", "body part")
        )
        (copied,) = reader.of(CONCLUDED_LETTER)
        assert (reader.text(copied.at), reader.text(copied.at + 1)) == ("<answer", f">{question.solution}")
        assert copied.to == (named.at + 1,)
        assert [reader.text(len(lesson.prompt) + i)[-1] for i in lesson.letters] == [question.solution] * 2


def test_the_sentence_about_a_finding_looks_at_the_visual_tokens_that_show_it(
    encoder: Encoder, lessons: list[Lesson], tmp_path: Path
) -> None:
    samples = load_pool("validate", 20, tmp_path / "pool.npz")
    shown = 0
    for sample, lesson in zip(samples, lessons, strict=True):
        reader = Reader(encoder, lesson)
        looks = reader.of(FINDING)
        if not sample.labels.any():
            assert looks == []
            continue
        shown += 1
        places = [look.at + 1 for look in looks]
        sentence = reader.text(*places)
        assert sentence.count(".") <= 1
        assert sentence.rstrip(".") in encoder.tokenizer.decode(lesson.answer.tolist())
        assert not sentence.startswith(("This is", "The image shows"))
        image = np.flatnonzero(reader.ids == encoder.image_id)
        assert len(image) == len(sample.labels)
        assert all(set(look.to) == set(image[np.flatnonzero(sample.labels)].tolist()) for look in looks)
    assert shown > 5


def test_a_reading_lesson_names_every_option_with_its_letter(encoder: Encoder) -> None:
    for seed in range(20):
        lesson = reading_lesson(encoder, np.random.default_rng(seed))
        reader = Reader(encoder, lesson)
        named = {reader.text(look.at + 1): reader.text(*look.to) for look in reader.of(NAMED_OPTION)}
        assert named == dict(zip("ABCD", lesson.question.options, strict=False))
        assert {reader.text(len(lesson.prompt) + i) for i in lesson.letters} == set(named)
        assert encoder.image_id not in reader.ids


def test_looking_loss_is_cross_entropy_averaged_over_looks_and_summed_over_heads() -> None:
    attention = torch.zeros(2, 2, 4, 4)
    attention[0, 1, 3] = torch.tensor([0.1, 0.2, 0.3, 0.4])
    attention[1, 1, 2] = torch.tensor([0.5, 0.25, 0.25, 0.0])
    attention[1, 0, 1] = torch.tensor([0.125, 0.875, 0.0, 0.0])
    second, first = Head(1, 1), Head(1, 0)
    looks = [[Look(second, 3, (1, 2))], [Look(second, 2, (0,)), Look(first, 1, (0,))]]
    loss = looking_loss((torch.zeros(2, 2, 4, 4), attention), looks)
    by_hand = ((-math.log(0.2) - math.log(0.3)) / 2 - math.log(0.5)) / 2 - math.log(0.125)
    assert float(loss) == pytest.approx(by_hand, abs=1e-4)
