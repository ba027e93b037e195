"""The `medvlm-export` command."""

import sys
import time
from pathlib import Path

import click

from ..runtime.commands import ErrorCommand, shown_item
from ..runtime.errors import InputError
from ..runtime.manifest import Manifest

try:
    from .convert import Checkpoint, check_export, write_bundle
    from .recipe import PrefillName, Recipe, RecipeName, VisionName, make_recipe
except ModuleNotFoundError as error:
    click.echo(f"Error: {error.name} is not installed; pip install 'medvlm[export]'", err=True)
    sys.exit(InputError.exit_code)

BLOCK_SIZES = ("32", "64", "128", "256")


@click.command(cls=ErrorCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="medvlm")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--int4", "precision", flag_value="int4", default=True, help="4-bit decoder, 8-bit vision (the default).")
@click.option("--int8", "precision", flag_value="int8", help="8-bit decoder and vision.")
@click.option(
    "--nf4", "precision", flag_value="nf4", help="4-bit decoder in bitsandbytes' NF4, which a CPU multiplies slowly."
)
@click.option("--fp32", "precision", flag_value="fp32", help="No quantization.")
@click.option("--block-size", type=click.Choice(BLOCK_SIZES), help="Weights a scale  [default: 128; 64 with --nf4]")
@click.option("--symmetric/--asymmetric", default=False, help="Blocks without or with a zero point  [default: with]")
@click.option(
    "--accuracy-level",
    type=click.Choice(["0", "4"]),
    default="4",
    show_default=True,
    help="MatMulNBits' own: 4 rounds activations to int8 for speed, 0 multiplies in float32.",
)
@click.option(
    "--vision",
    type=click.Choice(["w8a8", "w8", "fp32"]),
    help="The vision encoder: int8 by int8, int8 weights in blocks, or float32  [default: w8a8; fp32 with --fp32]",
)
@click.option(
    "--prefill",
    type=click.Choice(["w8a8", "same"]),
    help="How prompts are read: by an int8 copy of the decoder's layers, or by the decoder  [default: w8a8; same "
    "with --fp32]",
)
@click.option("--force", is_flag=True, help="Replace OUT where it is a bundle.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def main(
    checkpoint: Path,
    out: Path,
    precision: RecipeName,
    block_size: str | None,
    symmetric: bool,
    accuracy_level: str,
    vision: VisionName | None,
    prefill: PrefillName | None,
    force: bool,
    quiet: bool,
) -> None:
    """Convert the Hugging Face CHECKPOINT of MedVLM-R1 or Qwen2-VL-2B to the ONNX bundle OUT.

    Needs neither torch nor transformers (but for --nf4: bitsandbytes and torch). OUT is written whole or not at all.
    """
    recipe = make_recipe(
        precision,
        None if block_size is None else int(block_size),
        symmetric=symmetric,
        accuracy_level=int(accuracy_level),
        vision=vision,
        prefill=prefill,
    )
    opened = check_export(checkpoint, out, recipe, force=force)
    if quiet:
        write_bundle(opened, out, recipe)
        return
    if not opened.has_template:
        click.echo("Note: the checkpoint has no chat template; Qwen2-VL's own is used", err=True)
    started = time.perf_counter()
    manifest = _write_with_progress(opened, out, recipe)
    click.echo(parts_table(manifest, time.perf_counter() - started))


def _write_with_progress(checkpoint: Checkpoint, out: Path, recipe: Recipe) -> Manifest:
    """Write the bundle under a bar that shows the tensor, its bytes, how far the work is and the time left."""
    total = checkpoint.read_bytes(recipe)
    with click.progressbar(length=total, label="Exporting", file=sys.stderr, item_show_func=shown_item) as bar:

        def show(name: str, size: int) -> None:
            bar.update(size, f"{(bar.pos + size) / 1e9:.2f}/{total / 1e9:.2f} GB  {name}, {size / 1e6:.1f} MB")

        return write_bundle(checkpoint, out, recipe, show)


def parts_table(manifest: Manifest, seconds: float) -> str:
    """The parts with their precision, size and time, and the whole with the `seconds` that it took."""
    rows = [(p.name, p.precision, f"{p.bytes / 1e6:.1f} MB", f"{p.seconds:.1f} s") for p in manifest.parts]
    size = sum(file.size for file in manifest.files.values())
    rows = [("part", "precision", "size", "time"), *rows, ("all files", "", f"{size / 1e6:.1f} MB", f"{seconds:.1f} s")]
    return "\n".join(f"{a:18} {b:18} {c:>12} {d:>9}" for a, b, c, d in rows)
