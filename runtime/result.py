"""What an answer consists of."""

from dataclasses import dataclass

from .generate import FinishReason


@dataclass(frozen=True)
class Timings:
    """Seconds that each stage took.

    load_s is the time that opening the sessions took, once for all questions. first_token_s is the time to the first
    token (TTFT): preprocessing, vision and prefill. decode_s covers the tokens after the first, decode_graph_s its
    part that was spent in onnxruntime.
    """

    load_s: float
    preprocess_s: float
    vision_s: float
    prefill_s: float
    first_token_s: float
    decode_s: float
    decode_graph_s: float
    total_s: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float | None


@dataclass(frozen=True)
class Answer:
    """What the model said, and how it was read.

    text: all that was generated, end tokens left out.
    reasoning: what stands inside `<think>`.
    choice: the letter, read robustly; None where there is none or it was not offered. choice_text: that option's text.
    strict_choice: the letter as the paper's own evaluation reads it.
    flags: what was unusual about the reading (see `medvlm.runtime.answer`).
    finish_reason: "end", "answer", "length", "context" or "stop".
    token_ids: every generated token, an end token included.
    options: the probability of each letter offered, given the reasoning; they add up to 1. Empty where decoding was
        not constrained. margin: the largest less the second largest of them, None where there are none.
    cached_tokens: tokens at the prompt's beginning that an earlier question left in the cache.
    drafted_tokens, accepted_tokens: tokens that prompt lookup proposed, and how many of them were right.
    notes: what was done with the images that a person should know.
    """

    text: str
    reasoning: str
    choice: str | None
    choice_text: str | None
    strict_choice: str | None
    flags: tuple[str, ...]
    finish_reason: FinishReason
    token_ids: tuple[int, ...]
    prompt_tokens: int
    visual_tokens: int
    new_tokens: int
    options: dict[str, float]
    margin: float | None
    cached_tokens: int
    drafted_tokens: int
    accepted_tokens: int
    timings: Timings
    notes: tuple[str, ...]
