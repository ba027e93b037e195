"""Measurements as one report: plain numbers for programs, a table for people."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ..bundle import DECODER
from ..manifest import Manifest
from ..preprocess import token_grid
from .counts import decode_bytes, prefill_operations, vision_operations
from .features import Feature
from .gpu import computed_on_cards
from .stages import Measured, Plan
from .summary import Quantity, Summary, aligned, ratio_of_pairs, summarize

# Above this share of the CPU in other hands, or this spread of what should be constant, figures are not to be trusted.
_BUSY, _NOISY = 0.1, 0.25
_STAGES = ("preprocess_s", "vision_s", "prefill_s", "first_token_s", "total_s")


def make_report(
    manifest: Manifest,
    plan: Plan,
    measured: Measured,
    load_s: Sequence[float],
    memory: Mapping[str, int | None],
    weights: int | None = None,
    *,
    device: str = "cpu",
) -> dict[str, Any]:
    """The report of one bundle. weights: bytes that a token reads of them, by default the decoder's data file.

    Every summary is {"median", "p5", "p95", "count"}, in seconds, bytes or a second.

    What compares a stage with the machine's limits divides values of the same round. `decode`, `prefill` and `vision`
    at the top are those of the second image size where there are several (504x504 by default), the first otherwise.
    """
    half = device != "cpu"
    weights = manifest.files[f"{DECODER}.data"].size if weights is None else weights
    images = [_image(manifest, plan, measured, side, weights, half=half) for side in plan.sizes]
    main = images[plan.sizes.index(plan.main_size)]
    return {
        "device": device,
        "model": manifest.source.name,
        "recipe": manifest.recipe,
        "plan": dataclasses.asdict(plan),
        "read_bandwidth": _numbers(measured.read_bandwidth),
        "gemm_rate": _numbers(measured.gemm_rate),
        "busy": _numbers(measured.busy) if measured.busy else None,
        "load_s": _numbers(load_s),
        "memory": dict(memory),
        "images": images,
        "vision": main["vision"],
        "prefill": main["prefill"],
        "decode": main["decode"],
        "first_token": [_waterfall(image) for image in images],
        "contexts": [
            _context(manifest, measured, length, weights, half=half)
            for length in plan.contexts
            if measured.steps[length]
        ],
        "computed": _computed(main["decode"]) if half else [],
    }


def _computed(decode: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What consumer cards should do at the share of bandwidth that was reached here."""
    token_bytes = decode["weight_bytes"] + decode["cache_bytes"]
    return [dataclasses.asdict(card) for card in computed_on_cards(token_bytes, decode["share_with_cache"])]


def _image(
    manifest: Manifest, plan: Plan, measured: Measured, side: int, weights: int, *, half: bool
) -> dict[str, Any]:
    """Everything about one image size."""
    answers, warm = measured.answers[side], measured.warm[side]
    first, vision, text = answers[0], manifest.vision, manifest.text
    rows, columns = token_grid(side, side, manifest.preprocessing)
    vision_work = vision_operations(vision, rows * columns * vision.merge_size**2)
    prefill_work = prefill_operations(text, first.prompt_tokens)
    seconds = {name: [getattr(answer.timings, name) for answer in answers] for name in _STAGES}
    vision_rates = [vision_work / s for s in seconds["vision_s"]]
    prefill_rates = [prefill_work / s for s in seconds["prefill_s"]]
    tokens_per_s = [answer.timings.decode_tokens_per_s or 0.0 for answer in answers]
    middle = first.prompt_tokens + first.new_tokens // 2
    moved = decode_bytes(text, weights, middle, half=half)
    warm_s = [answer.timings.first_token_s for answer in warm]
    return {
        "image": f"{side}x{side}",
        "visual_tokens": first.visual_tokens,
        "prompt_tokens": first.prompt_tokens,
        "new_tokens": first.new_tokens,
        **{name: _numbers(values) for name, values in seconds.items()},
        "vision": {
            "operations": vision_work,
            "operations_per_s": _numbers(vision_rates),
            "multiple_of_fp32_gemm": ratio_of_pairs(vision_rates, measured.gemm_rate).median,
        },
        "prefill": {
            "operations": prefill_work,
            "tokens_per_s": _numbers([first.prompt_tokens / s for s in seconds["prefill_s"]]),
            "operations_per_s": _numbers(prefill_rates),
            "multiple_of_fp32_gemm": ratio_of_pairs(prefill_rates, measured.gemm_rate).median,
        },
        "decode": {
            "tokens_per_s": _numbers(tokens_per_s),
            "token_s": _numbers(measured.token_s[side]),
            "weight_bytes": moved.weights,
            "cache_bytes": moved.cache,
            "bytes_per_s": _numbers([moved.total * rate for rate in tokens_per_s]),
            "share_of_read_bandwidth": ratio_of_pairs(
                [moved.weights * rate for rate in tokens_per_s], measured.read_bandwidth
            ).median,
            "share_with_cache": ratio_of_pairs(
                [moved.total * rate for rate in tokens_per_s], measured.read_bandwidth
            ).median,
            "python_share": summarize(
                [1 - answer.timings.decode_graph_s / answer.timings.decode_s for answer in answers]
            ).median,
        },
        "prefix": {
            "cached_tokens": warm[0].cached_tokens,
            "first_token_s": _numbers(warm_s),
            "speed_up": ratio_of_pairs(seconds["first_token_s"], warm_s).median,
        },
    }


def _waterfall(image: Mapping[str, Any]) -> dict[str, Any]:
    """The medians that the plot stacks. The token of the prefill is the last step of the decoder's within it."""
    step = image["decode"]["token_s"]["median"]
    return {
        "image": image["image"],
        "visual_tokens": image["visual_tokens"],
        "preprocess_s": image["preprocess_s"]["median"],
        "vision_s": image["vision_s"]["median"],
        "prefill_s": max(0.0, image["prefill_s"]["median"] - step),
        "decode_s": step,
    }


