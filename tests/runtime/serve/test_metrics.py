"""What Prometheus is told: prometheus-client's own parser reads it."""

import base64
import io
from collections import defaultdict
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("uvicorn", reason="needs the extra serve")


def values(server: Any) -> dict[str, float]:
    """The samples without labels, and the sums of those with them; 0 where there is none yet."""
    from prometheus_client.parser import text_string_to_metric_families

    text = server.send("GET", "/metrics").body.decode()
    found: dict[str, float] = defaultdict(float)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] += sample.value
    return found


def message(side: int, grey: int, text: str) -> list[dict[str, Any]]:
    stream = io.BytesIO()
    Image.new("L", (side, side), grey).save(stream, "PNG")
    url = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
    return [
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}],
        }
    ]


@pytest.mark.parametrize("side", [56, 224], ids=["of 4 visual tokens", "of 64"])
def test_a_hit_is_an_answer_whose_image_was_known(server: Any, side: int) -> None:
    """The words before an image are always known, and may be more tokens than it."""
    before = values(server)
    for grey, text in ((77, "What is it?"), (78, "What is it?"), (77, "What is it?"), (77, "Where is it?")):
        assert server.chat(message(side, grey, text)).status == 200
    after = values(server)
    assert after["medvlm_prefix_hits_total"] - before["medvlm_prefix_hits_total"] == 2
    assert after["medvlm_answers_total"] - before["medvlm_answers_total"] == 4
    assert after["medvlm_ttft_seconds_count"] - before["medvlm_ttft_seconds_count"] == 4
    assert after["medvlm_queue_length"] == 0


def test_tokens_are_counted_as_they_were_told(server: Any, asked: list[Any]) -> None:
    before = values(server)
    usage = server.chat(asked[0].messages).json["usage"]
    assert values(server)["medvlm_tokens_total"] - before["medvlm_tokens_total"] >= usage["total_tokens"]
    assert values(server)["process_resident_memory_bytes"] > 1e6
