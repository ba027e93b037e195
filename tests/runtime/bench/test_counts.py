"""Operations and bytes: worked out by hand for the full size, and counted in exported graphs for the tiny one."""

import math
from pathlib import Path

import onnx
import pytest
from medvlm.demo.random_checkpoint import TEXT, VISION
from medvlm.demo.synthetic import TEXT_2B, VISION_2B
from medvlm.export.convert import export
from medvlm.export.recipe import make_recipe
from medvlm.runtime.bench.counts import decode_bytes, prefill_operations, vision_operations

# Of one token, by hand: 1536 * 2048 for qkv, 1536 * 1536 for o_proj, 3 * 1536 * 8960 for the MLP, 1536 * 151936.
QKV, O_PROJ, MLP, HEAD = 3_145_728, 2_359_296, 41_287_680, 233_373_696


@pytest.fixture(scope="module", params=["fp32", "int4"])
def bundle(request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bundle all of whose products are MatMul or MatMulNBits."""
    out = tmp_path_factory.mktemp("counts") / request.param
    vision = "w8" if request.param == "int4" else None
    export(tiny_checkpoint, out, make_recipe(request.param, 32, vision=vision, prefill="same"))
    return out


class Graph:
    """A graph whose products are counted from the shapes of its weights."""

    def __init__(self, path: Path) -> None:
        self.proto = onnx.load(path, load_external_data=False).graph
        self._shapes = {tensor.name: tuple(tensor.dims) for tensor in self.proto.initializer}

    def nodes(self, op: str) -> list[onnx.NodeProto]:
        return [node for node in self.proto.node if node.op_type == op]

    def products(self) -> list[tuple[str, int, int]]:
        """The output, the columns and the multiply-adds for each row of every product with a weight."""
        found = []
        for node in self.nodes("MatMul"):
            k, n = self._shapes[node.input[1]]
            found.append((node.output[0], n, k * n))
        for node in self.nodes("MatMulNBits"):
            sizes = attributes(node)
            found.append((node.output[0], sizes["N"], sizes["K"] * sizes["N"]))
        return found

    def downstream(self, start: str) -> set[str]:
        """Every value that is computed from the value `start`."""
        reached = {start}
        for node in self.proto.node:
            if reached & {*node.input}:
                reached |= {*node.output}
        return reached


def attributes(node: onnx.NodeProto) -> dict[str, int]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def test_a_504x504_image_takes_1932_billion_operations() -> None:
    patches = 36 * 36
    embedding = 2 * patches * 1176 * 1280
    block = 2 * patches * (4 * 1280 * 1280 + 2 * 1280 * 5120) + 2 * 2 * patches * patches * 1280
    merger = 2 * 324 * (5120 * 5120 + 5120 * 1536)
    assert vision_operations(VISION_2B, patches) == embedding + 32 * block + merger
    assert round(vision_operations(VISION_2B, patches) / 1e9) == 1932


@pytest.mark.parametrize("patches", [4, 256, 1296])
def test_the_vision_graph_has_as_many_operations_as_the_formula(bundle: Path, patches: int) -> None:
    graph = Graph(bundle / "vision_encoder.onnx")
    (reshape,) = graph.nodes("Reshape")
    merged = graph.downstream(reshape.output[0])
    products = graph.products()
    counted = sum(2 * n * (patches // 4 if name in merged else patches) for name, _, n in products)
    columns = {name: n for name, n, _ in products}
    for node in graph.nodes("MultiHeadAttention"):
        # The value goes from its product through an Add where the bias is one of its own.
        add = next((other for other in graph.nodes("Add") if other.output[0] == node.input[2]), None)
        width = columns[add.input[0] if add else node.input[2]]
        head_size = width // attributes(node)["num_heads"]
        counted += sum(2 * 2 * head_size * patches for _ in range(attributes(node)["num_heads"] * patches))
    assert vision_operations(VISION, patches) == counted


def test_a_decode_step_at_full_size_is_two_operations_for_each_weight_and_attention() -> None:
    weights = 28 * (QKV + O_PROJ + MLP) + HEAD
    attention = 28 * 12 * 2 * 2 * 128 * (1000 + 1)
    assert prefill_operations(TEXT_2B, 1, past=1000) == 2 * weights + attention


def test_a_prompt_at_full_size_leaves_out_the_end_of_the_last_layer() -> None:
    tokens = 400
    everywhere = 2 * tokens * (28 * QKV + 27 * (O_PROJ + MLP))
    once = 2 * (O_PROJ + MLP + HEAD)
    attention = 28 * 12 * 2 * 2 * 128 * (400 * 401 // 2)
    assert prefill_operations(TEXT_2B, tokens) == everywhere + once + attention


@pytest.mark.parametrize(("tokens", "past"), [(1, 0), (1, 33), (7, 0), (7, 33)])
def test_the_decoder_graph_has_as_many_operations_as_the_formula(bundle: Path, tokens: int, past: int) -> None:
    graph = Graph(bundle / "decoder.onnx")
    one_row = graph.downstream("logit_rows")
    counted = sum(2 * n * (1 if name in one_row else tokens) for name, _, n in graph.products())
    caches = {value.name: value.type.tensor_type.shape.dim for value in graph.proto.input}
    for node in graph.nodes("GroupQueryAttention"):
        head_size = caches[node.input[3]][3].dim_value
        counted += attributes(node)["num_heads"] * sum(2 * 2 * head_size * (past + i + 1) for i in range(tokens))
    assert prefill_operations(TEXT, tokens, past) == counted


def test_a_prompt_in_two_calls_attends_to_as_much_as_in_one() -> None:
    again = 2 * (O_PROJ + MLP + HEAD)
    halves = prefill_operations(TEXT_2B, 30) + prefill_operations(TEXT_2B, 50, past=30)
    assert halves == prefill_operations(TEXT_2B, 80) + again


def test_no_tokens_are_no_prompt() -> None:
    with pytest.raises(ValueError, match="no token"):
        prefill_operations(TEXT, 0)


def test_a_decode_step_reads_the_weights_and_the_filled_cache() -> None:
    # 28 layers, keys and values, 2 heads of 128 float32 numbers.
    read = decode_bytes(TEXT_2B, weights=10**9, length=1000)
    assert (read.weights, read.cache) == (10**9, 28 * 2 * 2 * 128 * 4 * 1000)
    assert read.total == read.weights + read.cache


def test_a_token_of_the_cache_takes_what_the_decoder_graph_declares(bundle: Path) -> None:
    inputs = Graph(bundle / "decoder.onnx").proto.input
    shapes = [v.type.tensor_type.shape.dim for v in inputs if v.name.startswith("past_key_values")]
    assert decode_bytes(TEXT, 0, 1).cache == sum(4 * math.prod(d.dim_value for d in (s[1], s[3])) for s in shapes)
