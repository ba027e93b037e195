"""A request of OpenAI's chat protocol, as far as this model can keep it; what it cannot is refused, not ignored."""

import secrets
from dataclasses import dataclass
from typing import Any

from ..decoding import DEFAULT_MAX_NEW_TOKENS, Decoding
from ..errors import InputError
from ..sampling import Sampling
from .errors import ApiError
from .fields import boolean, get, json_object, number, string, whole
from .logprobs import MOST_TOKENS, MOST_TOP
from .messages import Turn, read_messages
from .settings import Limits

_MOST_STOPS, _LONGEST_STOP = 4, 200
_LONGEST_USER = 256
# What has no meaning here, with the values that ask for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "frequency_penalty": (None, 0),
    "function_call": (None, "none"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "modalities": (None, ["text"]),
    "prediction": (None,),
    "presence_penalty": (None, 0),
    "reasoning_effort": (None,),
    "response_format": (None, {"type": "text"}),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
}
_WHY = {
    "response_format": "the answer's form is the model's own",
}
# What changes nothing about an answer.
_IGNORED = frozenset(
    ("metadata", "parallel_tool_calls", "prompt_cache_key", "safety_identifier", "service_tier", "store")
)
_READ = frozenset(
    ("logprobs", "max_completion_tokens", "max_tokens", "messages", "model", "n", "seed", "stop", "stream")
) | frozenset(("stream_options", "temperature", "top_logprobs", "top_p", "user"))


@dataclass(frozen=True)
class ChatRequest:
    """What is asked. top_logprobs: how many likeliest tokens to tell beside each; None tells no likelihoods at all."""

    turns: tuple[Turn, ...]
    system: str | None
    decoding: Decoding
    answers: int
    stops: tuple[str, ...]
    top_logprobs: int | None
    stream: bool
    include_usage: bool
    user: str

    @property
    def seed(self) -> int | None:
        """Of the draws, as given or drawn itself; None where nothing is drawn."""
        return self.decoding.sampling.seed if self.decoding.sampling.temperature else None


def read_chat(body: dict[str, Any], model: str, limits: Limits) -> ChatRequest:
    """Read a body. model: the one that is served. Raises `ApiError` and `InputError` for what cannot be kept."""
    _check_names(body)
    asked_of = get(body, "model", string, model)
    if asked_of != model:
        raise ApiError(404, f"there is no such model; this server has {model}", code="model_not_found", param="model")
    stream = get(body, "stream", boolean, False)
    options = get(body, "stream_options", json_object, {})
    if unknown := set(options) - {"include_usage", "include_obfuscation"}:
        raise ApiError(400, f"stream_options knows no {min(unknown)[:60]!r}; leave it out", param="stream_options")
    answers = get(body, "n", whole, 1)
    if not 1 <= answers <= limits.answers:
        raise ApiError(400, f"n is {answers}; give 1 to {limits.answers}", param="n")
    decoding = _read_decoding(body)
    if answers > 1 and not decoding.sampling.temperature:
        raise ApiError(400, "n answers at temperature 0 are all the same; give a temperature, 0.7 say", param="n")
    system, turns = read_messages(body.get("messages"), limits)
    return ChatRequest(
        turns=turns,
        system=system,
        decoding=decoding,
        answers=answers,
        stops=_read_stops(body.get("stop")),
        top_logprobs=_read_logprobs(body, decoding),
        stream=stream,
        include_usage=get(options, "include_usage", boolean, False),
        user=check_user(get(body, "user", string, "")),
    )


def check_user(user: str) -> str:
    """`user` as it is. Raises `ApiError` for one that is longer than any name: it is kept while it waits."""
    if len(user) > _LONGEST_USER:
        raise ApiError(400, f"user is longer than {_LONGEST_USER} characters; shorten it", param="user")
    return user


def _check_names(body: dict[str, Any]) -> None:
    for name, value in body.items():
        if name in _NEUTRAL:
            if not any(_same(value, neutral) for neutral in _NEUTRAL[name]):
                raise ApiError(400, _WHY.get(name, f"{name} is not supported; leave it out"), param=name)
        elif name not in _READ and name not in _IGNORED:
            raise ApiError(400, f"{name[:60]!r} is not known; leave it out", code="unknown_parameter", param=name[:60])


def _same(value: Any, neutral: Any) -> bool:
    # False is 0 for Python, and not for JSON.
    return bool(value == neutral) and isinstance(value, bool) == isinstance(neutral, bool)


def _read_decoding(body: dict[str, Any]) -> Decoding:
    name = "max_tokens" if body.get("max_completion_tokens") is None else "max_completion_tokens"
    tokens = get(body, name, whole, DEFAULT_MAX_NEW_TOKENS)
    temperature = get(body, "temperature", number, 0.0)
    seed = get(body, "seed", whole, None)
    try:
        return make_decoding(tokens, temperature, get(body, "top_p", number, 1.0), seed)
    except InputError as error:
        # It begins with the runtime's own name of what is wrong.
        found, _, rest = str(error).partition(" ")
        found = name if found == "max_new_tokens" else found
        raise ApiError(400, f"{found} {rest}"[:200], param=found if found in _READ else None) from None


def make_decoding(max_tokens: int, temperature: float, top_p: float, seed: int | None) -> Decoding:
    """seed: None draws one, so that asking again draws other tokens. Raises `InputError` for what is out of range."""
    drawn = secrets.randbelow(2**31) if temperature else 0
    return Decoding(max_tokens, Sampling(temperature, top_p=top_p, seed=drawn if seed is None else seed))


def _read_logprobs(body: dict[str, Any], decoding: Decoding) -> int | None:
    top = get(body, "top_logprobs", whole, None)
    if not get(body, "logprobs", boolean, False):
        if top:
            raise ApiError(400, "top_logprobs needs logprobs; set it to true", param="top_logprobs")
        return None
    if not 0 <= (top or 0) <= MOST_TOP:
        raise ApiError(400, f"top_logprobs is {top}; give 0 to {MOST_TOP}", param="top_logprobs")
    if decoding.max_new_tokens > MOST_TOKENS:
        raise ApiError(400, f"logprobs are of at most {MOST_TOKENS} tokens; lower max_tokens", param="logprobs")
    return top or 0


def _read_stops(stops: Any) -> tuple[str, ...]:
    found = [stops] if isinstance(stops, str) else [] if stops is None else stops
    sound = isinstance(found, list) and all(isinstance(stop, str) and 0 < len(stop) <= _LONGEST_STOP for stop in found)
    if not sound or len(found) > _MOST_STOPS:
        raise ApiError(400, f"stop should be a text, or a list of at most {_MOST_STOPS} short ones", param="stop")
    return tuple(found)
