from __future__ import annotations

import base64
import io
import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from segdistill.report.figures import (
    CONFUSED,
    MAX_POINTS,
    PREDICTION,
    REFERENCE,
    TINT,
    class_overlay,
    comparison,
    data_uri,
    dice_histogram,
    grow,
    log_panels,
    number,
    outline,
    picture_size,
)


def parse(svg: str) -> ET.Element:
    return ET.fromstring(svg.replace("<svg", '<svg xmlns:xlink="x"', 1))


def path_points(svg: str) -> int:
    """Vertices of the longest path."""
    return max(len(re.findall("[ML]", d)) for d in re.findall(r' d="([^"]*)"', svg))


def train(iteration: int, stage: str = "main", **terms: float) -> dict[str, object]:
    return {"stage": stage, "iteration": iteration, "loss": sum(terms.values()), "lr": 0.01, "terms": terms}


def validation(iteration: int, stage: str = "main", **scores: float) -> dict[str, object]:
    return {"stage": stage, "iteration": iteration, "validation": scores}


def test_outline_of_a_block_is_its_ring() -> None:
    labels = np.zeros((6, 6), dtype=np.uint8)
    labels[1:5, 1:5] = 1
    ring = labels.astype(bool)
    ring[2:4, 2:4] = False
    assert (outline(labels) == ring).all()


def test_outline_separates_touching_classes_and_closes_at_the_border() -> None:
    labels = np.array([[1, 1, 1, 2, 2, 2]] * 5, dtype=np.uint8)
    drawn = outline(labels)
    assert drawn[2].tolist() == [True, False, True, True, False, True]
    assert drawn[0].all()


def test_grow_is_a_plus() -> None:
    mask = np.zeros((3, 4), dtype=bool)
    mask[0, 1] = True
    assert grow(mask).astype(int).tolist() == [[1, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]


def test_comparison_tints_what_differs_and_nothing_else() -> None:
    image = np.full((60, 120, 3), 100, dtype=np.uint8)
    reference, prediction = np.zeros((2, 60, 120), dtype=np.uint8)
    reference[10:50, 5:25] = 1  # missed
    prediction[10:50, 35:55] = 1  # added
    reference[10:50, 65:85] = prediction[10:50, 65:85] = 1  # right
    reference[10:50, 95:115], prediction[10:50, 95:115] = 1, 2  # wrong class
    out = comparison(image, reference, prediction)

    def tinted(colour: tuple[int, int, int]) -> list[int]:
        return [round((1 - TINT) * 100 + TINT * c) for c in colour]

    assert out[30, 15].tolist() == tinted(REFERENCE)
    assert out[30, 45].tolist() == tinted(PREDICTION)
    assert out[30, 75].tolist() == [100, 100, 100]
    assert out[30, 105].tolist() == tinted(CONFUSED)
    assert out[2, 60].tolist() == [100, 100, 100]
    assert out[30, 5].tolist() == list(REFERENCE)
    assert out[30, 35].tolist() == list(PREDICTION)
    # Where both outlines lie, the reference's is seen on both sides of the prediction's.
    assert out[30, 64:67].tolist() == [list(REFERENCE), list(PREDICTION), list(REFERENCE)]
    assert (image == 100).all()


def test_comparison_of_empty_masks_is_the_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    empty = np.zeros((20, 30), dtype=np.uint8)
    assert (comparison(image, empty, empty) == image).all()


def test_class_overlay_uses_the_colours_of_the_classes() -> None:
    labels = np.zeros((20, 40), dtype=np.uint8)
    labels[5:15, 5:15], labels[5:15, 25:35] = 1, 2
    out = class_overlay(np.zeros((20, 40, 3), dtype=np.uint8), labels, [(0, 0, 0), (200, 0, 0), (0, 100, 0)])
    assert out[10, 5].tolist() == [200, 0, 0]
    assert out[10, 10].tolist() == [round(200 * TINT), 0, 0]
    assert out[10, 30].tolist() == [0, round(100 * TINT), 0]
    assert out[1, 20].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("shape", "size"), [((480, 640), (240, 320)), ((2000, 10), (320, 2)), ((16, 32), (160, 320)), ((1, 9000), (1, 320))]
)
def test_picture_size(shape: tuple[int, int], size: tuple[int, int]) -> None:
    assert picture_size(*shape) == size


def test_data_uri_is_a_jpeg_of_that_size_and_keeps_thin_colours() -> None:
    image = np.full((40, 60, 3), 90, dtype=np.uint8)
    image[20] = REFERENCE
    head, _, code = data_uri(image).partition(",")
    assert head == "data:image/jpeg;base64"
    back = np.asarray(Image.open(io.BytesIO(base64.b64decode(code))))
    assert back.shape == image.shape
    assert np.abs(back[20].astype(int) - REFERENCE).max() < 40


@pytest.mark.parametrize(
    "values", [[], [math.nan], [0.5], [0.0, 1.0, 1.0], [math.nan, 0.3, 0.4], list(np.linspace(0, 1, 5000))]
)
def test_histogram_is_small_well_formed_svg(values: list[float]) -> None:
    svg = dice_histogram(values)
    parse(svg)
    assert len(svg) < 60_000


def test_histogram_bars_have_the_heights_of_the_counts() -> None:
    svg = dice_histogram([0.02] * 6 + [0.5] * 3 + [0.98] * 2 + [math.nan])
    bars = re.findall(r'd="M (\S+) (\S+) L (\S+) \2 L \3 (\S+) L \1 \4 z[^>]*fill: var\(--accent\)', svg)
    heights = [float(bottom) - float(top) for _, bottom, _, top in bars]
    assert len(heights) == 20
    np.testing.assert_allclose(np.array(heights)[[0, 10, 19]] / heights[0] * 6, [6, 3, 2], rtol=1e-3)
    assert np.count_nonzero(heights) == 3


