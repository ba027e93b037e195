"""Bundle to answers: the runtime of MedVLM-R1. Needs onnxruntime, numpy, Pillow, tokenizers and click."""

from .errors import BundleError, CheckpointError, InputError, MedVLMError
from .model import MedVLM, Stream
from .result import Answer, Timings

__all__ = ["Answer", "BundleError", "CheckpointError", "InputError", "MedVLM", "MedVLMError", "Stream", "Timings"]
