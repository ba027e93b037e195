"""Stage 1: the decoder learns to find an option's letter, on text alone.

The letter is the last thing that training on whole answers teaches: after 20,000 of them the reasoning named the right
option and the letter was still guessed. The same lesson without scan and template is a fifth as long.
"""

import torch

from ..questions import TYPES, ask, conclusion, draw_facts, pick
from ..scans.canvas import Rng
from .batch import Encoder
from .model import TEXT
from .supervised import Lesson


def reading_lesson(encoder: Encoder, rng: Rng) -> Lesson:
    """A question without its template and its scan, and the end of its answer: the conclusion and the letter."""
    question_type = pick(rng, TYPES)
    facts = draw_facts(rng, question_type)
    question = ask(rng, facts, question_type)
    answer = f" {conclusion(rng, question)}</think>\n\n<answer>{question.solution}</answer>"
    nothing = torch.empty(0, TEXT.hidden_size)
    return Lesson(facts, [], nothing, question, encoder.text(question.problem), encoder.response(answer))
