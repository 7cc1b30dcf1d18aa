"""ESP-MedSAM's student (arXiv 2407.14153; renamed De-LightSAM): a light, prompt-free model for many modalities.

A TinyViT trunk with a bank of modality controllers, a patch prompt made from the embedding alone, and a decoder in
which each modality has its own queries and MLP. A mixed batch is one pass. Beyond the paper: the modality of an image
may be left out; a small classifier on what the trunk computes before its first controller then decides, in the same
pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .controllers import Controllers, Rows, controls
from .modality_classifier import FeatureMemory, ModalityClassifier, early_features
from .modality_heads import ModalityHeads
from .padding import pad_to_multiple
from .tiny_vit import DIMS, STRIDE, TinyViT
from .two_way import DIM, FEATURES, Finer

MEAN = (123.675, 116.28, 103.53)  # SAM's, of 255
STD = (58.395, 57.12, 57.375)


class EspOutput(NamedTuple):
    """All that training needs from one pass."""

    logits: Tensor  # (B, C, H, W)
    patch: Tensor  # (B, C - 1, H/32, W/32) logits of the patch prompt, per foreground class
    embedding: Tensor  # (B, 256, H/16, W/16)
    route: Tensor  # (B, modalities) logits of the classifier; zeros where there is one modality
    features: Tensor  # (B, WIDTH) what the classifier sees


class Skips(nn.Module):
    """What the trunk saw before its first controller -> what the decoder's upscaling adds; nothing at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.quarter = nn.Conv2d(DIMS[0], FEATURES, 1)
        self.eighth = nn.Conv2d(DIMS[1], DIM // 4, 1)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, early: tuple[Tensor, Tensor]) -> Finer:
        """From both outputs of `TinyViT.early`."""
        return Finer(self.quarter(early[0]), self.eighth(early[1]))


class EspMedSam(ModalityHeads):
    """(B, 3, H, W) in [0, 1] -> logits (B, classes, H, W); any size, padded inside to a multiple of 32.

    Args:
        classes: Background included.
        modalities: Their names; `modality` indexes them.
        modality_classes: Per modality its foreground classes (1 to classes - 1); all of them where not given.
        controllers: False: the trunk alone encodes, an ablation.
        patch_prompt: A key of patch_prompt.MAPS: hard (published), soft, none.
        skips: The decoder's upscaling also sees the trunk's features at H/4 and H/8; published: without.
        shared_token: A controller's extra key is its value too, as released.
        joint_channels: As released: all queries attend to each other, modality m reads the one at joint_channels[m];
            further entries only say that there are queries up to theirs.
        separate_heads: One patch prompt and decoder per modality, for checkpoints that were tuned apart.
        released_normalisation: Divide by SAM's mean instead of its standard deviation.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        classes: int,
        modalities: Sequence[str] = ("",),
        modality_classes: Sequence[Sequence[int]] | None = None,
        *,
        controllers: bool = True,
        patch_prompt: str = "hard",
        skips: bool = False,
        shared_token: bool = False,
        joint_channels: Sequence[int] | None = None,
        separate_heads: bool = False,
        released_normalisation: bool = False,
    ) -> None:
        super().__init__(
            classes,
            modalities,
            modality_classes,
            patch_prompt=patch_prompt,
            joint_channels=joint_channels,
            separate_heads=separate_heads,
        )
        self.trunk = TinyViT()
        self.skips = Skips() if skips else None
        bank = (Controllers(shared_token) for _ in modalities) if controllers else ()
        self.controllers = nn.ModuleList(bank)
        self.classifier = ModalityClassifier(len(modalities)) if len(modalities) > 1 else None
        self.memory = FeatureMemory(len(modalities))
        for name, values in (("mean", MEAN), ("std", MEAN if released_normalisation else STD)):
            self.register_buffer(name, torch.tensor(values)[:, None, None] / 255, persistent=False)

    def forward(self, image: Tensor, modality: Tensor | None = None) -> Tensor:
        """Logits; without a modality (B,), or where it is negative, the classifier decides for each row."""
        return self.run(image, modality).logits

    def routed(self, image: Tensor, modality: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits, and what the classifier thinks of each modality in the same pass: probabilities (B, modalities)."""
        out = self.run(image, modality)
        return out.logits, out.route.softmax(1)

    def run(self, image: Tensor, modality: Tensor | None = None) -> EspOutput:
        """One pass with everything that it computed."""
        padded = pad_to_multiple(image, STRIDE)
        early = self.trunk.early(self._normalise(padded))
        features = early_features(early)
        route = self._route(features)
        found = route.argmax(1)
        rows = self.rows(found if modality is None else torch.where(modality < 0, found, modality))
        embedding = self._late(early[1], rows)
        finer = None if self.skips is None else self.skips(early)
        logits, patch = self.segment(embedding, rows, padded.shape[2:], finer)
        return EspOutput(logits[..., : image.shape[2], : image.shape[3]], patch, embedding, route, features)

    def encode(self, image: Tensor, modality: Tensor | None) -> Tensor:
        """The embedding (B, 256, H/16, W/16) of images with sides divisible by 32; None: of the trunk alone (S1)."""
        x = self.trunk.early(self._normalise(image))[1]
        return self.trunk.late(x, None) if modality is None else self._late(x, self.rows(modality))

    def route(self, image: Tensor) -> Tensor:
        """Probability of each modality, (B, modalities)."""
        early = self.trunk.early(self._normalise(pad_to_multiple(image, STRIDE)))
        return self._route(early_features(early)).softmax(1)

    def own_parameters(self, modality: int) -> list[nn.Parameter]:
        """What belongs to one modality alone: all that `extend` trains."""
        parts: list[nn.Module] = [self.controllers[modality]] if len(self.controllers) else []
        parts += [self.readouts[modality]] if len(self.readouts) else []
        parts += [self.heads[modality]] if len(self.heads) > 1 else []
        parts += [self.classifier.scores[modality]] if self.classifier is not None else []
        return [parameter for part in parts for parameter in part.parameters()]

    def _normalise(self, image: Tensor) -> Tensor:
        return (image - self.mean) / self.std

    def _route(self, features: Tensor) -> Tensor:
        if self.classifier is None:
            return features.new_zeros(features.shape[0], 1)
        logits: Tensor = self.classifier(features)
        return logits

    def _late(self, x: Tensor, rows: Rows) -> Tensor:
        return self.trunk.late(x, controls([*self.controllers], rows) if len(self.controllers) else None)
