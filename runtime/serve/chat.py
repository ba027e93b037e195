"""POST /v1/chat/completions, and the models that there are."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .asking import client_of, entered, taken_in, wait_for_turn
from .body import read_json
from .chat_request import ChatRequest, read_chat
from .chat_response import Reply
from .errors import ApiError
from .event_stream import EventStream
from .job import Ended, Job, Piece
from .service import Service
from .splitting import Part, ThinkSplitter


async def chat(service: Service, request: Request, held: ExitStack) -> Response:
    """Answer in the form of OpenAI's chat protocol. held: what lasts until the response is sent."""
    job, asked = await _read(service, request, held)
    reply = Reply(service.model, service.bundle, asked.seed, service.tokenizer)
    if asked.stream:
        return EventStream(_chunks(service, job, reply, asked))
    async for _ in wait_for_turn(service, job):
        pass
    said = [_Said() for _ in range(job.answers)]
    async for event in job.events():
        if isinstance(event, Piece | Ended):
            said[event.index].take(event)
    return JSONResponse(reply.completion([one.ended() for one in said], [one.parts for one in said]))


async def _read(service: Service, request: Request, held: ExitStack) -> tuple[Job, ChatRequest]:
    """What is asked, in the line, without the images' files: they are not to be kept while it waits."""
    async with taken_in(service, request, service.questions, held, read_json) as (body, presence):
        asked = await presence.during(asyncio.to_thread(read_chat, body, service.model, service.settings.limits))
        del body
        prepared, seconds = await presence.during(service.preparer.prepare(asked.turns, presence.left, asked.system))
    job = Job(
        prepared,
        asked.decoding,
        answers=asked.answers,
        stops=asked.stops,
        top_logprobs=asked.top_logprobs,
        preprocess_s=seconds,
        client=client_of(request, asked.user),
    )
    held.enter_context(entered(service, presence, job))
    return job, dataclasses.replace(asked, turns=())


async def models(service: Service, request: Request, held: ExitStack) -> Response:
    """GET /v1/models: the one that is served."""
    return JSONResponse({"object": "list", "data": [_model(service)]})


async def model(service: Service, request: Request, held: ExitStack) -> Response:
    """GET /v1/models/NAME."""
    if request.path_params["name"] != service.model:
        raise ApiError(404, f"there is no such model; this server has {service.model}", code="model_not_found")
    return JSONResponse(_model(service))


def _model(service: Service) -> dict[str, Any]:
    return {"id": service.model, "object": "model", "created": 0, "owned_by": "medvlm"}


class _Said:
    """One answer as its pieces come."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self._ended: Ended | None = None
        self._splitter = ThinkSplitter()

    def take(self, event: Piece | Ended) -> list[Part]:
        """The parts that an event completes."""
        if isinstance(event, Piece):
            new = self._splitter.feed(event.text)
        else:
            self._ended, new = event, self._splitter.flush()
        self.parts += new
        return new

    def ended(self) -> Ended:
        """The answer's end, once it has come."""
        assert self._ended is not None  # noqa: S101 - the job's events end with it
        return self._ended


async def _chunks(service: Service, job: Job, reply: Reply, asked: ChatRequest) -> AsyncIterator[dict[str, Any]]:
    """The chunks of a streamed reply."""
    async for place in wait_for_turn(service, job):
        yield reply.place(place)
    said = [_Said() for _ in range(job.answers)]
    for index in range(job.answers):
        yield reply.begin(index)
    async for event in job.events():
        if isinstance(event, Piece | Ended):
            for part in said[event.index].take(event):
                yield reply.piece(event.index, part)
        if isinstance(event, Ended):
            yield reply.end(event)
    if asked.include_usage:
        yield reply.totals([one.ended().answer for one in said])
