"""Answers in the form of OpenAI's chat protocol, whole and in pieces."""

import dataclasses
import secrets
import time
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

from ..result import Answer
from .job import Ended
from .line import Place
from .logprobs import written
from .splitting import Part

# "stop" is what OpenAI's protocol calls every end that is the model's own or was asked for.
_REASONS = {"length": "length", "context": "length"}


class Reply:
    """Writes the objects of one reply, which have its id, time and model in common."""

    def __init__(self, model: str, bundle: str, seed: int | None, tokenizer: Tokenizer) -> None:
        self._bundle, self._seed, self._tokenizer = bundle, seed, tokenizer
        self._common = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": f"bundle-{bundle[:16]}",
        }

    def completion(self, ends: Sequence[Ended], parts: Sequence[Sequence[Part]]) -> dict[str, Any]:
        """The whole reply. parts: what was said, for each answer."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": joined(said, reasoning=False), **_reasoning(said)},
                "finish_reason": finish_reason(end.answer),
                "logprobs": self._logprobs(end),
                "medvlm": self.details(end.answer),
            }
            for index, (end, said) in enumerate(zip(ends, parts, strict=True))
        ]
        answers = [end.answer for end in ends]
        first = self.details(answers[0])
        return {
            **self._common,
            "object": "chat.completion",
            "choices": choices,
            "usage": usage(answers),
            "medvlm": first,
        }

    def place(self, place: Place) -> dict[str, Any]:
        """A chunk for who waits."""
        queue = {"position": place.position, "wait_s": round(place.wait_s, 1)}
        return self._chunk([]) | {"medvlm": {"queue": queue}}

    def begin(self, index: int) -> dict[str, Any]:
        """The first chunk of an answer."""
        return self._chunk([_choice(index, {"role": "assistant", "content": ""})])

    def piece(self, index: int, part: Part) -> dict[str, Any]:
        """A chunk with text."""
        return self._chunk([_choice(index, {"reasoning_content" if part.reasoning else "content": part.text})])

    def end(self, end: Ended) -> dict[str, Any]:
        """The last chunk of an answer; where likelihoods were asked for it has those of all tokens."""
        details = self.details(end.answer)
        choice = _choice(end.index, {}) | {"finish_reason": finish_reason(end.answer), "medvlm": details}
        choice["logprobs"] = self._logprobs(end)
        return self._chunk([choice]) | {"medvlm": details}

    def totals(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The chunk after all answers, for who asked for it."""
        return self._chunk([]) | {"usage": usage(answers), "medvlm": self.details(answers[0])}

    def details(self, answer: Answer) -> dict[str, Any]:
        """What only this server tells."""
        return {
            "choice": answer.choice,
            "choice_text": answer.choice_text,
            "strict_choice": answer.strict_choice,
            "options": answer.options,
            "margin": answer.margin,
            "flags": list(answer.flags),
            "notes": list(answer.notes),
            "timings": dataclasses.asdict(answer.timings),
            "finish_reason": answer.finish_reason,
            "reused_tokens": answer.cached_tokens,
            "visual_tokens": answer.visual_tokens,
            "seed": self._seed,
            "bundle": self._bundle,
        }

    def _logprobs(self, end: Ended) -> dict[str, Any] | None:
        return None if end.likelihoods is None else written(end.likelihoods, self._tokenizer)

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._common, "object": "chat.completion.chunk", "choices": choices}


def finish_reason(answer: Answer) -> str:
    """OpenAI's word for why an answer ended."""
    return _REASONS.get(answer.finish_reason, "stop")


def usage(answers: Sequence[Answer]) -> dict[str, Any]:
    """Tokens of one prompt and of all its answers."""
    new = sum(answer.new_tokens for answer in answers)
    return {
        "prompt_tokens": answers[0].prompt_tokens,
        "completion_tokens": new,
        "total_tokens": answers[0].prompt_tokens + new,
        "prompt_tokens_details": {"cached_tokens": answers[0].cached_tokens},
    }


def joined(parts: Sequence[Part], *, reasoning: bool) -> str:
    """The text of one kind."""
    return "".join(part.text for part in parts if part.reasoning == reasoning)


def _reasoning(parts: Sequence[Part]) -> dict[str, str]:
    text = joined(parts, reasoning=True)
    return {"reasoning_content": text} if text else {}


def _choice(index: int, delta: dict[str, str]) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": None, "logprobs": None}
