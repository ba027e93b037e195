"""A checkpoint's JSON files as the dimensions and settings of the model. No torch, no transformers."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from ..runtime.errors import CheckpointError
from ..runtime.manifest import Generation, Preprocessing, TextDims, VisionDims

ARCHITECTURE = "Qwen2VLForConditionalGeneration"
CONFIG = "config.json"
GENERATION = "generation_config.json"
# Where transformers looks for the image processor's settings, in its order; the first is what it writes since 5.
PREPROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")

# What the runtime's preprocessing does, whatever the file says.
_FIXED = {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 3, "rescale_factor": 1 / 255}
_INT32_MAX = 2**31 - 1
_FLOAT32_MAX = 3.4028234e38
# A damaged number must not make a list of a billion layers.
_MOST_LAYERS = 1024


@dataclass(frozen=True)
class ModelConfig:
    """What config.json says, whether flat (the hub's) or nested (transformers 5's)."""

    vision: VisionDims
    text: TextDims
    image_token_id: int
    eos_token_ids: tuple[int, ...]
    raw: dict[str, Any]


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`. Raises `CheckpointError` where it cannot be read or is something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        # Half a surrogate pair passes as JSON and cannot be written again; the manifest repeats config.json.
        json.dumps(value, ensure_ascii=False).encode()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}); download the checkpoint again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object; download the checkpoint again")
    return value


def read_config(directory: Path) -> ModelConfig:
    """Read config.json. Raises `CheckpointError` for another architecture or values that do not fit together."""
    path = directory / CONFIG
    if not path.is_file():
        raise CheckpointError(f"{directory} has no config.json; give the directory of a Hugging Face checkpoint")
    raw = read_json(path)
    _check_architecture(raw, path)
    nested = raw.get("text_config")
    text = _Section({**raw, **nested} if isinstance(nested, dict) else raw, path)
    vision = _Section(raw.get("vision_config"), path, "vision_config.")
    # transformers ties them where either place says so (Qwen2VLConfig).
    tied = _Section(raw, path).flag("tie_word_embeddings") or text.flag("tie_word_embeddings")
    config = ModelConfig(
        vision=_vision_dims(vision),
        text=_text_dims(text, tied),
        image_token_id=_Section(raw, path).integer("image_token_id", minimum=0),
        eos_token_ids=_token_ids(text.values.get("eos_token_id"), path),
        raw=raw,
    )
    _check_fit(config, path)
    return config


def read_preprocessing(directory: Path, vision: VisionDims) -> Preprocessing:
    """Read the image processor's settings (`min_pixels`, or `size.shortest_edge` as transformers 5 writes it)."""
    path, raw = _image_processor(directory)
    size = raw.get("size")
    size = size if isinstance(size, dict) else {}
    limits = {"min_pixels": size.get("shortest_edge"), "max_pixels": size.get("longest_edge")}
    section = _Section({**limits, **{k: v for k, v in raw.items() if v is not None}}, path)
    for key, wanted in _FIXED.items():
        if section.values.get(key, wanted) != wanted:
            raise section.error(key, json.dumps(wanted))
    settings = Preprocessing(
        min_pixels=section.integer("min_pixels"),
        max_pixels=section.integer("max_pixels"),
        patch_size=section.integer("patch_size"),
        temporal_patch_size=section.integer("temporal_patch_size"),
        merge_size=section.integer("merge_size"),
        image_mean=section.triple("image_mean"),
        image_std=section.triple("image_std"),
    )
    for name in ("patch_size", "temporal_patch_size", "merge_size"):
        if getattr(settings, name) != getattr(vision, name):
            raise CheckpointError(f"{path}: {name} differs from config.json's; download the checkpoint again")
    if settings.min_pixels > settings.max_pixels or min(settings.image_std) <= 0:
        raise CheckpointError(f"{path}: min_pixels is above max_pixels, or image_std is not above 0")
    return settings


def _image_processor(directory: Path) -> tuple[Path, dict[str, Any]]:
    """The file that holds the image processor's settings, and them."""
    for path in (directory / name for name in PREPROCESSOR_FILES):
        raw = read_json(path) if path.is_file() else {}
        found = raw.get("image_processor") if path.name == PREPROCESSOR_FILES[0] else raw
        if found and isinstance(found, dict):
            return path, found
    raise CheckpointError(f"{directory} has no {PREPROCESSOR_FILES[1]}; download the checkpoint again")


def read_generation(directory: Path, config: ModelConfig) -> Generation:
    """The end tokens of generation_config.json, or config.json's where there is none."""
    path = directory / GENERATION
    ids = _token_ids(read_json(path).get("eos_token_id"), path) if path.is_file() else ()
    ids = ids or config.eos_token_ids
    if not ids:
        raise CheckpointError(f"{directory}: neither generation_config.json nor config.json has an eos_token_id")
    return Generation(eos_token_ids=ids)


