"""What is read of a checkpoint's JSON files, against transformers, and what is refused."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from medvlm.demo.random_checkpoint import TEXT, RandomCheckpoint, make_tokenizer
from medvlm.export.checkpoint import open_checkpoint
from medvlm.export.config import ModelConfig, read_config, read_generation, read_preprocessing
from medvlm.export.convert import export
from medvlm.export.recipe import make_recipe
from medvlm.runtime.errors import CheckpointError
from medvlm.runtime.manifest import MANIFEST, Preprocessing
from transformers import GenerationConfig, LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLForConditionalGeneration

Json = dict[str, Any]
SETTINGS = ("config.json", "generation_config.json", "preprocessor_config.json")
DELETE = object()


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def flat(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in the hub's layout."""
    directory = tmp_path_factory.mktemp("flat") / "checkpoint"
    RandomCheckpoint(text=dataclasses.replace(TEXT, tied_embeddings=request.param)).write(directory)
    return directory


@pytest.fixture(scope="module")
def nested(flat: Path) -> Path:
    """The same, loaded and saved by transformers 5: model, image processor and tokenizer."""
    directory = flat.parent / "nested"
    Qwen2VLForConditionalGeneration.from_pretrained(flat).save_pretrained(directory)
    Qwen2VLImageProcessorPil.from_pretrained(flat).save_pretrained(directory)
    shutil.copy(flat / "tokenizer.json", directory)
    return directory


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The tiny checkpoint's settings without its weights, to be changed."""
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    for name in SETTINGS:
        shutil.copy(tiny_checkpoint / name, directory)
    return directory


def edit(path: Path, changes: Json) -> None:
    """Change entries of the JSON object in `path`; a key is a path of keys with dots between them."""
    data = json.loads(path.read_text())
    for key, value in changes.items():
        *parents, last = key.split(".")
        target = data
        for parent in parents:
            target = target[parent]
        target.pop(last, None)
        if value is not DELETE:
            target[last] = value
    path.write_text(json.dumps(data))


def refused(read: Callable[[], object]) -> str:
    """The message of the `CheckpointError` that `read` raises."""
    with pytest.raises(CheckpointError) as caught:
        read()
    return str(caught.value)


def bundle_data(checkpoint: Path, out: Path) -> dict[str, bytes]:
    """Every file of the checkpoint's bundle but the manifest, which holds dates and digests of the source."""
    export(checkpoint, out, make_recipe("int4", 32))
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != MANIFEST}


def without_raw(config: ModelConfig) -> ModelConfig:
    return dataclasses.replace(config, raw={})


def test_transformers_5_saves_a_nested_config(flat: Path, nested: Path) -> None:
    saved = json.loads((nested / "config.json").read_text())
    assert "hidden_size" not in saved
    assert "rope_parameters" in saved["text_config"]
    assert "min_pixels" not in json.loads((nested / "preprocessor_config.json").read_text())


@pytest.mark.parametrize("layout", ["flat", "nested"])
def test_dimensions_are_those_that_transformers_reads(layout: str, flat: Path, nested: Path) -> None:
    directory = {"flat": flat, "nested": nested}[layout]
    config, reference = read_config(directory), Qwen2VLConfig.from_pretrained(directory)
    text: Any = reference.text_config
    vision: Any = reference.vision_config
    assert dataclasses.asdict(config.text) == {
        "layers": text.num_hidden_layers,
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "num_heads": text.num_attention_heads,
        "num_kv_heads": text.num_key_value_heads,
        "head_size": text.hidden_size // text.num_attention_heads,
        "vocab_size": text.vocab_size,
        "max_positions": text.max_position_embeddings,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_theta": text.rope_parameters["rope_theta"],
        "mrope_section": tuple(text.rope_parameters["mrope_section"]),
        "tied_embeddings": reference.tie_word_embeddings,
    }
    assert dataclasses.asdict(config.vision) == {
        "depth": vision.depth,
        "embed_dim": vision.embed_dim,
        "num_heads": vision.num_heads,
        "mlp_dim": int(vision.embed_dim * vision.mlp_ratio),
        "in_channels": vision.in_channels,
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
        "out_dim": vision.hidden_size,
    }
    assert config.image_token_id == reference.image_token_id
    assert config.eos_token_ids == (text.eos_token_id,)


