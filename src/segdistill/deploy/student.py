"""The module that an artefact becomes: an image of any size in, labels and probabilities of that size out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..types import UserError
from .card import Card


class Student(nn.Module):
    """A network with all that surrounds it. ONNX export traces this module, so sizes may be symbolic."""

    def __init__(self, network: nn.Module, card: Card) -> None:
        super().__init__()
        self.network = network
        self.card = card
        self.eval()

    def forward(self, image: Tensor, modality: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Uint8 RGB (H, W, 3) -> labels (H, W) uint8, probabilities (C, H, W) float32; post-processing is not here."""
        height, width = image.shape[:2]
        x = image.permute(2, 0, 1)[None].float() / 255
        whole = (height, width)
        if self.card.fit == "pad":
            whole = padded_shape(height, width, self.card.size)
            x = F.pad(x, (0, whole[1] - width, 0, whole[0] - height))
        x = F.interpolate(x, self.card.size, mode="bilinear", align_corners=False, antialias=True)
        p = self.network(x, modality).float().softmax(1)
        if p.shape[1] != len(self.card.classes):
            raise UserError(f"the student has {p.shape[1]} outputs for the classes {', '.join(self.card.classes)}")
        p = F.interpolate(p, whole, mode="bilinear", align_corners=False)[0, :, :height, :width]
        return self._decide(p), p

    def _decide(self, probabilities: Tensor) -> Tensor:
        """The rule of `labels.decide`, traceable."""
        if len(self.card.classes) == 2:
            return (probabilities[1] >= self.card.threshold).to(torch.uint8)
        return probabilities.argmax(0).to(torch.uint8)


def padded_shape(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """`formats.padded_shape` in operations that keep their meaning in ONNX, whose division rounds towards zero."""
    h, w = size
    return torch.sym_max(height, (width * h + w - 1) // w), torch.sym_max(width, (height * w + h - 1) // h)
