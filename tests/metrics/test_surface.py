"""Oracle: all pairs of boundary voxels (scipy cdist), with the boundary found voxel by voxel."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.spatial.distance import cdist

from segdistill.metrics import surface
from segdistill.metrics.surface import assd, boundary, hd95, nsd, surface_distances

SEARCHES = {"tree": 0, "transform": 10**9}  # PIXELS_PER_POINT that forces this search on small masks


def boundary_oracle(mask):
    """Coordinates (N, n) of the foreground voxels that have a neighbour outside of the mask or of the image."""
    inside = set(map(tuple, np.argwhere(mask)))
    steps = [sign * unit for unit in np.eye(mask.ndim, dtype=int) for sign in (-1, 1)]
    return np.array([v for v in sorted(inside) if any(tuple(v + step) not in inside for step in steps)])


def distances_oracle(prediction, reference, spacing):
    pairs = cdist(boundary_oracle(prediction) * np.array(spacing), boundary_oracle(reference) * np.array(spacing))
    return pairs.min(axis=1), pairs.min(axis=0)


def hd95_pooled_medpy(forth, back):
    """What medpy.metric.binary.hd95 computes."""
    return np.percentile(np.concatenate([forth, back]), 95)


def disk(size, centre, radius):
    y, x = np.ogrid[:size, :size]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2


def pixel(shape, at):
    mask = np.zeros(shape, dtype=bool)
    mask[at] = True
    return mask


def border(shape):
    mask = np.ones(shape, dtype=bool)
    mask[tuple(slice(2, -2) for _ in shape)] = False
    return mask


DEGENERATE = {
    "one pixel": pixel((9, 12), (4, 5)),
    "corner": pixel((9, 12), (0, 11)),
    "full": np.ones((9, 12), dtype=bool),
    "frame along the border": border((9, 12)),
    "one row": np.arange(9)[:, None] + np.zeros((9, 12)) == 8,
    "checkerboard": np.indices((9, 12)).sum(0) % 2 == 0,
    "noise": np.random.default_rng(0).random((9, 12)) < 0.4,
}


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 0.5), (3.0, 0.7)])
@pytest.mark.parametrize(("first", "second"), list(itertools.product(DEGENERATE, repeat=2)))
def test_degenerate_masks_match_all_pairs(first, second, spacing, search, monkeypatch):
    monkeypatch.setattr(surface, "PIXELS_PER_POINT", SEARCHES[search])
    measured = surface_distances(DEGENERATE[first], DEGENERATE[second], spacing)
    for ours, theirs in zip(measured, distances_oracle(DEGENERATE[first], DEGENERATE[second], spacing), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize("search", SEARCHES)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_random_masks_of_any_dimension_match_all_pairs(search, data):
    shape = data.draw(array_shapes(min_dims=1, max_dims=3, max_side=8))
    prediction, reference = (data.draw(arrays(bool, shape)) for _ in range(2))
    assume(prediction.any() and reference.any())
    spacing = data.draw(st.tuples(*[st.floats(0.05, 20)] * len(shape)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(surface, "PIXELS_PER_POINT", SEARCHES[search])
        measured = surface_distances(prediction, reference, spacing)
    forth, back = distances_oracle(prediction, reference, spacing)
    np.testing.assert_allclose(measured[0], forth, rtol=1e-9)
    np.testing.assert_allclose(measured[1], back, rtol=1e-9)
    assert hd95(*measured) == pytest.approx(max(np.percentile(forth, 95), np.percentile(back, 95)))
    assert assd(*measured) == pytest.approx(np.concatenate([forth, back]).mean())


@settings(deadline=None)
@given(mask=arrays(bool, array_shapes(min_dims=1, max_dims=3, max_side=7)))
def test_boundary_matches_a_look_at_each_neighbour(mask):
    np.testing.assert_array_equal(np.argwhere(boundary(mask)).tolist(), boundary_oracle(mask).tolist())


@pytest.mark.parametrize("shift", [(40, 0), (0, 40), (24, 32)])
def test_a_disk_moved_by_40_pixels_is_40_pixels_off(shift):
    moved = disk(256, (100 + shift[0], 100 + shift[1]), 50)
    forth, back = surface_distances(disk(256, (100, 100), 50), moved, (1.0, 1.0))
    assert hd95(forth, back) == pytest.approx(40, abs=0.6)
    assert nsd(forth, back, 2.0) < 0.1


def test_spacing_scales_each_axis():
    below, beside = pixel((20, 20), (12, 5)), pixel((20, 20), (2, 15))
    origin = pixel((20, 20), (2, 5))
    assert hd95(*surface_distances(origin, below, (0.5, 3.0))) == pytest.approx(5)
    assert hd95(*surface_distances(origin, beside, (0.5, 3.0))) == pytest.approx(30)


def test_a_nearer_voxel_along_the_finer_axis_wins():
    here, there = pixel((9, 9), (4, 4)), pixel((9, 9), (4, 7)) | pixel((9, 9), (6, 4))
    forth, _ = surface_distances(here, there, (5.0, 1.0))
    assert forth.tolist() == [3.0]


def test_hd95_is_the_larger_direction_and_not_medpys_pooled_value():
    reference = disk(128, (40, 40), 20)
    prediction = reference | disk(
        128, (110, 110), 4
    )  # 23 of its boundary voxels are far off; none of the reference's is
    forth, back = distances_oracle(prediction, reference, (1, 1))
    measured = hd95(*surface_distances(prediction, reference, (1.0, 1.0)))
    assert measured == pytest.approx(np.percentile(forth, 95))
    assert np.percentile(back, 95) == 0
    assert measured > hd95_pooled_medpy(forth, back) + 1


def test_nsd_counts_both_boundaries_and_includes_the_tolerance():
    # The reference's boundary voxels lie at columns 0 and 3, the prediction's at 0 and 5.
    reference, prediction = np.array([1, 1, 1, 1, 0, 0], bool), np.array([1, 1, 1, 1, 1, 1], bool)
    distances = surface_distances(prediction, reference, (1.0,))
    assert [d.tolist() for d in distances] == [[0, 2], [0, 2]]
    assert nsd(*distances, 2.0) == 1
    assert nsd(*distances, 1.9) == 0.5


def test_tolerance_bears_the_rounding_of_the_spacing():
    distances = surface_distances(pixel((9,), 1), pixel((9,), 4), (0.1,))
    assert distances[0][0] > 0.3  # 0.30000000000000004
    assert nsd(*distances, 0.3) == 1


@pytest.mark.parametrize(
    ("mask", "other_search"),
    [
        (disk(128, (60, 60), 50), "_nearest_by_transform"),
        (np.random.default_rng(0).random((64, 64)) < 0.5, "_nearest_by_tree"),
    ],
    ids=["blob", "noise"],
)
def test_each_search_serves_the_masks_it_is_fast_for(mask, other_search, monkeypatch):
    monkeypatch.setattr(surface, other_search, None)  # calling it would raise
    for ours, theirs in zip(
        surface_distances(mask, mask.T, (1.0, 1.0)), distances_oracle(mask, mask.T, (1, 1)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_an_empty_mask_is_refused():
    with pytest.raises(ValueError, match="not empty"):
        surface_distances(np.zeros((3, 3), bool), np.ones((3, 3), bool), (1.0, 1.0))