def test_flat_and_nested_checkpoints_say_the_same(flat: Path, nested: Path) -> None:
    config = read_config(flat)
    assert without_raw(config) == without_raw(read_config(nested))
    assert read_preprocessing(flat, config.vision) == read_preprocessing(nested, config.vision)
    assert read_generation(flat, config) == read_generation(nested, config)


def test_flat_and_nested_checkpoints_give_the_same_bundle(flat: Path, nested: Path, tmp_path: Path) -> None:
    assert bundle_data(flat, tmp_path / "flat") == bundle_data(nested, tmp_path / "nested")


@pytest.mark.parametrize("top", [True, False, None])
@pytest.mark.parametrize("inner", [True, False, None])
def test_embeddings_are_tied_where_transformers_ties_them(
    nested: Path, folder: Path, top: object, inner: object
) -> None:
    shutil.copy(nested / "config.json", folder)
    named = {"tie_word_embeddings": top, "text_config.tie_word_embeddings": inner}
    edit(folder / "config.json", {key: DELETE if value is None else value for key, value in named.items()})
    reference = Qwen2VLConfig.from_pretrained(folder)
    assert read_config(folder).text.tied_embeddings == reference.tie_word_embeddings


def test_the_hub_config_of_qwen2_vl_is_read(shared: Path) -> None:
    # The figures of Qwen2-VL-2B: 28 layers of 12 heads, of which 2 hold keys and values; 32 vision blocks.
    config = read_config(shared / "qwen2-vl-2b")
    assert (config.text.layers, config.text.num_heads, config.text.num_kv_heads, config.text.head_size) == (
        28,
        12,
        2,
        128,
    )
    assert (config.text.vocab_size, config.text.mrope_section) == (151936, (16, 24, 24))
    assert (config.vision.depth, config.vision.head_size, config.vision.mlp_dim) == (32, 80, 5120)
    assert config.text.tied_embeddings
    assert read_preprocessing(shared / "qwen2-vl-2b", config.vision).max_pixels == 12845056


def reference_preprocessing(directory: Path) -> Preprocessing:
    processor: Any = Qwen2VLImageProcessorPil.from_pretrained(directory)
    return Preprocessing(
        min_pixels=processor.size["shortest_edge"],
        max_pixels=processor.size["longest_edge"],
        patch_size=processor.patch_size,
        temporal_patch_size=processor.temporal_patch_size,
        merge_size=processor.merge_size,
        image_mean=tuple(processor.image_mean),
        image_std=tuple(processor.image_std),
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"min_pixels": 784, "max_pixels": 401408, "image_mean": [0.5, 0.4, 0.3]},
        {"min_pixels": DELETE, "max_pixels": DELETE, "size": {"shortest_edge": 784, "longest_edge": 401408}},
        {"min_pixels": 3136, "max_pixels": 100352, "size": {"shortest_edge": 784, "longest_edge": 401408}},
        {"min_pixels": None, "max_pixels": None, "size": {"shortest_edge": 784, "longest_edge": 401408}},
        {"do_resize": True, "do_rescale": True, "resample": 3, "rescale_factor": 0.00392156862745098},
    ],
)
def test_preprocessing_is_what_transformers_reads(folder: Path, changes: Json) -> None:
    edit(folder / "preprocessor_config.json", changes)
    assert read_preprocessing(folder, read_config(folder).vision) == reference_preprocessing(folder)


