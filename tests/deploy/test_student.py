from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from segdistill import formats
from segdistill.deploy.student import Student, padded_shape
from segdistill.types import UserError


class Watcher(nn.Module):
    """Keeps what it was given; its logits are red and green."""

    def forward(self, image, modality=None):
        self.seen = image
        return image[:, :2]


@pytest.mark.parametrize("fit", ["squash", "pad"])
@pytest.mark.parametrize("shape", [(97, 141), (301, 210), (20, 31), (33, 260), (32, 48), (211, 40)])
def test_input_is_within_one_level_of_the_resize_of_formats(card, image, fit, shape):
    student = Student(Watcher(), card(fit=fit))
    student(torch.from_numpy(image(*shape)))
    seen = 255 * student.network.seen[0].permute(1, 2, 0).numpy()
    expected = formats.resize_image(image(*shape), (32, 48), fit)  # Pillow
    assert np.abs(seen - expected).max() <= 1.01  # Pillow rounds to whole levels twice; its weights have 22 bits


@given(st.integers(1, 5000), st.integers(1, 5000), st.tuples(st.integers(1, 700), st.integers(1, 700)))
def test_padded_shape_is_that_of_formats(height, width, size):
    assert padded_shape(height, width, size) == formats.padded_shape(height, width, size)


@pytest.mark.parametrize("fit", ["squash", "pad"])
@pytest.mark.parametrize("shape", [(64, 200), (211, 90), (40, 40)])
def test_an_object_comes_back_where_it_was(card, fit, shape):
    y, x = np.ogrid[: shape[0], : shape[1]]
    disk = np.hypot(y - 0.6 * shape[0], x - 0.3 * shape[1]) < 0.25 * min(shape)
    rgb = np.zeros((*shape, 3), np.uint8)
    rgb[..., 0], rgb[..., 1] = np.where(disk, 0, 255), np.where(disk, 255, 0)  # red: background, green: disk
    labels, p = Student(Watcher(), card(fit=fit, size=(96, 96)))(torch.from_numpy(rgb))
    labels = labels.numpy() == 1
    assert labels.shape == shape
    assert p.shape == (2, *shape)
    assert (labels & disk).sum() / (labels | disk).sum() > 0.9


def test_threshold_is_met_from_its_value_on(card, network, image):
    picture = torch.from_numpy(image(50, 60))
    for threshold in (0.2, 0.5, 0.8):
        c = card(threshold=threshold)
        labels, p = Student(network(c), c)(picture)
        assert labels.dtype == torch.uint8
        np.testing.assert_array_equal(labels, p[1].detach() >= threshold)
    assert 0 < labels.float().mean() < 0.5


def test_four_classes_take_the_most_probable(card, network, image):
    c = card(4)
    labels, p = Student(network(c), c)(torch.from_numpy(image(50, 60)))
    np.testing.assert_array_equal(labels, p.detach().numpy().argmax(0))
    np.testing.assert_allclose(p.detach().sum(0), 1, rtol=1e-5)
    assert set(labels.unique().tolist()) == {0, 1, 2, 3}


def test_a_card_with_another_number_of_classes_is_an_error(card, image):
    with pytest.raises(UserError, match="2 outputs for the classes background, polyp"):
        Student(Watcher(), card(3))(torch.from_numpy(image(20, 20)))
