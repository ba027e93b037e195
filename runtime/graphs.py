"""The sessions that a bundle is computed by, on the device that was chosen."""

from typing import TYPE_CHECKING

from .bundle import CUDA_DECODER, CUDA_VISION, DECODER, PREFILL, VISION, Bundle
from .decoder import DecoderSessions
from .device import Computing, arena_limit
from .interruption import Interruption
from .session import open_on, open_sessions

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


def open_graphs(
    bundle: Bundle, computing: Computing, threads: int | None, limit: int | None, interruption: Interruption
) -> "tuple[InferenceSession, DecoderSessions]":
    """The sessions of the vision encoder and of the decoder.

    threads: None takes one for each physical core. limit: bytes of a GPU's memory that may be taken. interruption: of
    the decoder's runs. Raises `MedVLMError` where onnxruntime cannot load a graph.
    """
    if computing.gpu is not None and computing.needed is not None:
        vision, decoder = (
            open_on(
                computing.gpu,
                bundle.path(name),
                threads,
                arena_limit(computing.needed, limit, stepwise=stepwise),
                stepwise=stepwise,
            )
            for name, stepwise in ((CUDA_VISION, False), (CUDA_DECODER, True))
        )
        return vision, DecoderSessions(decoder, None, interruption.options)
    graphs = [name for name in (PREFILL, DECODER, VISION) if name in bundle.manifest.files]
    opened = open_sessions([bundle.path(name) for name in graphs], threads, bundle.path(DECODER))
    by_name = dict(zip(graphs, opened, strict=True))
    return by_name[VISION], DecoderSessions(by_name[DECODER], by_name.get(PREFILL), interruption.options)
