import json
from pathlib import Path
from typing import Any

import pytest
from medvlm.export.chat_template import QWEN2_VL_CHAT_TEMPLATE, prompt_parts, read_chat_template
from medvlm.runtime.errors import CheckpointError
from medvlm.runtime.manifest import PromptParts
from medvlm.runtime.prompt import question_text, render_prompt
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

SHARED = Path(__file__).parents[2].parent / "shared" / "qwen2-vl-2b"
QUESTIONS = ("What is shown?", " \n it's <b> & {x} \n", question_text("Is it?\nA) No\nB) Yes.", raw=False))

ROLE = "{% for message in messages %}[{{ message.role }}]"
CONTENT = "{% for part in message.content %}{% if part.type == 'image' %}(i){% else %}{{ part.text }}{% endif %}"
END = "{% endfor %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"


def reference(template: str, question: str, images: int) -> str:
    """What transformers makes of one turn."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE()))
    content: list[dict[str, Any]] = [{"type": "image"}] * images + [{"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    rendered = tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    assert isinstance(rendered, str)
    return rendered


def refused(template: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        prompt_parts(template)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("images", [0, 1, 3])
@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("template", [QWEN2_VL_CHAT_TEMPLATE, ROLE + CONTENT + END])
def test_prompts_are_those_of_transformers(template: str, question: str, images: int) -> None:
    assert render_prompt(prompt_parts(template), question, images) == reference(template, question, images)


def test_blocks_on_lines_of_their_own_are_trimmed_as_in_transformers() -> None:
    template = (
        "{%- for message in messages %}\n  {% if true %}\n[u]\n  {% endif %}\n"
        + CONTENT
        + ("\n    {% endfor %}\n{% endfor %}\nend\n")
    )
    assert render_prompt(prompt_parts(template), "x", 1) == reference(template, "x", 1)


def test_the_hub_template_gives_the_known_parts() -> None:
    assert prompt_parts(QWEN2_VL_CHAT_TEMPLATE) == PromptParts(
        prefix="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
        image="<|vision_start|><|image_pad|><|vision_end|>",
        suffix="<|im_end|>\n<|im_start|>assistant\n",
    )


def test_the_built_in_template_is_the_hubs() -> None:
    if not SHARED.exists():
        pytest.skip(f"{SHARED} is not here")
    stored = json.loads((SHARED / "chat_template.json").read_text(encoding="utf-8"))["chat_template"]
    assert stored == QWEN2_VL_CHAT_TEMPLATE
    assert read_chat_template(SHARED) == QWEN2_VL_CHAT_TEMPLATE


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for %}", "does not compile"),
        ("{{ unclosed", "does not compile"),
        ("{% nosuchtag %}", "does not compile"),
        ("{{ raise_exception('no images\nhere') }}", "no images here"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ strftime_now('%Y') }}", "UndefinedError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ 'a' + 1 }}", "TypeError"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
        ("{{ bos_token }}" + QWEN2_VL_CHAT_TEMPLATE, "bos_token"),
    ],
)
def test_a_template_that_fails_is_refused_with_the_reason(template: str, reason: str) -> None:
    assert reason in refused(template)


@pytest.mark.parametrize(
    "template",
    [
        "",
        "no question",
        QWEN2_VL_CHAT_TEMPLATE.replace("content['text']", "content['text'] | trim"),
        QWEN2_VL_CHAT_TEMPLATE.replace("content['text']", "content['text'] | e"),
        QWEN2_VL_CHAT_TEMPLATE.replace("add_vision_id", "true"),
        QWEN2_VL_CHAT_TEMPLATE.replace("<|vision_start|>", "{{ image_count.value }}"),
        QWEN2_VL_CHAT_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", ""),
        QWEN2_VL_CHAT_TEMPLATE.replace("{{ content['text'] }}", "{{ content['text'] }}{{ content['text'] }}"),
        ROLE + "{{ message.content[-1].text }}" + CONTENT.replace("{{ part.text }}", "") + END,
    ],
)
def test_a_template_that_is_not_linear_is_refused(template: str) -> None:
    assert "does not compile" not in refused(template)


def test_the_first_file_that_has_a_template_counts(tmp_path: Path) -> None:
    assert read_chat_template(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 1}')
    assert read_chat_template(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "third"}')
    assert read_chat_template(tmp_path) == "third"
    (tmp_path / "chat_template.json").write_text('{"chat_template": "second"}')
    assert read_chat_template(tmp_path) == "second"
    (tmp_path / "chat_template.jinja").write_text("first \u2713\n", encoding="utf-8")
    assert read_chat_template(tmp_path) == "first \u2713\n"


def test_the_default_of_several_named_templates_counts(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert read_chat_template(tmp_path) == "d"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template.jinja", b"\xff\xfe"),
        ("chat_template.json", b"\xff"),
        ("chat_template.json", b"{"),
        ("tokenizer_config.json", b"[" * 100_000),
        ("tokenizer_config.json", b'{"chat_template": 3}'),
        ("tokenizer_config.json", b'{"chat_template": [{"name": "tool_use", "template": "t"}, 1]}'),
        ("tokenizer_config.json", b'{"chat_template": []}'),
        ("tokenizer_config.json", b'{"chat_template": [{"name": "default", "template": 3}]}'),
        ("tokenizer_config.json", b'{"chat_template": [{"name": [], "template": "t"}]}'),
    ],
)
def test_a_file_that_holds_no_template_is_refused_in_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name) as caught:
        read_chat_template(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_in_place_of_a_template_is_refused(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").mkdir()
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja"):
        read_chat_template(tmp_path)
