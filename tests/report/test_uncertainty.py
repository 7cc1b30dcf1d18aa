from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import entropy

from segdistill.report.figures import REFERENCE
from segdistill.report.uncertainty import scale, uncertainty, uncertainty_map


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_uncertainty_is_the_entropy_as_a_share_of_the_largest(classes):
    rng = np.random.default_rng(classes)
    p = rng.dirichlet(np.full(classes, 0.4), (9, 11)).transpose(2, 0, 1).astype(np.float32)
    expected = 255 * entropy(p.astype(np.float64), base=classes, axis=0)
    assert np.abs(uncertainty(p) - expected).max() <= 0.51


def test_sure_is_0_and_undecided_is_255():
    p = np.zeros((3, 2, 2), np.float32)
    p[0, 0], p[:, 1] = 1, 1 / 3
    assert uncertainty(p).tolist() == [[0, 0], [255, 255]]


def test_the_map_grows_lighter_and_shows_where_the_reference_is():
    unsure = np.tile(np.arange(0, 256, 2, dtype=np.uint8), (128, 1))
    reference = np.zeros((64, 64), np.uint8)
    reference[20:40, 20:40] = 1
    picture = uncertainty_map(unsure, reference, (64, 64))
    assert picture.shape == (64, 64, 3)
    assert (np.diff(picture[5].astype(int).sum(1)) >= 0).all()
    assert tuple(picture[20, 30]) == REFERENCE
    assert tuple(picture[30, 30]) != REFERENCE


def test_the_scale_has_the_maps_colours():
    ends = uncertainty_map(np.array([[0, 255]], np.uint8), np.zeros((1, 2), np.uint8), (1, 2))[0]
    for colour in ends.tolist():
        assert f"rgb({', '.join(map(str, colour))})" in scale()
