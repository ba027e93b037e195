"""What can be compared: a bundle in this runtime, or its checkpoint in transformers."""

import importlib.util
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..model import MedVLM
from ..processor import Request
from .requests import make_request
from .stages import Plan

BASELINES = ("bf16", "fp32", "nf4")


class BundleContender:
    """A bundle, decoded plainly."""

    def __init__(self, name: str, model: MedVLM, plan: Plan) -> None:
        self.name, self._model, self._plan = name, model, plan

    def ask(self, image: bytes, number: int) -> Mapping[str, float]:
        """As `Contender.ask`."""
        request = make_request(self._model, image, self._plan.text_tokens, np.random.default_rng(number))
        times = self._model.run(request, self._plan.plain).finish().timings
        return {
            "vision": times.vision_s,
            "prefill": times.prefill_s,
            "first token": times.first_token_s,
            "decode": times.decode_tokens_per_s or 0.0,
        }


class TransformersContender:
    """The checkpoint in transformers, where ours computes: bf16, fp32, or NF4 through bitsandbytes.

    It gets the very patches and token ids that the bundle gets, and `generate` decodes greedily with its cache.
    """

    def __init__(self, checkpoint: Path, precision: str, ours: MedVLM, plan: Plan) -> None:
        import torch

        self.name = f"transformers {precision}"
        self._torch: Any = torch
        self._ours, self._plan = ours, plan
        torch.set_num_threads(plan.threads)
        self._device = ours.device
        if self._device == "cuda" and not torch.cuda.is_available():
            raise InputError("this torch has no CUDA to compare with; install one that has, or give --device cpu")
        self._model = _load(checkpoint, precision, self._device)

    def ask(self, image: bytes, number: int) -> Mapping[str, float]:
        """As `Contender.ask`; the tokens' times are noted within `generate`."""
        torch = self._torch
        request = make_request(self._ours, image, self._plan.text_tokens, np.random.default_rng(number))
        inputs = self._inputs(request)
        with torch.inference_mode():
            started = time.perf_counter()
            self._model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
            self._wait()
            vision = time.perf_counter() - started
            first, *later = self._moments(inputs, self._plan.new_tokens)
        # `generate` runs the encoder too.
        return {
            "vision": vision,
            "prefill": max(1e-9, first - vision),
            "first token": first,
            "decode": len(later) / (later[-1] - first),
        }

    def _moments(self, inputs: Mapping[str, Any], new_tokens: int) -> list[float]:
        """When each new token was there, in seconds from the beginning."""
        moments: list[float] = []
        started = time.perf_counter()

        def note(ids: Any, scores: Any, **_: Any) -> Any:
            self._wait()
            moments.append(time.perf_counter() - started)
            return self._torch.zeros(len(ids), dtype=self._torch.bool, device=ids.device)

        self._model.generate(
            **inputs,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            do_sample=False,
            stopping_criteria=[note],
        )
        return moments

    def _wait(self) -> None:
        """A GPU's kernels are only begun when a call returns."""
        if self._device == "cuda":
            self._torch.cuda.synchronize()

    def _inputs(self, request: Request) -> dict[str, Any]:
        torch = self._torch
        ids = torch.from_numpy(request.token_ids)[None]
        cut = [picture.patches() for picture in request.images]
        pixels = torch.from_numpy(np.concatenate([patches.pixel_values for patches in cut]))
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": pixels.to(self._model.dtype),
            "image_grid_thw": torch.tensor([[1, *patches.grid] for patches in cut]),
            "mm_token_type_ids": (ids == self._ours.manifest.image_token_id).int(),
        }
        return {name: value.to(self._device) for name, value in inputs.items()}


def check_baseline(checkpoint: Path | None, precision: str) -> Path:
    """The checkpoint, if the baseline can run. Raises `InputError` for what is missing, before anything is loaded."""
    if checkpoint is None:
        raise InputError("--baseline transformers runs the checkpoint itself; give its directory with --checkpoint")
    if not (checkpoint / "config.json").is_file():
        raise InputError(f"{checkpoint} has no config.json; give a Hugging Face checkpoint with --checkpoint")
    needed = ["torch", "transformers", *(["bitsandbytes", "accelerate"] if precision == "nf4" else [])]
    absent = [name for name in needed if importlib.util.find_spec(name) is None]
    if absent:
        raise InputError(f"{absent[0]} is not installed; pip install 'medvlm[calibrate]'")
    return checkpoint


def _load(checkpoint: Path, precision: str, device: str) -> Any:
    import torch
    from transformers import BitsAndBytesConfig, Qwen2VLForConditionalGeneration

    options: dict[str, Any] = {"dtype": torch.float32 if precision == "fp32" else torch.bfloat16}
    if precision == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
        # bitsandbytes packs weights where they are put.
        options |= {"device_map": {"": 0}} if device == "cuda" else {}
    model: Any = Qwen2VLForConditionalGeneration.from_pretrained(checkpoint, **options).eval()
    return model if precision == "nf4" else model.to(device)