class _Section:
    """One JSON object, read with errors that name the file and the key."""

    def __init__(self, values: Any, path: Path, prefix: str = "") -> None:
        if not isinstance(values, dict):
            raise CheckpointError(f"{path} has no {prefix.rstrip('.')}; download the checkpoint again")
        self.values: dict[str, Any] = values
        self._path, self._prefix = path, prefix

    def error(self, key: str, wanted: str) -> CheckpointError:
        found = json.dumps(self.values.get(key))[:60]
        return CheckpointError(f"{self._path}: {self._prefix}{key} must be {wanted}, and is {found}")

    def flag(self, key: str) -> bool:
        value = self.values.get(key)
        if not isinstance(value, bool | None):
            raise self.error(key, "true or false")
        return bool(value)

    def integer(self, key: str, minimum: int = 1, maximum: int = _INT32_MAX) -> int:
        value = self.values.get(key)
        if type(value) is not int or not minimum <= value <= maximum:
            raise self.error(key, f"a whole number from {minimum} to {maximum}")
        return value

    def number(self, key: str) -> float:
        value = self.values.get(key)
        if not _is_number(value) or value <= 0:
            raise self.error(key, "a number above 0")
        return float(value)

    def triple(self, key: str) -> tuple[float, float, float]:
        value = self.values.get(key)
        if not isinstance(value, list) or len(value) != 3 or not all(_is_number(v) for v in value):
            raise self.error(key, "a list of three numbers")
        return (float(value[0]), float(value[1]), float(value[2]))


def _is_number(value: Any) -> TypeGuard[int | float]:
    """Whether float32 can hold `value`; the graphs do."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _FLOAT32_MAX


def _check_architecture(raw: dict[str, Any], path: Path) -> None:
    names, kind = raw.get("architectures"), raw.get("model_type")
    if kind == "qwen2_vl" and names in (None, [ARCHITECTURE]):
        return
    shown = names[0] if isinstance(names, list) and names else names
    raise CheckpointError(
        f"{path}: the architecture is {str(shown)[:60]} (model_type {str(kind)[:60]}); medvlm converts {ARCHITECTURE} "
        "(MedVLM-R1, Qwen2-VL-2B-Instruct)"
    )


def _vision_dims(section: _Section) -> VisionDims:
    values = section.values
    if values.get("hidden_act", "quick_gelu") != "quick_gelu":
        raise section.error("hidden_act", "quick_gelu")
    ratio = section.number("mlp_ratio")
    embed_dim = section.integer("embed_dim")
    section.values = {"in_channels": values.get("in_chans", 3), **values}
    return VisionDims(
        depth=section.integer("depth", maximum=_MOST_LAYERS),
        embed_dim=embed_dim,
        num_heads=section.integer("num_heads"),
        mlp_dim=int(embed_dim * ratio),
        in_channels=section.integer("in_channels"),
        patch_size=section.integer("patch_size"),
        temporal_patch_size=section.integer("temporal_patch_size"),
        merge_size=section.integer("spatial_merge_size"),
        out_dim=section.integer("hidden_size"),
    )


def _text_dims(section: _Section, tied: bool) -> TextDims:
    values = section.values
    if values.get("hidden_act", "silu") != "silu":
        raise section.error("hidden_act", "silu")
    if values.get("use_sliding_window"):
        raise section.error("use_sliding_window", "false")
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    sections = rope.get("mrope_section") if isinstance(rope, dict) else None
    if not isinstance(sections, list) or len(sections) != 3 or not all(type(n) is int and n >= 0 for n in sections):
        raise section.error("rope_scaling", "M-RoPE with an mrope_section of three whole numbers")
    if rope.get("rope_type", rope.get("type")) not in ("mrope", "default"):
        raise section.error("rope_scaling", "of the type mrope or default")
    section.values = {**values, "rope_theta": rope.get("rope_theta", values.get("rope_theta"))}
    hidden_size, num_heads = section.integer("hidden_size"), section.integer("num_attention_heads")
    return TextDims(
        layers=section.integer("num_hidden_layers", maximum=_MOST_LAYERS),
        hidden_size=hidden_size,
        intermediate_size=section.integer("intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=section.integer("num_key_value_heads"),
        head_size=hidden_size // num_heads,
        vocab_size=section.integer("vocab_size"),
        max_positions=section.integer("max_position_embeddings"),
        rms_norm_eps=section.number("rms_norm_eps"),
        rope_theta=section.number("rope_theta"),
        mrope_section=tuple(sections),
        tied_embeddings=tied,
    )


def _token_ids(value: Any, path: Path) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise CheckpointError(f"{path}: eos_token_id must be a token id or a list of them")
    return tuple(ids)


def _check_fit(config: ModelConfig, path: Path) -> None:
    """Dimensions that must divide, or match, for the graphs to be right."""
    text, vision = config.text, config.vision
    faults = {
        "hidden_size is not a multiple of num_attention_heads": text.hidden_size % text.num_heads,
        "num_attention_heads is not a multiple of num_key_value_heads": text.num_heads % text.num_kv_heads,
        "the head size is not a multiple of 8, as GroupQueryAttention wants": text.head_size % 8,
        "mrope_section does not add up to half the head size": sum(text.mrope_section) * 2 != text.head_size,
        "vision embed_dim is not a multiple of num_heads": vision.embed_dim % vision.num_heads,
        "the vision head size is not a multiple of 4": vision.head_size % 4,
        "vision in_channels is not 3, as an RGB image has": vision.in_channels != 3,
        "vision hidden_size differs from the decoder's": vision.out_dim != text.hidden_size,
        "image_token_id is outside the vocabulary": config.image_token_id >= text.vocab_size,
    }
    for fault, present in faults.items():
        if present:
            raise CheckpointError(f"{path}: {fault}; this model cannot be converted")
