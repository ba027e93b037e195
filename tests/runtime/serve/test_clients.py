"""Clients of OpenAI's protocol as they are: OpenAI's own, and Hugging Face's."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from medvlm.runtime import MedVLM
from medvlm.runtime.decoding import Decoding
from medvlm.runtime.images import load_image
from medvlm.runtime.result import Answer
from medvlm.runtime.sampling import Sampling
from medvlm.runtime.turns import Exchange

openai = pytest.importorskip("openai", reason="needs OpenAI's client")
pytest.importorskip("uvicorn", reason="needs the extra serve")


@pytest.fixture(scope="module")
def client(server: Any) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def expected(demo_model: MedVLM, asked: list[Any], tmp_path_factory: pytest.TempPathFactory) -> list[Answer]:
    """What `medvlm ask` answers."""
    return [demo_model.ask(one.png, one.question) for one in asked]


def test_the_answer_is_that_of_ask(client: Any, asked: list[Any], expected: list[Answer]) -> None:
    (model,) = client.models.list().data
    for one, answer in zip(asked, expected, strict=True):
        got = client.chat.completions.create(model=model.id, messages=one.messages)
        (choice,) = got.choices
        assert choice.message.content == f"<answer>{answer.choice}</answer>"
        assert choice.message.reasoning_content == answer.reasoning
        assert choice.finish_reason == "stop"
        assert got.medvlm["choice"] == answer.choice
        assert got.medvlm["options"] == pytest.approx(answer.options, abs=1e-3)
        assert (got.usage.prompt_tokens, got.usage.completion_tokens) == (answer.prompt_tokens, answer.new_tokens)
        assert got.usage.total_tokens == answer.prompt_tokens + answer.new_tokens


def test_a_streamed_answer_is_the_same(client: Any, asked: list[Any], expected: list[Answer]) -> None:
    (model,) = client.models.list().data
    for one, answer in zip(asked, expected, strict=True):
        chunks = list(
            client.chat.completions.create(
                model=model.id, messages=one.messages, stream=True, stream_options={"include_usage": True}
            )
        )
        deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
        reasoning = [delta.reasoning_content for delta in deltas if hasattr(delta, "reasoning_content")]
        assert len(reasoning) > 10, "it comes in pieces"
        assert "".join(reasoning) == answer.reasoning
        assert "".join(delta.content or "" for delta in deltas) == f"<answer>{answer.choice}</answer>"
        assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "stop"
        assert chunks[-1].usage.completion_tokens == answer.new_tokens
        assert chunks[-1].medvlm["choice"] == answer.choice


def test_several_turns_and_images_reach_the_model_in_order(client: Any, asked: list[Any], demo_model: MedVLM) -> None:
    """transformers' own prompts of several turns are compared in tests/runtime/test_turns.py."""
    first, second = asked[0], asked[1]
    whole = [*first.messages, {"role": "assistant", "content": "<answer>A</answer>"}, *second.messages]
    answered = client.chat.completions.create(model=client.models.list().data[0].id, messages=whole)
    earlier = [Exchange((load_image(first.png),), first.question, "<answer>A</answer>")]
    expected = demo_model.run(demo_model.processor.prepare([second.png], second.question, earlier=earlier)).finish()
    assert answered.medvlm["visual_tokens"] == expected.visual_tokens
    assert answered.usage.prompt_tokens == expected.prompt_tokens
    assert answered.choices[0].message.reasoning_content == expected.reasoning


def test_drawn_answers_are_those_of_the_seed(client: Any, asked: list[Any], demo_model: MedVLM) -> None:
    (one, *_), model = asked, client.models.list().data[0].id
    request = demo_model.processor.prepare([one.png], one.question)
    decoding = Decoding(sampling=Sampling(1.0, top_p=0.9, seed=7))
    expected = [demo_model.run(request, decoding, vote=vote).finish().text for vote in range(3)]
    drawn = client.chat.completions.create(model=model, messages=one.messages, n=3, temperature=1, top_p=0.9, seed=7)
    texts = [f"<think>{c.message.reasoning_content}</think>\n\n{c.message.content}" for c in drawn.choices]
    assert texts == expected
    assert len(set(texts)) > 1
    assert drawn.medvlm["seed"] == 7


def test_without_a_seed_one_is_drawn_and_told(client: Any, asked: list[Any]) -> None:
    model = client.models.list().data[0].id
    seeds = {
        client.chat.completions.create(model=model, messages=asked[0].messages, temperature=1).medvlm["seed"]
        for _ in range(3)
    }
    assert len(seeds) == 3


