from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segdistill.deploy.artefact import Card
from segdistill.deploy.predictor import Prediction
from segdistill.deploy.tiling import coverage, predict_tiled, tile_starts, window


class PixelWise:
    """p of a pixel depends on that pixel alone, so any tiling must give what the whole image gives."""

    def __init__(self, card):
        self.card = card
        self.shapes = []

    def predict(self, image, modality=None):
        self.shapes.append(image.shape[:2])
        p = 1 + image.transpose(2, 0, 1)[: len(self.card.classes)].astype(np.float32)
        return Prediction(np.zeros(image.shape[:2], np.uint8), p / p.sum(0))


def make(classes, size, **changes):
    return Card("x", {}, "m", tuple("abcd"[:classes]), ((0, 0, 0),) * classes, size, "none", **changes)


@given(st.integers(1, 40), st.integers(0, 400), st.floats(0, 0.95))
def test_tiles_cover_the_axis_and_overlap(tile, more, overlap):
    length = tile + more
    starts = tile_starts(length, tile, overlap)
    assert starts[0] == 0
    assert starts[-1] == length - tile
    steps = np.diff(starts)
    assert (steps > 0).all()
    assert steps.max(initial=0) <= max(1, int(tile * (1 - overlap))) + 1  # rounding of even spacing
    weights = window(tile)
    assert (weights > 0).all()
    total = coverage(starts, weights)
    assert total.shape == (length,)
    assert (total > 0).all()
    brute = [sum(weights[i - s] for s in starts if s <= i < s + tile) for i in range(length)]
    np.testing.assert_allclose(total, brute, rtol=1e-4)


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.tuples(st.integers(3, 30), st.integers(3, 30)),
    st.floats(0, 0.8),
    st.integers(2, 3),
)
def test_tiles_of_a_pixel_wise_student_give_the_whole(shape, size, overlap, classes):
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    predictor = PixelWise(make(classes, size))
    labels, p = predict_tiled(predictor, image, overlap)[:2]
    expected = PixelWise(predictor.card).predict(image).probabilities
    assert set(predictor.shapes) == {size}
    assert p.dtype == np.float32
    np.testing.assert_allclose(p, expected, atol=1e-5)
    sure = np.sort(expected, axis=0)[-1] - np.sort(expected, axis=0)[-2] > 1e-4
    np.testing.assert_array_equal(labels[sure], expected.argmax(0)[sure])


def test_a_tile_counts_most_at_its_centre():
    class Ordinal(PixelWise):
        def predict(self, image, modality=None):
            self.shapes.append(image.shape)
            p = np.full(image.shape[:2], float(len(self.shapes) == 2), np.float32)  # the right tile says 1
            return Prediction(np.zeros(image.shape[:2], np.uint8), np.stack([1 - p, p]))

    p = predict_tiled(Ordinal(make(2, (8, 20))), np.zeros((8, 30, 3), np.uint8), overlap=0.5).probabilities[1]
    assert (p[:, :10] == 0).all()
    assert (p[:, 20:] > 0.9999).all()
    assert (np.diff(p[0, 9:21]) > 0).all()  # no seam


def test_labels_follow_the_card():
    card = make(2, (16, 16), threshold=0.9, postprocess="largest")
    image = np.zeros((40, 40, 3), np.uint8)
    image[2:6, 2:6, 1] = image[20:30, 20:30, 1] = 255
    image[35:, 35:, 1] = 4  # p = 5 / 6
    labels = predict_tiled(PixelWise(card), image).labels
    assert labels.sum() == 100
    assert labels[20:30, 20:30].all()


@pytest.mark.parametrize("shape", [(100, 130), (20, 90)])
def test_tiles_of_a_real_student_agree_with_it_inside(card, network, image, shape):
    from segdistill.deploy.predictor import TorchPredictor
    from segdistill.deploy.student import Student

    c = card()
    picture = image(*shape)
    tiled = predict_tiled(TorchPredictor(Student(network(c), c)), picture)
    big = card(size=shape)  # the same convolution over the whole image: it differs at the borders of image and tiles
    whole = TorchPredictor(Student(network(c), big)).predict(picture)
    inner = (slice(1, -1), slice(1, -1))
    assert np.abs(tiled.probabilities - whole.probabilities)[:, *inner].mean() < 0.01
    assert (tiled.labels == whole.labels)[inner].mean() > 0.99
