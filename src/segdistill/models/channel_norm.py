"""Layer norm over the channels of an image-shaped tensor, as SAM's neck and decoder use it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ChannelNorm(nn.LayerNorm):
    """(B, C, H, W) -> the same shape, each pixel's C values normalised; epsilon 1e-6 (SAM's `LayerNorm2d`)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        y = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return y.permute(0, 3, 1, 2)
