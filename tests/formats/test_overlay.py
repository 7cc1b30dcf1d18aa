from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from segdistill.formats.overlay import outline, overlay

COLOURS = ((0, 0, 0), (255, 0, 0), (0, 0, 255))


def test_tint_inside_outline_at_the_edge_rest_untouched() -> None:
    image = np.full((7, 7, 3), 100, dtype=np.uint8)
    labels = np.zeros((7, 7), dtype=np.uint8)
    labels[1:6, 1:6] = 1
    drawn = overlay(image, labels, COLOURS, alpha=0.2)
    assert np.array_equal(drawn[labels == 0], image[labels == 0])
    assert (drawn[2:5, 2:5] == (131, 80, 80)).all()
    ring = (labels == 1) & ~ndimage.binary_erosion(labels == 1)
    assert ring.sum() == 16
    assert (drawn[ring] == (255, 0, 0)).all()
    assert (image == 100).all()


def test_where_classes_touch_both_are_outlined_and_the_border_is_no_edge() -> None:
    labels = np.array([[1, 1, 1, 2, 2, 2]] * 3, dtype=np.uint8)
    assert outline(labels).tolist() == [[False, False, True, True, False, False]] * 3
    drawn = overlay(np.zeros((3, 6, 3), dtype=np.uint8), labels, COLOURS, alpha=0.0)
    assert drawn[1].tolist() == [[0, 0, 0]] * 2 + [[255, 0, 0], [0, 0, 255]] + [[0, 0, 0]] * 2


@given(arrays(np.uint8, st.tuples(st.integers(0, 8), st.integers(0, 8)), elements=st.integers(0, 2)))
@settings(max_examples=50, deadline=None)
def test_outline_equals_brute_force(labels: np.ndarray) -> None:
    height, width = labels.shape
    for y in range(height):
        for x in range(width):
            around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            expected = any(0 <= j < height and 0 <= i < width and labels[j, i] != labels[y, x] for j, i in around)
            assert outline(labels)[y, x] == expected


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="same"):
        overlay(np.zeros((4, 4, 3), dtype=np.uint8), np.zeros((4, 5), dtype=np.uint8), COLOURS)
    with pytest.raises(ValueError, match="class index 3 has no colour"):
        overlay(np.zeros((4, 4, 3), dtype=np.uint8), np.full((4, 4), 3, dtype=np.uint8), COLOURS)
