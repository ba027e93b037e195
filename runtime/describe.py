"""A manifest in words: what a bundle holds, how it was made, and what it lost."""

from typing import Any

from .errors import plain
from .manifest import Loss, Manifest

_PARTS = {"decoder": "decoder", "head": "head", "vision": "vision", "prefill": "prompts"}
_UNMEASURED = "not measured: medvlm-export --report measures it"


def describe(manifest: Manifest) -> str:
    """The manifest for a person."""
    text, vision = manifest.text, manifest.vision
    width = max([18, *(len(part.precision) for part in manifest.parts)])
    lines = [
        f"{manifest.source.name}, converted by {manifest.created_by} (format {manifest.format_version})",
        f"decoder   {text.layers} layers, width {text.hidden_size}, {text.num_heads} heads ({text.num_kv_heads} of "
        f"keys and values), vocabulary {text.vocab_size}, up to {text.max_positions} tokens",
        f"vision    {vision.depth} blocks, width {vision.embed_dim}, {vision.num_heads} heads; one visual token for "
        f"{vision.patch_size * vision.merge_size} x {vision.patch_size * vision.merge_size} pixels",
        f"for       {' and '.join(manifest.devices)}",
        f"images    {manifest.preprocessing.min_pixels} to {manifest.preprocessing.max_pixels} pixels",
        f"KV cache  {text.kv_bytes_per_token / 1024:.0f} KiB for each token",
        f"recipe    {recipe_line(manifest.recipe)}",
        f"lost      {loss_line(manifest.loss) if manifest.loss else _UNMEASURED}",
        "",
        *(f"{part.name:18} {part.precision:{width}} {part.bytes / 1e6:9.1f} MB" for part in manifest.parts),
        "",
        *(f"{entry.sha256}  {name}" for name, entry in manifest.files.items()),
    ]
    return "\n".join(map(plain, lines))


def recipe_line(recipe: dict[str, Any]) -> str:
    """How each part was quantized, as far as the recipe says it: its keys differ between versions of the exporter."""
    parts: dict[str, list[str]] = {}
    for name, shown in _PARTS.items():
        if isinstance(recipe.get(name), dict):
            parts.setdefault(_precision(recipe[name], recipe), []).append(shown)
    words = [f"{' and '.join(names)} {precision}" for precision, names in parts.items()]
    if "prefill" in recipe and recipe["prefill"] is None:
        words.append("prompts through the decoder")
    if isinstance(recipe.get("eight_bits"), list) and recipe["eight_bits"]:
        words.append(f"{len(recipe['eight_bits'])} of the tensors at 8 bits")
    if recipe.get("embedding"):
        words.append(f"embeddings {recipe['embedding']}")
    return f"{recipe.get('name', 'unnamed')}: {'; '.join(words) or 'it says no more'}"


def _precision(part: dict[str, Any], recipe: dict[str, Any]) -> str:
    """One part's precision in words, e.g. "4 bits by hqq in blocks of 128, asymmetric"."""
    kind = part.get("kind", "of unknown precision")
    if kind in ("fp32", "fp16"):
        return kind
    if kind == "w8a8":
        return "W8A8 (int8 weights and activations)"
    words = [f"{part['bits']} bits" if kind == "blockwise" and "bits" in part else str(kind)]
    method = part.get("method") or recipe.get("method")
    words += [f"by {method}"] if method else []
    words += [f"in blocks of {part['block_size']}"] if "block_size" in part else []
    symmetry = {True: ", symmetric", False: ", asymmetric"}.get(part.get("symmetric") is True, "")
    return " ".join(words) + (symmetry if "symmetric" in part else "")


def loss_line(loss: Loss) -> str:
    """What was measured against fp32."""
    return (
        f"KL divergence {loss.kl:.3g} nats, top-1 agreement {loss.top1_agreement:.1%} over {loss.tokens} tokens; "
        f"accuracy {loss.accuracy:.1%} (fp32 {loss.reference_accuracy:.1%}), {loss.flips} of {loss.questions} letters "
        f"changed ({loss.dataset})"
    )
