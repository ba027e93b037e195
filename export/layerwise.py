"""The float32 model run a layer at a time, its weights fed as inputs: bounded memory, and every input to be seen."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper
from onnx.utils import Extractor

from ..runtime.session import open_session
from .graph import Graph
from .layers import Layers, ReadTensor
from .recipe import Float32

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Arrays = Mapping[str, NDArray[Any]]
Watch = Callable[[str, NDArray[np.float32]], None]
"""Called with a product's scope and what it multiplies, [tokens, in_features]."""


class _FedGraph(Graph):
    """A graph whose weights are inputs, all but sizes and axes: one session then serves every layer."""

    def __init__(self) -> None:
        super().__init__("layer")
        self.weights: dict[str, NDArray[Any]] = {}

    def add_weight(self, name: str, array: NDArray[Any]) -> str:
        """Declare an input for `array`, and keep it."""
        if array.dtype != np.float32:
            return super().add_weight(name, array)
        self.weights[name] = np.ascontiguousarray(array)
        return self.add_input(name, array.shape)

    def has_weight(self, name: str) -> bool:
        """As `Graph.has_weight`, inputs among them."""
        return name in self.weights or super().has_weight(name)

    def expose(self, names: Iterable[str]) -> None:
        """Make values of the graph its outputs too, of whatever shape they have."""
        for name in dict.fromkeys(names):
            self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))


@dataclass(frozen=True)
class _Built:
    """A graph, its weights, and what each of its products multiplies, by scope."""

    model: ModelProto
    weights: Arrays
    inputs: Mapping[str, str]


class LayerRunner:
    """One layer of the model. `load` gives it the weights of a layer; all layers that `build` makes have one form.

    Products may be given other weights, `replace`. `exact` runs the layer as it was loaded all the same.
    """

    def __init__(self, build: Callable[[Layers], None], output: str, threads: int | None = None) -> None:
        self._build, self._output, self._threads = build, output, threads
        self._model: ModelProto | None = None
        self._sessions: dict[tuple[str, ...], InferenceSession] = {}
        self._inputs: Mapping[str, str] = {}
        self._weights: Arrays = {}
        self._replaced: dict[str, NDArray[np.float32]] = {}

    def load(self, read: ReadTensor) -> None:
        """Take the weights that `read` gives for layer 0's names."""
        # The layer before goes first, so that two are never held.
        self._weights, self._replaced = {}, {}
        built = _build(self._build, read)
        self._weights, self._inputs = built.weights, built.inputs
        if self._model is None:
            self._model = built.model

    def replace(self, scope: str, weight: NDArray[np.float32]) -> None:
        """Let the product of `scope` multiply by `weight` [out, in] from now on."""
        self._replaced[f"{scope}.weight"] = np.ascontiguousarray(weight.T)

    def restore(self, scope: str) -> None:
        """Let the product of `scope` multiply by the weight that was loaded."""
        del self._replaced[f"{scope}.weight"]

    def weight(self, scope: str) -> NDArray[np.float32]:
        """The weight [out, in] of the product of `scope` that was loaded."""
        return np.ascontiguousarray(self._weights[f"{scope}.weight"].T)

    @property
    def products(self) -> list[str]:
        """The scopes of all products."""
        return list(self._inputs)

    def products_beside(self, scope: str) -> list[str]:
        """The products that multiply what that of `scope` does, itself among them."""
        return [other for other, x in self._inputs.items() if x == self._inputs[scope]]

    def run(self, feeds: Arrays, watch: Watch | None = None, *, exact: bool = False) -> NDArray[np.float32]:
        """The output of this layer for `feeds`."""
        return self.run_all(feeds, (), watch, exact=exact)[0]

    def run_all(
        self, feeds: Arrays, others: Sequence[str], watch: Watch | None = None, *, exact: bool = False
    ) -> list[NDArray[np.float32]]:
        """The output of this layer for `feeds`, and the `others` that its graph has."""
        wanted = [self._output, *others]
        watched = dict.fromkeys(self._inputs.values()) if watch else {}
        values = self._run([*wanted, *watched], feeds, exact=exact)
        if watch:
            seen = dict(zip(watched, values[len(wanted) :], strict=True))
            for scope, name in self._inputs.items():
                watch(scope, _rows(seen[name]))
        return values[: len(wanted)]

    def input_of(self, scope: str, feeds: Arrays, *, exact: bool = False) -> NDArray[np.float32]:
        """What the product of `scope` multiplies, [tokens, in]; nothing is computed that does not lead to it."""
        return _rows(self._run([self._inputs[scope]], feeds, exact=exact)[0])

    def _run(self, names: Sequence[str], feeds: Arrays, *, exact: bool) -> list[NDArray[np.float32]]:
        session = self._session(tuple(names))
        given = {**feeds, **self._weights, **({} if exact else self._replaced)}
        values = session.run(names, {value.name: given[value.name] for value in session.get_inputs()})
        return [np.asarray(value) for value in values]

    def _session(self, names: tuple[str, ...]) -> "InferenceSession":
        """A session of what leads to the values `names`: onnxruntime itself computes all that a graph has."""
        assert self._model is not None, "load comes first"  # noqa: S101
        if names not in self._sessions:
            part = Extractor(self._model).extract_model([value.name for value in self._model.graph.input], [*names])
            self._sessions[names] = open_session(part.SerializeToString(), self._threads)
        return self._sessions[names]


def _rows(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return x.reshape(-1, x.shape[-1])


def _build(build: Callable[[Layers], None], read: ReadTensor) -> _Built:
    graph = _FedGraph()
    layers = Layers(graph, read, Float32())
    build(layers)
    graph.expose(layers.inputs.values())
    return _Built(graph.model(), graph.weights, layers.inputs)


def layer_of(read: ReadTensor, group: str, i: int) -> ReadTensor:
    """Reads layer `i` of a `group` ("model.layers", "visual.blocks") under the names of its layer 0."""
    return lambda name: read(name.replace(f"{group}.0.", f"{group}.{i}.", 1))
