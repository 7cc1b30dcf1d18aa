"""Which modality an image has, by what ESP-MedSAM's trunk computes before its first controller (beyond the paper)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .tiny_vit import DIMS

WIDTH = 2 * (DIMS[0] + DIMS[1])
KEPT = 64  # features remembered of each modality: 98 kB


def early_features(early: Sequence[Tensor]) -> Tensor:
    """Deviation and mean of the trunk's early outputs, normalised, (B, WIDTH). No gradient reaches the trunk."""
    pooled = torch.cat([part for x in early for part in torch.std_mean(x.detach(), dim=(2, 3))], dim=1)
    return F.layer_norm(pooled, pooled.shape[1:])


class ModalityClassifier(nn.Module):
    """Features (B, WIDTH) -> a logit per modality (B, M).

    One linear map per modality, so that adding one leaves the logits of the others as they are, bit for bit.
    Untrained, it gives all the same probability.
    """

    def __init__(self, modalities: int) -> None:
        super().__init__()
        self.scores = nn.ModuleList(nn.Linear(WIDTH, 1) for _ in range(modalities))
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Tensor) -> Tensor:
        """The logits."""
        return torch.cat([score(features) for score in self.scores], dim=1)


class FeatureMemory(nn.Module):
    """The features of the last KEPT training images of each modality.

    So a modality that is added later can be told from the others without their images: 384 numbers per image, means
    and deviations over all of it.
    """

    features: Tensor  # (M, KEPT, WIDTH), the newest last
    seen: Tensor  # (M,) long, images so far
    of_first = ("features", "seen")  # of several processes all keep the first one's

    def __init__(self, modalities: int) -> None:
        super().__init__()
        self.register_buffer("features", torch.zeros(modalities, KEPT, WIDTH))
        self.register_buffer("seen", torch.zeros(modalities, dtype=torch.long))

    @torch.no_grad()
    def remember(self, features: Tensor, modality: Tensor) -> None:
        """Add the rows (B, WIDTH), each to its modality's, dropping the oldest."""
        for row, m in zip(features, modality.tolist(), strict=True):
            self.features[m] = torch.cat([self.features[m, 1:], row[None].to(self.features)])
            self.seen[m] += 1

    def cross_entropy(self, classifier: ModalityClassifier, modalities: int) -> Tensor:
        """A classifier's on what is remembered of the first so many modalities; each that was seen counts once."""
        logits = classifier(self.features[:modalities].flatten(0, 1)).float()
        truth = torch.arange(modalities, device=logits.device).repeat_interleave(KEPT)
        losses = F.cross_entropy(logits, truth, reduction="none").view(modalities, KEPT)
        count = self.seen[:modalities].clamp(max=KEPT)
        kept = torch.arange(KEPT, device=logits.device) >= KEPT - count[:, None]
        means = (losses * kept).sum(1) / count.clamp(min=1)
        return means.sum() / (count > 0).sum().clamp(min=1)

    def recalled(self, modality: int) -> Tensor:
        """What is remembered of a modality, (up to KEPT, WIDTH)."""
        count = min(KEPT, int(self.seen[modality]))
        return self.features[modality, KEPT - count :]
