"""One resize: the cache (Pillow), the student (torch) and the exported graph see the same pixels."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from segdistill.formats import resize_image


@pytest.mark.parametrize(
    ("given", "wanted"), [((120, 90), (64, 64)), ((50, 61), (96, 64)), ((64, 64), (64, 64)), ((301, 77), (32, 48))]
)
def test_pillow_and_torch_agree_within_one_level(given, wanted):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*given, 3)).astype(np.uint8)
    exact = F.interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None].float(), wanted, mode="bilinear", antialias=True
    )[0].permute(1, 2, 0)
    difference = np.abs(exact.numpy() - resize_image(image, wanted, "squash"))
    assert difference.max() <= 1.01  # of 255; Pillow rounds after each axis
