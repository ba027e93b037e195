"""The checkpoint's chat template (Jinja) -> the three strings that the runtime puts a prompt together from.

The runtime has no Jinja. It asks one question about some images, and for that every Qwen2-VL template is linear:
`prefix + image * n + question + suffix`. Whether it is so is checked here, not assumed.
"""

from pathlib import Path
from typing import NoReturn

import jinja2
from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..runtime.errors import CheckpointError
from ..runtime.manifest import PromptParts
from .config import read_json

# chat_template.json of Qwen/Qwen2-VL-2B-Instruct on the hub, for a checkpoint that was saved without one.
QWEN2_VL_CHAT_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Where transformers looks for a template, in its order.
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")

# White space at both ends shows a template that trims, quotes and angle brackets one that escapes, the tags one that
# treats reasoning in a special way. Real questions have all of them.
_PROBES = (
    '\n    Probe {Question} 1: it\'s <think>...</think> & "<answer>A</answer>"\nA) No\nB) Yes. \n    ',
    "Probe 2",
)
_IMAGE_COUNTS = (0, 1, 2, 3)


def prompt_parts(template: str) -> PromptParts:
    """The linear form of `template` for one user turn: images first, then the question, then the assistant's start.

    Raises `CheckpointError` where the template does not compile, fails, is not linear, ignores images, or needs a
    special token's text (`bos_token` and the like), which is not known here.
    """
    compiled = _compile(template)
    probe = _PROBES[0]
    prefix, found, suffix = _render(compiled, probe, 0).partition(probe)
    if not found:
        raise CheckpointError("the chat template does not repeat the question as it is; give another template")
    image = _render(compiled, probe, 1)[len(prefix) : -len(probe + suffix)]
    if not image:
        raise CheckpointError("the chat template writes nothing for an image; give the template of a vision model")
    for images in _IMAGE_COUNTS:
        for text in _PROBES:
            if _render(compiled, text, images) != prefix + image * images + text + suffix:
                raise CheckpointError(
                    f"the chat template is not 'prefix + images + question + suffix' (seen with {images} images); "
                    "give another template"
                )
    return PromptParts(prefix=prefix, image=image, suffix=suffix)


def read_chat_template(directory: Path) -> str | None:
    """The chat template saved with the checkpoint in `directory`; None where there is none.

    Raises `CheckpointError` for a file that cannot be read or is not what its name says.
    """
    jinja_file = directory / TEMPLATE_FILES[0]
    if jinja_file.exists():
        return _read_text(jinja_file)
    for name in TEMPLATE_FILES[1:]:
        if (directory / name).exists():
            template = _read_json_template(directory / name)
            if template is not None:
                return template
    return None


def _compile(template: str) -> jinja2.Template:
    """Compile as transformers does (its `_compile_jinja_template`), in the sandbox: a template is somebody's code."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _raise_exception
    try:
        names = meta.find_undeclared_variables(environment.parse(template))
        compiled = environment.from_string(template)
    except Exception as error:
        raise CheckpointError(f"the chat template does not compile: {_one_line(error)}") from error
    tokens = sorted(name for name in names if name.endswith("_token"))
    if tokens:
        raise CheckpointError(f"the chat template uses {', '.join(tokens)}; write the token's text into the template")
    return compiled


def _render(compiled: jinja2.Template, text: str, images: int) -> str:
    """The prompt of one user turn, up to where the assistant begins."""
    content = [{"type": "image"}] * images + [{"type": "text", "text": text}]
    try:
        return compiled.render(
            messages=[{"role": "user", "content": content}], tools=None, documents=None, add_generation_prompt=True
        )
    except Exception as error:  # whatever a template's code raises is the template's failure
        raise CheckpointError(f"the chat template fails with {images} images: {_one_line(error)}") from error


def _raise_exception(message: str) -> NoReturn:
    """What templates call to refuse a conversation."""
    raise jinja2.TemplateError(message)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read {path.name}: {_one_line(error)}") from error


def _read_json_template(path: Path) -> str | None:
    """The "chat_template" in a JSON file: a string, or a list of {name, template} of which "default" is meant."""
    template = read_json(path).get("chat_template")
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[0].get("template") if named else None
        if template is None:
            raise CheckpointError(f"{path.name} has chat templates and none is named 'default'; name one so")
    if template is not None and not isinstance(template, str):
        raise CheckpointError(f"{path.name}: chat_template is not a string")
    return template