def test_charts_follow_the_page_and_need_nothing_else() -> None:
    svg = log_panels([train(i, a=1 / i) for i in range(1, 500)])["main"][0].svg + dice_histogram([0.1, 0.5])
    assert "var(--accent)" in svg
    assert "var(--band)" in svg
    assert "http" not in svg
    assert "<style" not in svg
    assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) == set()
    references = set(re.findall(r'(?:url\(|href=")#(\w+)', svg))
    assert references <= set(re.findall(r'id="(\w+)"', svg))


def test_panels_by_stage_then_scores_loss_terms_rate() -> None:
    log = [train(1, "one", seg=1.0), train(1, "two", seg=1.0, kd=0.5), validation(1, "two", dice=0.5, polyp=0.5)]
    panels = log_panels(log)
    assert {stage: [p.name for p in some] for stage, some in panels.items()} == {
        "one": ["loss", "seg", "learning rate"],
        "two": ["validation Dice", "loss", "seg", "kd", "learning rate"],
    }


def test_every_class_has_its_validation_curve_and_the_best_is_named() -> None:
    log = [validation(100 * i, dice=d, a=d, b=1 - d) for i, d in enumerate((0.2, 0.7, math.nan, 0.6), 1)]
    panels = log_panels(log)["main"]
    assert [(p.name, p.note) for p in panels] == [
        ("validation Dice", "best 0.700 at 200, 1 not finite"),
        ("validation Dice, a", "best 0.700 at 200, 1 not finite"),
        ("validation Dice, b", "best 0.800 at 100, 1 not finite"),
    ]


def test_long_curves_are_thinned_and_non_finite_values_left_out() -> None:
    rng = np.random.default_rng(0)
    log = [train(i, a=float(rng.random()), b=math.inf if i % 2 else 1.0, c=math.nan) for i in range(1, 10_001)]
    panels = {p.name: p for p in log_panels(log)["main"]}
    assert set(panels) == {"a", "b", "learning rate"}  # the sum and c are never finite
    assert panels["b"].note == "last 1, 5,000 not finite"
    for panel in panels.values():
        parse(panel.svg)
        assert path_points(panel.svg) <= 2 * MAX_POINTS + 10
        assert len(panel.svg) < 40_000


def test_a_single_point_is_seen() -> None:
    (panel,) = [p for p in log_panels([train(1, a=1.0)])["main"] if p.name == "a"]
    assert re.search(r"<use [^>]*var\(--accent\)", panel.svg)


def test_empty_log_has_no_panels() -> None:
    assert log_panels([]) == {}


def test_global_matplotlib_settings_neither_matter_nor_change() -> None:
    import matplotlib

    before = dice_histogram([0.1, 0.2])
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert dice_histogram([0.1, 0.2]) == before
        assert matplotlib.rcParams["font.size"] == 30


@pytest.mark.parametrize(("value", "expected"), [(1, 1.0), (np.float32(0.5), 0.5)])
def test_number(value: object, expected: float) -> None:
    assert number(value) == expected


@pytest.mark.parametrize("value", [None, "x", math.nan, -math.inf])
def test_not_a_number(value: object) -> None:
    assert math.isnan(number(value))


def test_the_noisiest_picture_can_be_embedded():
    """Pillow's optimising JPEG encoder gives up where its buffer, one byte per pixel, is too small."""
    noise = np.random.default_rng(0).integers(0, 256, (320, 320, 3)).astype(np.uint8)
    assert data_uri(noise).startswith("data:image/jpeg;base64,")


def test_watched_scores_share_the_chart_of_the_scored_one() -> None:
    log = [
        {**validation(i, dice=0.1 * i, dice_polyp=0.1 * i), "watched": {"unet": 0.2, "sam": 0.05 * i}}
        for i in range(1, 8)
    ]
    first, *others = log_panels(log)["main"]
    assert (first.name, first.note) == ("validation Dice", "best of the student 0.700 at 7")
    assert [entry[:2] for entry in first.legend] == [("student", "0.700"), ("unet", "0.200"), ("sam", "0.350")]
    colours = [colour for *_, colour in first.legend]
    assert colours == ["var(--accent)", "var(--series-1)", "var(--series-2)"]
    assert all(f"stroke: {colour}" in first.svg for colour in colours)
    assert "#05" not in first.svg
    parse(first.svg)
    assert others == []


def test_hidden_scores_have_a_chart_of_their_own() -> None:
    log = [
        {**validation(i, dice=0.5, dice_a=0.4, dice_b=0.6), "hidden": {"unet": math.nan, "student": 0.1 * i}}
        for i in range(1, 4)
    ]
    panels = log_panels(log)["main"]
    assert [panel.name for panel in panels[:3]] == [
        "validation Dice",
        "validation Dice, dice_a",
        "validation Dice, dice_b",
    ]
    assert panels[3].name == "Dice on training images whose masks the budget hides"
    assert (panels[3].note, panels[3].legend, panels[0].legend) == ("last 0.300", (), ())
    several = log_panels([log[0] | {"hidden": {"unet": 0.2, "student": 0.1}}])["main"][3]
    assert [entry[:2] for entry in several.legend] == [("student", "0.100"), ("unet", "0.200")]


def test_long_scores_of_many_stay_small() -> None:
    log = [{**validation(i, dice=0.5), "watched": {f"n{k}": k / 9 for k in range(8)}} for i in range(1, 3 * MAX_POINTS)]
    panel = log_panels(log)["main"][0]
    assert len(panel.legend) == 9
    assert path_points(panel.svg) <= MAX_POINTS + 1
    assert "var(--band)" not in panel.svg
