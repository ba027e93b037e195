"""The drawings: seeded, with the finding where the facts say, and nowhere else."""

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from medvlm.demo.contact_sheet import main
from medvlm.demo.scans.canvas import Canvas, blob, blur, oval, paint, smooth
from medvlm.demo.scans.catalog import KINDS, SIZES, draw_scan, places_of
from PIL import Image

FACTS = [
    (kind, finding, place)
    for kind in KINDS
    for finding in (None, *KINDS[kind].findings)
    for place in places_of(kind, finding)
]
# Furthest that draw_scan turns and moves anatomy.
POSES = [(0.2, 0.86, (0.07, 0.07)), (-0.2, 1.04, (-0.07, -0.07)), (0.0, 1.0, (0.0, 0.0))]


@pytest.mark.parametrize(("kind", "finding", "place"), FACTS)
def test_the_same_seed_draws_the_same_scan_and_another_seed_another(
    kind: str, finding: str | None, place: str | None
) -> None:
    first, again, other = (draw_scan(np.random.default_rng(seed), kind, finding, place) for seed in (5, 5, 6))
    assert np.array_equal(first.pixels, again.pixels)
    assert np.array_equal(first.mask, again.mask)
    assert first.pixels.shape != other.pixels.shape or not np.array_equal(first.pixels, other.pixels)
    assert first.pixels.dtype == np.uint8
    assert first.pixels.shape in SIZES
    # An image and not a flat field.
    assert first.pixels.std() > 20


@pytest.mark.parametrize("pose", POSES)
@pytest.mark.parametrize(("kind", "finding", "place"), FACTS)
def test_the_mask_is_empty_without_a_finding_and_on_the_side_that_its_place_names(
    kind: str, finding: str | None, place: str | None, pose: tuple[float, float, tuple[float, float]]
) -> None:
    rotation, scale, shift = pose
    drawing = KINDS[kind].draw(np.random.default_rng(1), Canvas(224, 224, rotation, scale, shift), finding, place)
    mask = drawing.mask > 0.5
    assert drawing.image.shape == drawing.mask.shape == (224, 224)
    if finding is None:
        assert not drawing.mask.any()
        return
    # At least 9 x 9 pixels in all, as small as half a patch.
    assert mask.sum() >= 81
    columns = np.nonzero(mask)[1]
    if place == "left":
        assert columns.mean() < 112
    elif place == "right":
        assert columns.mean() > 112


@pytest.mark.parametrize(("kind", "finding", "place"), [facts for facts in FACTS if facts[1] is not None])
def test_what_the_mask_covers_looks_unlike_the_same_place_of_normal_scans(
    kind: str, finding: str, place: str | None
) -> None:
    """Grey levels under the mask, drawn with the finding and without, over several seeds: they must be told apart."""
    canvas = Canvas(224, 224)
    differences = []
    for seed in range(3):
        with_it = KINDS[kind].draw(np.random.default_rng(seed), canvas, finding, place)
        normal = KINDS[kind].draw(np.random.default_rng(seed), canvas, None, None)
        mask = with_it.mask > 0.5
        differences.append(np.abs(with_it.image - normal.image)[mask].mean())
    assert np.median(differences) > 0.08


@given(st.integers(0, 2**32), st.sampled_from(FACTS), st.sampled_from([(168, 168), (320, 196), (224, 320)]))
@settings(max_examples=30)
def test_any_seed_and_size_draws(seed: int, facts: tuple[str, str | None, str | None], size: tuple[int, int]) -> None:
    kind, finding, place = facts
    drawing = KINDS[kind].draw(np.random.default_rng(seed), Canvas(*size), finding, place)
    assert drawing.image.shape == drawing.mask.shape == size
    assert np.isfinite(drawing.image).all()
    assert 0 <= drawing.mask.min() <= drawing.mask.max() <= 1


def test_an_ellipse_covers_its_area_and_a_turned_canvas_turns_it() -> None:
    straight = Canvas(200, 200).ellipse(0, 0, 0.5, 0.25)
    # Half the side is one unit: pi * 50 * 25 pixels.
    assert straight.sum() == pytest.approx(np.pi * 50 * 25, rel=0.01)
    turned = Canvas(200, 200, rotation=np.pi / 2).ellipse(0, 0, 0.5, 0.25)
    assert np.abs(turned - straight.T).mean() < 0.003


def test_canvas_places_points_in_pixels() -> None:
    # On 200 x 100 pixels, the shorter side spans -1 to 1: a unit is 50 pixels, the centre (100, 50).
    canvas = Canvas(100, 200, scale=0.5, shift=(0.2, -0.1))
    assert canvas.pixels(np.array([[0.0, 0.0], [1.0, 0.0]])).tolist() == [[110.0, 45.0], [135.0, 45.0]]
    # Clockwise on a screen whose y runs down: what was right is below.
    below = Canvas(100, 100, rotation=np.pi / 2).pixels(np.array([[1.0, 0.0]]))
    assert below == pytest.approx(np.array([[50.0, 100.0]]), abs=1e-4)


def test_blur_keeps_a_flat_field_and_spreads_a_point_by_sigma() -> None:
    assert blur(np.full((40, 50), 0.3, np.float32), 2.0) == pytest.approx(np.full((40, 50), 0.3), abs=1e-6)
    point = np.zeros((61, 61), np.float32)
    point[30, 30] = 1
    spread = blur(point, 3.0)
    rows = np.arange(61) - 30
    assert spread.sum() == pytest.approx(1, abs=1e-4)
    assert np.sqrt((spread.sum(1) * rows**2).sum()) == pytest.approx(3.0, rel=0.03)


def test_paint_blends_by_mask_and_opacity() -> None:
    image = np.full((1, 3), 0.2, np.float32)
    mask = np.array([[0, 0.5, 1]], np.float32)
    assert paint(image, mask, 1.0, 0.5)[0].tolist() == pytest.approx([0.2, 0.4, 0.6])


def test_outlines_pass_their_points() -> None:
    square = [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)]
    closed, opened = smooth(square), smooth(square, closed=False)
    for point in square:
        assert np.abs(closed - point).sum(1).min() < 1e-6
        assert np.abs(opened - point).sum(1).min() < 1e-6
    assert blob(np.random.default_rng(0), 0, 0, 0.5, 0.3, wobble=0.0) == pytest.approx(oval(0, 0, 0.5, 0.3))


def test_contact_sheet_holds_every_kind_and_finding(tmp_path_factory: pytest.TempPathFactory) -> None:
    out = tmp_path_factory.mktemp("sheet") / "scans.png"
    assert CliRunner().invoke(main, [str(out)]).exit_code == 0
    with Image.open(out) as sheet:
        assert sheet.mode == "L"
        assert sheet.height == len(KINDS) * (168 + 16)
        assert sheet.width == 6 * 168
    refused = CliRunner().invoke(main, [str(out.with_suffix(".txt"))])
    assert refused.exit_code == 2
    assert "neither .png nor .jpg" in refused.stderr
