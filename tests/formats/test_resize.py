"""The one resize. Oracles: the triangle filter written out, and hand-sized cases."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segdistill.formats import padded_shape, resize_image, resize_labels
from segdistill.types import UserError

RNG = np.random.default_rng(0)
SIDES = st.integers(1, 60)


def triangle(length: int, out: int) -> np.ndarray:
    """Weights (out, length) of antialiased bilinear interpolation with half-pixel centres."""
    scale = length / out
    support = max(scale, 1.0)
    centres = (np.arange(out)[:, None] + 0.5) * scale
    weights = np.clip(1 - np.abs(np.arange(length)[None] + 0.5 - centres) / support, 0, None)
    return weights / weights.sum(axis=1, keepdims=True)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(SIDES, SIDES, SIDES, SIDES)
def test_image_is_the_triangle_filter(height: int, width: int, h: int, w: int) -> None:
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = np.einsum("ah,hwc,bw->abc", triangle(height, h), image.astype(float), triangle(width, w))
    assert np.abs(resize_image(image, (h, w), "squash") - expected).max() < 1.02  # Pillow rounds after each axis


@settings(max_examples=60, deadline=None, derandomize=True)
@given(SIDES, SIDES, SIDES, SIDES)
def test_labels_are_the_nearest_centre(height: int, width: int, h: int, w: int) -> None:
    labels = np.random.default_rng(height).integers(0, 255, (height, width), dtype=np.uint8)
    rows = [(2 * i + 1) * height // (2 * h) for i in range(h)]
    columns = [(2 * i + 1) * width // (2 * w) for i in range(w)]
    actual = resize_labels(labels, (h, w), "squash")
    exact = actual == labels[np.ix_(rows, columns)]
    if not exact.all():  # a centre that falls on a pixel border may go to either side (Pillow computes in floats)
        on_border = [(2 * i + 1) * height % (2 * h) == 0 for i in range(h)]
        on_border_w = [(2 * i + 1) * width % (2 * w) == 0 for i in range(w)]
        assert not (~exact & ~(np.array(on_border)[:, None] | np.array(on_border_w)[None])).any()


@settings(derandomize=True)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 600), st.integers(1, 600))
def test_padded_shape_is_the_smallest_at_that_ratio(height: int, width: int, h: int, w: int) -> None:
    tall, wide = padded_shape(height, width, (h, w))
    assert tall >= height
    assert wide >= width
    assert tall == height or wide == width  # only one side is padded
    assert tall >= Fraction(width * h, w)
    assert wide >= Fraction(height * w, h)
    assert tall == height or tall - 1 < Fraction(width * h, w)
    assert wide == width or wide - 1 < Fraction(height * w, h)


def test_pad_adds_zeros_at_the_bottom_or_right() -> None:
    labels = np.ones((2, 4), np.uint8)
    np.testing.assert_array_equal(resize_labels(labels, (4, 4), "pad"), [[1] * 4] * 2 + [[0] * 4] * 2)
    np.testing.assert_array_equal(resize_labels(labels.T, (4, 4), "pad"), [[1, 1, 0, 0]] * 4)
    image = np.full((2, 4, 3), 200, np.uint8)
    np.testing.assert_array_equal(resize_image(image, (4, 4), "pad")[..., 0], [[200] * 4] * 2 + [[0] * 4] * 2)


def test_nothing_to_do_returns_the_input() -> None:
    image = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    for fit in ("squash", "pad"):
        assert resize_image(image, (6, 8), fit) is image
        assert resize_labels(image[..., 0], (6, 8), fit).shape == (6, 8)


def test_views_are_resized_as_what_they_show() -> None:
    image = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    view = image[::-1, ::2]
    np.testing.assert_array_equal(
        resize_image(view, (7, 9), "pad"), resize_image(np.ascontiguousarray(view), (7, 9), "pad")
    )


def test_what_cannot_be_fitted() -> None:
    with pytest.raises(UserError, match="--fit squash"):
        resize_image(np.zeros((1, 100_000, 3), np.uint8), (64, 64), "pad")
    with pytest.raises(UserError, match="squash or pad"):
        resize_image(np.zeros((4, 4, 3), np.uint8), (2, 2), "crop")
