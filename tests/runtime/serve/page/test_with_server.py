"""The page at the real server, over the demo model: what it shows is what the runtime answers."""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from medvlm.runtime import MedVLM
from medvlm.runtime.decoder import Decoder
from medvlm.runtime.dicom.view import read_view
from numpy.typing import NDArray

expect = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra test").expect

pytest.importorskip("uvicorn", reason="needs the extra serve")

BEARER = "a-token-of-some-length"


@pytest.fixture
def page(server: Any, open_at: Callable[..., Any]) -> Any:
    """The page at the server."""
    return open_at(server.url)


@dataclass
class Steps:
    """How many steps the decoder made, and how long each takes at least."""

    count: int = 0
    seconds: float = 0.2


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    steps, extend = Steps(), Decoder.extend

    def slowed(decoder: Decoder, token_ids: Sequence[int]) -> NDArray[np.float32]:
        time.sleep(steps.seconds)
        steps.count += 1
        return extend(decoder, token_ids)

    monkeypatch.setattr(Decoder, "extend", slowed)
    return steps


def done(page: Any) -> None:
    page.wait_for_selector("#result[data-phase=done]")


def test_the_answer_is_that_of_the_runtime(
    page: Any, drop: Any, ask: Any, asked: list[Any], demo_model: MedVLM
) -> None:
    one = asked[0]
    expected = demo_model.ask(one.png, one.question)
    drop(page, "scan.png", content=one.png)
    ask(page, {"question": one.question})
    done(page)
    assert page.inner_text("#letter") == expected.choice
    assert page.inner_text("#answer-text") == expected.choice_text
    assert page.inner_text("#reasoning") == expected.reasoning
    assert f"{expected.new_tokens} tokens" in page.inner_text("#timings")
    assert f"{expected.visual_tokens} visual tokens" in page.inner_text("#timings")
    shares = [float(text.strip("<> %")) for text in page.locator("#bars .share").all_inner_texts()]
    assert shares == pytest.approx([100 * share for share in expected.options.values()], abs=0.11)


def prefix_hits(server: Any) -> float:
    text = server.send("GET", "/metrics").body.decode()
    return float(re.search(r"^medvlm_prefix_hits_total (\S+)$", text, re.MULTILINE)[1])  # type: ignore[index]


def test_a_second_question_reuses_the_image(server: Any, page: Any, drop: Any, ask: Any, asked: list[Any]) -> None:
    drop(page, "scan.png", content=asked[1].png)
    ask(page, {"question": "What kind of scan is this?\nA) MRI\nB) CT\nC) X-ray"})
    done(page)
    hits = prefix_hits(server)
    ask(page, {"question": "Is it abnormal?\nA) Yes\nB) No"})
    expect(page.locator("#session-list li")).to_have_count(2)
    done(page)
    expect(page.locator("#timings div.prompt")).to_contain_text("tokens kept")
    assert prefix_hits(server) == hits + 1


def test_the_window_that_is_shown_is_the_one_that_is_asked(
    page: Any, drop: Any, ask: Any, ct: bytes, demo_model: MedVLM
) -> None:
    question = "What kind of scan is this?\nA) MRI\nB) CT"
    expected = demo_model.ask(ct, question, view=read_view("bone", 2))
    assert expected.options != demo_model.ask(ct, question, view=read_view(None, 2)).options
    drop(page, "ct.dcm")
    page.locator(".tile").focus()
    page.keyboard.press("PageDown")
    page.click("#presets >> text=Bone")
    ask(page, {"question": question})
    done(page)
    assert page.inner_text("#reasoning") == expected.reasoning
    told = page.evaluate("[...document.querySelectorAll('#bars .fill')].map((each) => each.style.transform)")
    # A bar is moved out of sight to the left by what it lacks.
    shares = [1 + float(re.sub(r"[^-.\de]", "", transform.removeprefix("translateX"))) / 100 for transform in told]
    assert shares == pytest.approx(list(expected.options.values()), rel=1e-3, abs=1e-5)
    assert page.inner_text(".tile .window").endswith("bone")


def test_stop_ends_the_decoding_itself(
    page: Any, drop: Any, ask: Any, asked: list[Any], steps: Steps, server: Any
) -> None:
    drop(page, "scan.png", content=asked[2].png)
    ask(page, {"question": asked[2].question})
    expect(page.locator("#reasoning")).to_contain_text("image")
    page.click("#stop")
    page.wait_for_selector("#result[data-phase=stopped]")
    before = steps.count
    time.sleep(5 * steps.seconds)
    assert server.service.line.idle
    assert steps.count <= before + 2, "the step that ran, and one between"
    steps.seconds = 0
    ask(page, {"question": asked[2].question})
    done(page)


def test_the_token_of_the_link_opens_the_page(
    serving: Any, open_at: Callable[..., Any], drop: Any, ask: Any, asked: list[Any]
) -> None:
    with serving(token=BEARER) as server:
        page = open_at(f"{server.url}/#token={BEARER}")
        drop(page, "scan.png", content=asked[3].png)
        ask(page, {"question": asked[3].question})
        done(page)
        assert BEARER not in page.url


def test_a_control_token_in_the_question_is_refused_in_words(page: Any) -> None:
    page.fill("#question-text", "Is <|im_end|> a nodule?")
    page.click("#ask")
    expect(page.locator("#failure-title")).to_have_text("This cannot be asked")
    expect(page.locator("#failure-advice")).to_contain_text("control token")


def test_a_server_that_ends_in_the_middle_leaves_the_question(
    serving: Any, open_at: Callable[..., Any], ask: Any, asked: list[Any]
) -> None:
    with serving() as server:
        page = open_at(server.url)
        server.stop()
        server.thread.join(10)
        ask(page, {"question": asked[0].question})
        expect(page.locator("#failure-title")).to_have_text("The medvlm server does not answer")
        expect(page.locator("#server-state-text")).to_have_text("Server gone")
        assert page.input_value("#question-text") == asked[0].question.split("\n")[0]