@pytest.mark.parametrize("also_alone", [True, False])
def test_preprocessing_is_read_where_transformers_5_saves_a_processor(folder: Path, also_alone: bool) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=make_tokenizer())
    tokenizer.image_token, tokenizer.image_token_id = "<|image_pad|>", 261  # pyright: ignore[reportAttributeAccessIssue]
    edit(folder / "preprocessor_config.json", {"max_pixels": 401408})
    # Qwen2VLProcessor wants torchvision; another one of an image processor and a tokenizer is saved in the same way.
    LlavaProcessor(Qwen2VLImageProcessorPil.from_pretrained(folder), tokenizer, chat_template="").save_pretrained(
        folder
    )
    edit(folder / "preprocessor_config.json", {"max_pixels": 100352})
    if not also_alone:
        (folder / "preprocessor_config.json").unlink()
    found = read_preprocessing(folder, read_config(folder).vision)
    assert found == reference_preprocessing(folder)
    assert found.max_pixels == 401408


def test_a_processor_file_without_an_image_processor_is_passed_over(folder: Path) -> None:
    before = read_preprocessing(folder, read_config(folder).vision)
    (folder / "processor_config.json").write_text('{"processor_class": "Qwen2VLProcessor"}')
    assert read_preprocessing(folder, read_config(folder).vision) == before


@pytest.mark.parametrize("eos", [258, [258, 256], [7]])
def test_end_tokens_are_those_of_the_generation_config(folder: Path, eos: Any) -> None:
    edit(folder / "generation_config.json", {"eos_token_id": eos})
    reference = GenerationConfig.from_pretrained(folder).eos_token_id
    expected = tuple(reference) if isinstance(reference, list) else (reference,)
    assert read_generation(folder, read_config(folder)).eos_token_ids == expected


@pytest.mark.parametrize("absent", ["file", "entry", "null"])
def test_end_tokens_fall_back_to_the_config(folder: Path, absent: str) -> None:
    edit(folder / "config.json", {"eos_token_id": 257})
    edit(folder / "generation_config.json", {"eos_token_id": None if absent == "null" else DELETE})
    if absent == "file":
        (folder / "generation_config.json").unlink()
    assert read_generation(folder, read_config(folder)).eos_token_ids == (257,)


def test_a_checkpoint_without_end_tokens_is_refused(folder: Path) -> None:
    edit(folder / "config.json", {"eos_token_id": DELETE})
    edit(folder / "generation_config.json", {"eos_token_id": DELETE})
    assert "eos_token_id" in refused(lambda: read_generation(folder, read_config(folder)))


@pytest.mark.parametrize("eos", ["258", -1, True, [258, None], 2.0, {"a": 1}])
def test_end_tokens_that_are_no_token_ids_are_refused(folder: Path, eos: object) -> None:
    edit(folder / "generation_config.json", {"eos_token_id": eos})
    assert "eos_token_id must be" in refused(lambda: read_generation(folder, read_config(folder)))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl"}, "Qwen2_5_VL"),
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, "LlamaForCausalLM"),
        ({"architectures": DELETE, "model_type": "gemma3"}, "gemma3"),
        ({"model_type": "qwen2_5_vl"}, "model_type qwen2_5_vl"),
        ({"model_type": DELETE}, "model_type None"),
        ({"architectures": 5}, "is 5"),
        ({"architectures": {"a": 1}}, "'a'"),
        ({"architectures": "Qwen2VLModel"}, "Qwen2VLModel"),
        ({"architectures": []}, "is []"),
    ],
)
def test_another_architecture_is_refused_by_name(folder: Path, changes: Json, named: str) -> None:
    edit(folder / "config.json", changes)
    message = refused(lambda: read_config(folder))
    assert "architecture" in message
    assert named in message
    assert "medvlm converts Qwen2VLForConditionalGeneration" in message


def test_an_architecture_may_go_unnamed(folder: Path) -> None:
    edit(folder / "config.json", {"architectures": DELETE})
    assert read_config(folder).text == TEXT


