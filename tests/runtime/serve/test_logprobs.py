"""Log probabilities of tokens: torch's log_softmax of the model's logits, and transformers' byte alphabet, agree."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from medvlm.runtime import MedVLM
from medvlm.runtime.serve.logprobs import likelihood, token_bytes
from tokenizers import Tokenizer

openai = pytest.importorskip("openai", reason="needs OpenAI's client")
torch = pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("uvicorn", reason="needs the extra serve")


@given(st.lists(st.floats(-80, 80, width=32), min_size=1, max_size=40), st.data())
def test_a_likelihood_is_torchs(values: list[float], data: st.DataObject) -> None:
    logits = np.array(values, np.float32)
    token_id = data.draw(st.integers(0, len(values) - 1))
    most = data.draw(st.integers(0, 20))
    reference = torch.log_softmax(torch.tensor(logits, dtype=torch.float64), 0)
    found = likelihood(logits, token_id, most)
    assert found.logprob == pytest.approx(reference[token_id].item(), abs=1e-9)
    top = torch.topk(reference, min(most, len(values))).values.tolist()
    assert [logprob for _, logprob in found.top] == pytest.approx(top, abs=1e-9)
    assert [reference[one].item() for one, _ in found.top] == pytest.approx(top, abs=1e-9)


def test_bytes_are_those_of_the_vocabularys_alphabet(qwen: Tokenizer) -> None:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    vocabulary = qwen.get_vocab()
    for byte, letter in bytes_to_unicode().items():
        assert token_bytes(qwen, vocabulary[letter]) == bytes([byte])
    text = "Ödem 心 😀\n<think>"
    ids = qwen.encode(text).ids
    assert b"".join(token_bytes(qwen, one) for one in ids) == text.encode()


@pytest.mark.parametrize("stream", [False, True])
def test_they_are_the_models_own_at_each_token(server: Any, asked: list[Any], demo_model: MedVLM, stream: bool) -> None:
    one = asked[0]
    answer = demo_model.ask(one.png, one.question)
    logits = demo_model.score(demo_model.processor.prepare([one.png], one.question), answer.token_ids)
    reference = torch.log_softmax(torch.tensor(logits, dtype=torch.float64), -1)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        got = client.chat.completions.create(
            model=server.service.model, messages=one.messages, logprobs=True, top_logprobs=3, stream=stream
        )
        choice = [chunk.choices[0] for chunk in got][-1] if stream else got.choices[0]
    content = choice.logprobs.content
    assert b"".join(bytes(token.bytes) for token in content).decode() == answer.text
    expected = [reference[row, token_id].item() for row, token_id in enumerate(answer.token_ids)]
    assert [token.logprob for token in content] == pytest.approx(expected, abs=0.02)
    for row, token in enumerate(content):
        assert [top.logprob for top in token.top_logprobs] == pytest.approx(
            torch.topk(reference[row], 3).values.tolist(), abs=0.05
        )
    assert math.exp(content[-3].logprob) > 0.5, "the letter, of which the model is sure"


def test_without_being_asked_for_they_are_not_computed(
    serving: Any, served_model: MedVLM, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served_model, "score", lambda *_: pytest.fail("computed"))
    with serving() as server:
        for parameters in ({}, {"logprobs": False}, {"logprobs": None, "top_logprobs": 0}):
            reply = server.chat(asked[0].messages, **parameters)
            assert (reply.status, reply.json["choices"][0]["logprobs"]) == (200, None)
