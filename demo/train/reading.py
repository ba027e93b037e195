"""Stage 2: the decoder learns to find an option by its name, on text alone.

The same is part of every whole answer, but once in sixty tokens; here every option of a question is named in turn.
"""

import torch

from ...runtime.prompt import question_text
from ..questions import TYPES, ask, conclusion, draw_facts, pick
from ..scans.canvas import Rng
from .batch import Encoder
from .looking import conclusion_looks, option_looks
from .model import TEXT
from .supervised import Lesson


def reading_lesson(encoder: Encoder, rng: Rng) -> Lesson:
    """A question and its template without scan, and the conclusions for all of its options, in any order."""
    question_type = pick(rng, TYPES)
    facts = draw_facts(rng, question_type)
    question = ask(rng, facts, question_type)
    prompt = encoder.read(question_text(question.problem, raw=False))
    order = rng.permutation(len(question.options)).tolist()
    sentences = [f" {conclusion(rng, question, option)}" for option in order]
    answer = encoder.response("".join(sentences), len(prompt.ids))
    looks, words = option_looks(prompt, question)
    letters, start = [], 0
    for option, sentence in zip(order, sentences, strict=True):
        looks += conclusion_looks(answer, question, option, words, start)
        start += len(sentence)
        letters.append(answer.within(start - 3, start - 2)[0] - len(prompt.ids))
    nothing = torch.empty(0, TEXT.hidden_size)
    return Lesson(facts, [], nothing, question, prompt.ids, answer.ids, tuple(letters), looks)
