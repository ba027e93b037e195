"""Bundle to answers: the runtime of MedVLM-R1. Needs onnxruntime, numpy, Pillow, tokenizers and click."""

from .decoding import Decoding
from .dicom.view import View, Window
from .errors import AuditError, BundleError, CheckpointError, InputError, Interrupted, MedVLMError
from .model import MedVLM
from .result import Answer, Timings
from .sampling import Sampling
from .stream import Stream

__all__ = [
    "Answer",
    "AuditError",
    "BundleError",
    "CheckpointError",
    "Decoding",
    "InputError",
    "Interrupted",
    "MedVLM",
    "MedVLMError",
    "Sampling",
    "Stream",
    "Timings",
    "View",
    "Window",
]