NOT_WHOLE = (0, -1, True, "3", 3.0, 2.5, None, [3], float("nan"), 2**31, DELETE)
WHOLE = (
    *("hidden_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "intermediate_size"),
    *("vocab_size", "max_position_embeddings", "vision_config.depth", "vision_config.embed_dim"),
    *("vision_config.num_heads", "vision_config.patch_size", "vision_config.temporal_patch_size"),
    *("vision_config.spatial_merge_size", "vision_config.hidden_size"),
)


@pytest.mark.parametrize("key", WHOLE)
def test_a_dimension_must_be_a_whole_number_above_0(folder: Path, key: str) -> None:
    original = (folder / "config.json").read_bytes()
    for value in NOT_WHOLE:
        (folder / "config.json").write_bytes(original)
        edit(folder / "config.json", {key: value})
        assert f"config.json: {key} must be a whole number" in refused(lambda: read_config(folder))


@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta", "vision_config.mlp_ratio"])
@pytest.mark.parametrize(
    "value", [0, -1.0, True, "1e-6", None, float("nan"), float("inf"), 1e39, 10**400, DELETE], ids=lambda v: str(v)[:8]
)
def test_a_number_must_be_above_0_and_finite_in_float32(folder: Path, key: str, value: object) -> None:
    edit(folder / "config.json", {key: value})
    assert f"config.json: {key} must be a number above 0" in refused(lambda: read_config(folder))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"hidden_size": 97}, "hidden_size is not a multiple of num_attention_heads"),
        ({"num_key_value_heads": 2}, "num_attention_heads is not a multiple of num_key_value_heads"),
        ({"num_attention_heads": 8, "num_key_value_heads": 1}, "the head size is not a multiple of 8"),
        ({"rope_scaling.mrope_section": [4, 6, 7]}, "does not add up to half the head size"),
        ({"rope_scaling.mrope_section": [8, 12, 12]}, "does not add up to half the head size"),
        ({"rope_scaling.mrope_section": [-4, 10, 10]}, "three whole numbers"),
        ({"rope_scaling.mrope_section": [True, 9, 6]}, "three whole numbers"),
        ({"rope_scaling.mrope_section": [8, 8]}, "three whole numbers"),
        ({"rope_scaling.mrope_section": "466"}, "three whole numbers"),
        ({"rope_scaling": None}, "M-RoPE"),
        ({"rope_scaling": [1]}, "M-RoPE"),
        ({"rope_scaling.type": "yarn"}, "of the type mrope or default"),
        ({"rope_scaling.type": ["mrope"]}, "of the type mrope or default"),
        ({"use_sliding_window": True}, "use_sliding_window must be false"),
        ({"hidden_act": "gelu"}, "hidden_act must be silu"),
        ({"vision_config.hidden_act": "gelu"}, "vision_config.hidden_act must be quick_gelu"),
        ({"vision_config.embed_dim": 63}, "vision embed_dim is not a multiple of num_heads"),
        ({"vision_config.num_heads": 32}, "the vision head size is not a multiple of 4"),
        ({"vision_config.hidden_size": 64}, "vision hidden_size differs from the decoder's"),
        ({"vision_config.in_chans": 1}, "in_channels is not 3"),
        ({"vision_config": DELETE}, "has no vision_config"),
        ({"vision_config": [1]}, "has no vision_config"),
        ({"image_token_id": 304}, "image_token_id is outside the vocabulary"),
        ({"image_token_id": -1}, "image_token_id must be a whole number from 0"),
        ({"image_token_id": DELETE}, "image_token_id must be a whole number from 0"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings must be true or false"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be a whole number from 1 to"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, dict) else None,
)
def test_dimensions_that_do_not_fit_are_refused(folder: Path, changes: Json, fault: str) -> None:
    edit(folder / "config.json", changes)
    assert fault in refused(lambda: read_config(folder))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"patch_size": 16}, "patch_size differs from config.json's"),
        ({"merge_size": 4}, "merge_size differs from config.json's"),
        ({"temporal_patch_size": 1}, "temporal_patch_size differs from config.json's"),
        ({"min_pixels": 12845057}, "min_pixels is above max_pixels"),
        ({"min_pixels": DELETE}, "min_pixels must be a whole number"),
        ({"max_pixels": True}, "max_pixels must be a whole number"),
        ({"image_mean": [0.5, 0.5]}, "image_mean must be a list of three numbers"),
        ({"image_mean": [0.5, float("nan"), 0.5]}, "image_mean must be a list of three numbers"),
        ({"image_std": [0.5, True, 0.5]}, "image_std must be a list of three numbers"),
        ({"image_std": [0.5, 0, 0.5]}, "image_std is not above 0"),
        ({"image_std": [0.5, -0.5, 0.5]}, "image_std is not above 0"),
        ({"do_normalize": False}, "do_normalize must be true"),
        ({"do_resize": False}, "do_resize must be true"),
        ({"rescale_factor": 0.0078125}, "rescale_factor must be 0.00392"),
        ({"resample": 2}, "resample must be 3"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, dict) else None,
)
def test_preprocessing_that_the_runtime_cannot_do_is_refused(folder: Path, changes: Json, fault: str) -> None:
    edit(folder / "preprocessor_config.json", changes)
    message = refused(lambda: read_preprocessing(folder, read_config(folder).vision))
    assert "preprocessor_config.json: " in message
    assert fault in message


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1]",
        b"null",
        b"\xff\xfe",
        b'"x"',
        b'{"a": "\\ud800"}',
        b"[" * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda content: repr(content[:12]),
)
@pytest.mark.parametrize("name", SETTINGS)
def test_a_file_that_is_not_a_json_object_is_refused_by_name(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)

    def read() -> None:
        config = read_config(folder)
        read_preprocessing(folder, config.vision)
        read_generation(folder, config)

    message = refused(read)
    assert name in message
    assert "download" in message


