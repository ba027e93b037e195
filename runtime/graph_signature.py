"""What goes into a bundle's graphs and comes out of them: as the graphs declare it, and as the manifest wants it."""

from collections.abc import Iterator
from dataclasses import dataclass

from .manifest import Manifest, TextDims, VisionDims
from .protobuf import read_fields, read_integer, read_message, read_messages, read_text

# TensorProto.DataType.
_FLOAT, _INT32, _INT64, _FLOAT16 = 1, 6, 7, 10

# Field numbers of onnx.proto: ModelProto.graph; GraphProto.input and output; ValueInfoProto.name and type;
# TypeProto.tensor_type, its elem_type, shape, that one's dim, and of a dim the dim_value.
_GRAPH, _INPUT, _OUTPUT, _NAME, _TYPE, _TENSOR, _ELEMENT, _SHAPE, _DIM, _DIM_VALUE = 7, 11, 12, 1, 2, 1, 1, 2, 1, 1


@dataclass(frozen=True)
class Value:
    """One input or output: its element's TensorProto.DataType, and its shape, with None for a length that varies."""

    dtype: int
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        shape = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"element type {self.dtype} and shape [{shape}]"


@dataclass(frozen=True)
class Signature:
    """All that goes in and comes out, by name."""

    inputs: dict[str, Value]
    outputs: dict[str, Value]


def declared(graph: memoryview) -> Signature:
    """What the serialized model `graph` declares. Raises ValueError where it is no model."""
    inputs: dict[str, Value] = {}
    outputs: dict[str, Value] = {}
    for inner in read_messages(graph, _GRAPH):
        inputs.update(_values(inner, _INPUT))
        outputs.update(_values(inner, _OUTPUT))
    return Signature(inputs, outputs)


def decoder_signature(dims: TextDims) -> Signature:
    """What the decoder's graph must have; its axes are explained in `medvlm.export.decoder`."""
    prefill = prefill_signature(dims)
    logits = {"logits": Value(_FLOAT, (None, None, dims.vocab_size))}
    return Signature(prefill.inputs | {"logit_rows": Value(_INT64, (None,))}, prefill.outputs | logits)


def cuda_decoder_signature(dims: TextDims) -> Signature:
    """What the decoder's graph for CUDA must have: half floats, and which token is the likeliest."""
    prefill = prefill_signature(dims, _FLOAT16)
    said = {
        "logits": Value(_FLOAT, (None, None, dims.vocab_size)),
        "likeliest": Value(_INT64, (None, None)),
        "largest": Value(_FLOAT, (None, None)),
    }
    return Signature(prefill.inputs | {"logit_rows": Value(_INT64, (None,))}, prefill.outputs | said)


def prefill_signature(dims: TextDims, floats: int = _FLOAT) -> Signature:
    """What the prefill graph must have."""
    table = Value(floats, (None, dims.head_size // 2))
    cache = Value(floats, (None, dims.num_kv_heads, None, dims.head_size))
    ends = [f"{i}.{kind}" for i in range(dims.layers) for kind in ("key", "value")]
    inputs = {
        "inputs_embeds": Value(floats, (None, None, dims.hidden_size)),
        "seqlens_k": Value(_INT32, (None,)),
        "total_sequence_length": Value(_INT32, ()),
        "cos_cache": table,
        "sin_cache": table,
    }
    inputs |= {f"past_key_values.{end}": cache for end in ends}
    return Signature(inputs, {f"present.{end}": cache for end in ends})


def vision_signature(dims: VisionDims) -> Signature:
    """What the vision encoder's graph must have."""
    table = Value(_FLOAT, (None, dims.head_size // 2))
    inputs = {"pixel_values": Value(_FLOAT, (None, dims.patch_dim)), "cos": table, "sin": table}
    return Signature(inputs, {"image_features": Value(_FLOAT, (None, dims.out_dim))})


def signature_fault(found: Signature, wanted: Signature) -> str:
    """The first thing in which a graph differs from what the manifest's dimensions want, or nothing."""
    for kind, has, wants in (("input", found.inputs, wanted.inputs), ("output", found.outputs, wanted.outputs)):
        for name in sorted(has.keys() ^ wants.keys()):
            return f"has {'no' if name in wants else 'an'} {kind} {name!r}, against the manifest's dimensions"
        for name, value in wants.items():
            if has[name] != value:
                return f"has an {kind} {name!r} of {has[name]} where the manifest's dimensions want {value}"
    return ""


def embedding_bytes(manifest: Manifest) -> int:
    """Bytes that the embedding table must have."""
    item = {"float16": 2, "float32": 4}[manifest.embedding_dtype]
    return manifest.text.vocab_size * manifest.text.hidden_size * item


def _values(graph: memoryview, number: int) -> Iterator[tuple[str, Value]]:
    for info in read_messages(graph, number):
        tensor = _only(read_message(info, _TYPE), _TENSOR)
        shape = tuple(_length(dim) for dim in read_messages(read_message(tensor, _SHAPE), _DIM))
        yield read_text(info, _NAME), Value(read_integer(tensor, _ELEMENT) or 0, shape)


def _only(message: memoryview, number: int) -> memoryview:
    """Field `number` of a message with a choice of fields, the last of which protobuf takes: refused beside others."""
    if any(found != number for found, _ in read_fields(message)):
        raise ValueError("an input or output is no tensor")
    return read_message(message, number)


def _length(dim: memoryview) -> int | None:
    """A dimension's length; None where it has a name in place of one, or nothing."""
    if len(list(read_fields(dim))) > 1:
        raise ValueError("a dimension is given twice")
    return read_integer(dim, _DIM_VALUE)