def _context(manifest: Manifest, measured: Measured, length: int, weights: int, *, half: bool) -> dict[str, Any]:
    steps = measured.steps[length]
    moved = decode_bytes(manifest.text, weights, length, half=half)
    return {
        "length": length,
        "token_s": _numbers(steps),
        "tokens_per_s": _numbers([1 / s for s in steps]),
        "bytes_per_s": _numbers([moved.total / s for s in steps]),
    }


def _numbers(values: Sequence[float]) -> dict[str, float]:
    return dataclasses.asdict(summarize(values))


def table(report: Mapping[str, Any]) -> str:
    """The report for people, its warnings about noise first."""
    lines = [
        *warnings(report),
        f"{report['model']}: {report['recipe'].get('name', 'unknown recipe')}; {report['plan']['threads']} threads",
    ]
    machine, read = ("machine", "read") if report["device"] == "cpu" else ("GPU", "copy")
    lines += [
        f"{machine}: {read} {_text(report['read_bandwidth'], 'bandwidth')}, "
        f"fp32 GEMM {_text(report['gemm_rate'], 'operations')}",
        f"load {_text(report['load_s'], 'time')}; memory {_memory(report['memory'])}",
        "",
    ]
    lines += aligned([["", *(image["image"] for image in report["images"])], *_rows(report["images"])])
    lines += ["", *aligned([["context", "per token", "tokens/s", "read"], *map(_context_row, report["contexts"])])]
    lines += ["", *(_computed_line(card) for card in report["computed"])]
    lines += ["", *(_feature_line(feature) for feature in report.get("features", []))]
    return "\n".join(lines).rstrip()


def warnings(report: Mapping[str, Any]) -> list[str]:
    """What makes the figures doubtful, one line each; empty on a quiet machine."""
    found = []
    if report["busy"] and report["busy"]["median"] > _BUSY:
        found.append(f"Warning: other processes took {report['busy']['median']:.0%} of the CPU; stop them and repeat")
    for name in ("read_bandwidth", "gemm_rate"):
        numbers = report[name]
        spread = (numbers["p95"] - numbers["p5"]) / numbers["median"]
        if spread > _NOISY:
            found.append(
                f"Warning: the machine's {name.replace('_', ' ')} varied by {spread:.0%}; it is shared or busy"
            )
    return found


def _rows(images: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    def row(name: str, cell: Any) -> list[str]:
        return [name, *(cell(image) for image in images)]

    return [
        row("visual / prompt tokens", lambda i: f"{i['visual_tokens']} / {i['prompt_tokens']}"),
        row("preprocess", lambda i: _text(i["preprocess_s"], "time")),
        row("vision", lambda i: _text(i["vision_s"], "time")),
        row("  rate", lambda i: _text(i["vision"]["operations_per_s"], "operations")),
        row("  x fp32 GEMM", lambda i: f"{i['vision']['multiple_of_fp32_gemm']:.2f}"),
        row("prefill", lambda i: _text(i["prefill_s"], "time")),
        row("  rate", lambda i: _text(i["prefill"]["tokens_per_s"], "tokens")),
        row("  rate", lambda i: _text(i["prefill"]["operations_per_s"], "operations")),
        row("  x fp32 GEMM", lambda i: f"{i['prefill']['multiple_of_fp32_gemm']:.2f}"),
        row("first token", lambda i: _text(i["first_token_s"], "time")),
        row("  of a second question", lambda i: _text(i["prefix"]["first_token_s"], "time")),
        row("  sooner by", lambda i: f"{i['prefix']['speed_up']:.1f}x"),
        row("per token", lambda i: _text(i["decode"]["token_s"], "time")),
        row("decode", lambda i: _text(i["decode"]["tokens_per_s"], "tokens")),
        row("  read", lambda i: _text(i["decode"]["bytes_per_s"], "bandwidth")),
        row("  share of read bandwidth", lambda i: f"{i['decode']['share_of_read_bandwidth']:.0%} (weights alone)"),
        row("  with the KV cache", lambda i: f"{i['decode']['share_with_cache']:.0%}"),
        row("  Python's share", lambda i: f"{i['decode']['python_share']:.1%}"),
        row("total", lambda i: f"{_text(i['total_s'], 'time')}"),
    ]


def _context_row(context: Mapping[str, Any]) -> list[str]:
    return [
        f"{context['length']} tokens",
        _text(context["token_s"], "time"),
        _text(context["tokens_per_s"], "tokens"),
        _text(context["bytes_per_s"], "bandwidth"),
    ]


def features_json(features: Sequence[Feature]) -> list[dict[str, Any]]:
    """The features as the report holds them."""
    return [dataclasses.asdict(feature) for feature in features]


def _computed_line(card: Mapping[str, Any]) -> str:
    return f"computed, not measured: {card['card']} {card['tokens_per_s']:.0f} tokens/s, at the same share of bandwidth"


def _feature_line(feature: Mapping[str, Any]) -> str:
    note = f"; {feature['note']}" if feature["note"] else ""
    return f"{feature['name']}: {_text(feature['speed'], 'ratio')} times the speed without{note}"


def _text(numbers: Mapping[str, float], quantity: Quantity) -> str:
    return Summary(numbers["median"], numbers["p5"], numbers["p95"], int(numbers["count"])).text(quantity)


def _memory(memory: Mapping[str, int | None]) -> str:
    known = {name: value for name, value in memory.items() if value is not None}
    return ", ".join(f"{name} {value / 1e9:.2f} GB" for name, value in known.items()) or "unknown"
