"""The module that an artefact becomes: an image of any size in, labels and probabilities of that size out."""

from __future__ import annotations

from collections.abc import Sequence

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

    @property
    def routes(self) -> bool:
        """Whether the network tells modalities apart, each with weights of its own."""
        return len(self.card.modalities) > 1 and hasattr(self.network, "routed")

    def forward(self, image: Tensor, modality: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Uint8 RGB (H, W, 3) -> labels (H, W) uint8, probabilities (C, H, W) float32; post-processing is not here."""
        labels, probabilities = self.batch(image[None], modality)
        return labels[0], probabilities[0]

    def routed(self, image: Tensor, modality: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """As forward, and the probability of each modality (M,); a modality (1,) below 0 is one that is not told."""
        labels, probabilities, routing = self.routed_batch(image[None], modality)
        return labels[0], probabilities[0], routing[0]

    def route(self, image: Tensor) -> Tensor:
        """The probability of each modality (M,) alone, from the first layers."""
        found: Tensor = self.network.route(self._prepared(image[None])[0])[0]  # type: ignore[operator]
        return found.float()

    def batch(self, images: Tensor, modality: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Images of one size (N, H, W, 3) -> labels (N, H, W), probabilities (N, C, H, W)."""
        x, whole = self._prepared(images)
        return self._finished(self.network(x, modality), whole, images.shape[1:3])

    def routed_batch(self, images: Tensor, modality: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """As batch, and the probability of each modality (N, M); a modality (1,) is that of all."""
        x, whole = self._prepared(images)
        logits, routing = self.network.routed(x, modality)  # type: ignore[operator]
        return *self._finished(logits, whole, images.shape[1:3]), routing.float()

    def _prepared(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The network's input, and the (height, width) that it shows, padding included."""
        height, width = images.shape[1:3]
        x = images.permute(0, 3, 1, 2).float()
        whole = (height, width)
        if self.card.fit == "pad":
            whole = padded_shape(height, width, self.card.size)
            x = F.pad(x, (0, whole[1] - width, 0, whole[0] - height))
        x = F.interpolate(x, self.card.size, mode="bilinear", align_corners=False, antialias=True)
        return x / 255, whole  # after resizing, which is linear: a large image is gone through once less

    def _finished(self, logits: Tensor, whole: tuple[int, int], size: Sequence[int]) -> tuple[Tensor, Tensor]:
        p = logits.float().softmax(1)
        if p.shape[1] != len(self.card.classes):
            raise UserError(f"the student has {p.shape[1]} outputs for the classes {', '.join(self.card.classes)}")
        p = F.interpolate(p, whole, mode="bilinear", align_corners=False)[..., : size[0], : size[1]]
        return self._decide(p), p

    def _decide(self, probabilities: Tensor) -> Tensor:
        """The rule of `labels.decide`, traceable."""
        if len(self.card.classes) == 2:
            return (probabilities[:, 1] >= self.card.threshold).to(torch.uint8)
        return probabilities.argmax(1).to(torch.uint8)


class Batched(nn.Module):
    """A student's `batch` as a module of its own: what is traced."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Labels, probabilities."""
        return self.student.batch(images)


class Routed(Batched):
    """The same where each modality has its own weights."""

    def forward(self, images: Tensor, modality: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        """Labels, probabilities, probability of each modality."""
        return self.student.routed_batch(images, modality)


def padded_shape(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """`formats.padded_shape` in operations that keep their meaning in ONNX, whose division rounds towards zero."""
    h, w = size
    return torch.sym_max(height, (width * h + w - 1) // w), torch.sym_max(width, (height * w + h - 1) // h)
