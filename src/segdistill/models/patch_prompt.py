"""ESP-MedSAM's self-patch prompt generator (SPPG): which 32-pixel patches hold a class, and a dense prompt made of it.

P = 1x1(GELU(LN(conv2x2, stride 2, 256 -> 64))), prompt = GELU(LN(1x1, 1 -> 256)) of the map [sigmoid(sg P) >= .5],
doubled. Published with one class; here each class has its own last convolution and its own prompt. The map carries no
gradient, so P learns from its own loss only.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .channel_norm import ChannelNorm
from .two_way import DIM

WIDTH = 64
LAYERS = ((0, "weight"), (0, "bias"), (1, "weight"), (1, "bias"))  # of a prompt: 1x1 convolution, norm


def _hard(prob: Tensor) -> Tensor:
    return (prob >= 0.5).to(prob)


def _soft(prob: Tensor) -> Tensor:
    return prob


MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "hard": _hard,  # released
    "soft": _soft,
    "none": torch.zeros_like,  # the prompt is then one learned vector, the same everywhere
}


class PatchPrompt(nn.Module):
    """Patch logits and dense prompts for a number of foreground classes; `kind` is a key of MAPS."""

    def __init__(self, classes: int, kind: str) -> None:
        super().__init__()
        self.map = MAPS[kind]
        self.shared = nn.Sequential(nn.Conv2d(DIM, WIDTH, 2, stride=2), ChannelNorm(WIDTH), nn.GELU())
        self.patch = nn.ModuleList(nn.Conv2d(WIDTH, 1, 1) for _ in range(classes))
        self.prompt = nn.ModuleList(nn.ModuleList([nn.Conv2d(1, DIM, 1), ChannelNorm(DIM)]) for _ in range(classes))

    def logits(self, embedding: Tensor) -> Tensor:
        """P, one channel per foreground class: (B, 256, h, w) -> (B, classes, h/2, w/2)."""
        x = self.shared(embedding)
        return torch.cat([patch(x) for patch in self.patch], dim=1)

    def forward(self, logits: Tensor, chosen: Tensor) -> Tensor:
        """Dense prompts (B, K, 256, h, w) of K classes per row; `chosen` (B, K) indexes the foreground classes."""
        maps = F.interpolate(self.map(logits.detach().sigmoid()), scale_factor=2)
        row = torch.arange(maps.shape[0], device=maps.device)[:, None]
        weight, bias, gain, shift = (self._stacked(*names)[chosen] for names in LAYERS)  # (B, K, 256) each
        x = maps[row, chosen][..., None] * weight[:, :, None, None] + bias[:, :, None, None]  # (B, K, h, w, 256)
        x = F.layer_norm(x, (DIM,), eps=1e-6) * gain[:, :, None, None] + shift[:, :, None, None]
        return F.gelu(x).permute(0, 1, 4, 2, 3)

    def _stacked(self, layer: int, name: str) -> Tensor:
        """A parameter of all prompts, (classes, 256)."""
        return torch.stack([getattr(prompt[layer], name).flatten() for prompt in self.prompt])  # type: ignore[index]