def test_stop_ends_the_answer_before_the_word(client: Any, asked: list[Any], expected: list[Answer]) -> None:
    one, answer = asked[0], expected[0]
    word = answer.reasoning.split()[4]
    for stream in (False, True):
        got = client.chat.completions.create(
            model=client.models.list().data[0].id, messages=one.messages, stop=["nonsense", word], stream=stream
        )
        if stream:
            deltas = [choice.delta for chunk in got for choice in chunk.choices]
            text = "".join(getattr(delta, "reasoning_content", "") for delta in deltas)
        else:
            text = got.choices[0].message.reasoning_content
            assert got.choices[0].finish_reason == "stop"
            assert got.medvlm["finish_reason"] == "stop"
        assert text == answer.reasoning.partition(word)[0].rstrip()


def test_max_tokens_is_kept(client: Any, asked: list[Any]) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        got = client.chat.completions.create(
            model=client.models.list().data[0].id, messages=asked[0].messages, **{name: 5}
        )
        assert got.usage.completion_tokens == 5
        assert got.choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("parameters", "status", "word"),
    [
        ({"model": "gpt-4o"}, 404, "no such model"),
        ({"top_logprobs": 2}, 400, "needs logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, 400, "0 to 20"),
        ({"logprobs": True, "max_tokens": 513}, 400, "at most 512"),
        ({"temperature": -1}, 400, "temperature"),
        ({"n": 2}, 400, "temperature"),
        ({"n": 99, "temperature": 1}, 400, "n is 99"),
        ({"stop": ["a"] * 5}, 400, "stop"),
        ({"max_tokens": 0}, 400, "max_tokens is 0"),
        ({"max_completion_tokens": 0}, 400, "max_completion_tokens is 0"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "tools"),
        ({"response_format": {"type": "json_object"}}, 400, "form"),
        ({"messages": []}, 400, "message"),
        ({"messages": [{"role": "user", "content": ""}]}, 400, "empty"),
        ({"messages": [{"role": "user", "content": "x <|im_end|> y"}]}, 400, "control token"),
        ({"messages": [{"role": "user", "content": "x" * 20_001}]}, 400, "20000 characters"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "follow"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}]}, 400, "last message"),
        ({"extra_body": {"surprise": 1}}, 400, "surprise"),
        ({"user": "x" * 257}, 400, "longer than 256"),
        ({"verbosity": "low"}, 400, "verbosity"),
        ({"stream": True, "stream_options": {"bogus": 1}}, 400, "bogus"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [{}]}]}, 400, "tool_calls"),
    ],
)
def test_what_cannot_be_kept_is_refused(
    client: Any, asked: list[Any], parameters: dict[str, Any], status: int, word: str
) -> None:
    whole = {"model": client.models.list().data[0].id, "messages": asked[0].messages, **parameters}
    with pytest.raises(openai.APIStatusError) as error:
        client.chat.completions.create(**whole)
    assert error.value.status_code == status
    assert isinstance(error.value, openai.NotFoundError if status == 404 else openai.BadRequestError)
    assert word in str(error.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1/a.png", "https://e.org/a.png", "file:///etc/passwd", "/a.png", ""])
def test_no_image_is_ever_fetched(client: Any, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": url}}]
    with pytest.raises(openai.BadRequestError, match="nothing is fetched"):
        client.chat.completions.create(
            model=client.models.list().data[0].id, messages=[{"role": "user", "content": content}]
        )


def test_hugging_faces_client_is_answered_too(server: Any, asked: list[Any], expected: list[Answer]) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="needs Hugging Face's client")
    client, model = hub.InferenceClient(base_url=server.url, api_key="none"), server.service.model
    whole = client.chat_completion(asked[0].messages, model=model, max_tokens=200)
    assert whole.choices[0].message.content == f"<answer>{expected[0].choice}</answer>"
    assert whole.usage.completion_tokens == expected[0].new_tokens
    stream = client.chat_completion(asked[0].messages, model=model, stream=True)
    pieces = [chunk.choices[0].delta.content for chunk in stream]
    assert "".join(piece or "" for piece in pieces) == f"<answer>{expected[0].choice}</answer>"


def test_notes_about_an_image_are_told(client: Any, asked: list[Any], tmp_path: Path) -> None:
    import base64

    frames = [asked[0].item.image, asked[1].item.image]
    frames[0].save(tmp_path / "two.tif", save_all=True, append_images=frames[1:])
    url = "data:image/tiff;base64," + base64.b64encode((tmp_path / "two.tif").read_bytes()).decode()
    content = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": url}}]
    got = client.chat.completions.create(
        model=client.models.list().data[0].id, messages=[{"role": "user", "content": content}]
    )
    assert got.medvlm["notes"] == ["the image has 2 frames; frame 1 was used"]
