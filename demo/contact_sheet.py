"""`python -m medvlm.demo.contact_sheet OUT`: a picture of every kind of scan with every finding."""

from pathlib import Path

import click
import numpy as np
from PIL import Image, ImageDraw

from ..runtime.commands import ErrorCommand
from ..runtime.errors import InputError
from .scans.catalog import KINDS, draw_scan, places_of

_CELL, _CAPTION, _COLUMNS = 168, 16, 6


@click.command(cls=ErrorCommand)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--seed", default=1, show_default=True)
def main(out: Path, seed: int) -> None:
    """Draw a contact sheet of the demo's scans into OUT, e.g. scans.jpg."""
    if Image.registered_extensions().get(out.suffix.lower()) not in ("PNG", "JPEG"):
        raise InputError(f"{out} is neither .png nor .jpg; choose one of them")
    try:
        contact_sheet(seed).save(out)
    except OSError as error:
        raise InputError(f"{out} cannot be written ({error.strerror}); choose another OUT") from None


def contact_sheet(seed: int) -> Image.Image:
    """One row a kind of scan: normal ones first, then each finding, at a place drawn for each."""
    sheet = Image.new("L", (_COLUMNS * _CELL, len(KINDS) * (_CELL + _CAPTION)), 32)
    pen = ImageDraw.Draw(sheet)
    for row, kind in enumerate(KINDS.values()):
        findings = [None, *kind.findings]
        # The rest of the row: a second normal one, then findings again.
        findings = (findings + findings)[:_COLUMNS]
        for column, finding in enumerate(findings):
            rng = np.random.default_rng([seed, row, column])
            places = places_of(kind.name, finding)
            place = places[int(rng.integers(len(places)))]
            scan = draw_scan(rng, kind.name, finding, place)
            left, top = column * _CELL, row * (_CELL + _CAPTION)
            sheet.paste(_fitted(scan.pixels), (left, top + _CAPTION))
            caption = f"{kind.name}: {finding or 'normal'}" + (f", {place}" if place else "")
            pen.text((left + 2, top + 2), caption, fill=230, font_size=10)
    return sheet


def _fitted(pixels: np.ndarray) -> Image.Image:
    cell = Image.new("L", (_CELL, _CELL), 0)
    image = Image.fromarray(pixels)
    image.thumbnail((_CELL - 2, _CELL - 2))
    cell.paste(image, ((_CELL - image.width) // 2, (_CELL - image.height) // 2))
    return cell


if __name__ == "__main__":
    main()