# Values of every kind, and numbers that are almost right.
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([0, 1, 2, 64, 96, 10**9]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The path of every value in a JSON value, containers included."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*([path] if path else []), *(leaf for key, inner in items for leaf in leaves(inner, (*path, key)))]


@pytest.fixture(scope="module")
def fuzzed(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("fuzzed") / "checkpoint"
    shutil.copytree(tiny_checkpoint, directory)
    return directory


def opens_or_is_refused(directory: Path, tmp_path: Path) -> None:
    """A changed checkpoint either gives a bundle or a `CheckpointError`, and nothing else."""
    out = tmp_path / "out"
    try:
        export(directory, out, make_recipe("int4", 32))
    except CheckpointError:
        assert not any(tmp_path.iterdir())
    else:
        shutil.rmtree(out)


@given(data=st.data(), name=st.sampled_from(SETTINGS))
@settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_in_the_settings_gives_a_bundle_or_an_error(
    data: st.DataObject, name: str, fuzzed: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    content = json.loads((tiny_checkpoint / name).read_text())
    *parents, last = data.draw(st.sampled_from(leaves(content)))
    target = content
    for parent in parents:
        target = target[parent]
    target[last] = data.draw(JSON_VALUES)
    (fuzzed / name).write_text(json.dumps(content))
    try:
        opens_or_is_refused(fuzzed, tmp_path)
    finally:
        shutil.copy(tiny_checkpoint / name, fuzzed)


@given(data=st.data(), name=st.sampled_from([*SETTINGS, "tokenizer.json", "chat_template.json"]))
@settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_bytes_in_the_settings_give_a_bundle_or_an_error(
    data: st.DataObject, name: str, fuzzed: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    content = bytearray((tiny_checkpoint / name).read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (fuzzed / name).write_bytes(content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))])
    try:
        opens_or_is_refused(fuzzed, tmp_path)
    finally:
        shutil.copy(tiny_checkpoint / name, fuzzed)


def test_an_unreadable_directory_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: Path) -> bool:
        raise PermissionError(13, "Permission denied", "secret/config.json")

    monkeypatch.setattr(Path, "is_file", refuse)
    assert refused(lambda: open_checkpoint(tmp_path)) == "cannot read secret/config.json: Permission denied"
