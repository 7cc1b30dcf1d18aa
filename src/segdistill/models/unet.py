"""The U-Net of SSL4MIS and KnowSAM: widths 16 to 256, dropout in the encoder, 1.94 M parameters at two classes.

Ronneberger et al. 2015, in the version of KnowSAM's released code (its `UNet`); official keys load by `from_official`.
Takes RGB in [0, 1] as it is: the first batch norm does the normalising, as in the released code.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from .padding import pad_to_multiple

WIDTHS = (16, 32, 64, 128, 256)
ENCODER_DROPOUT = (0.05, 0.1, 0.2, 0.3, 0.5)


class DoubleConv(nn.Sequential):
    """Two 3x3 convolutions with batch norm and LeakyReLU, dropout between them."""

    def __init__(self, inputs: int, outputs: int, dropout: float) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.BatchNorm2d(outputs),
            nn.LeakyReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            nn.BatchNorm2d(outputs),
            nn.LeakyReLU(inplace=True),
        )


class UNet(nn.Module):
    """(B, 3, H, W) in [0, 1] -> logits (B, classes, H, W); any size, padded inside to a multiple of 16."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        inputs = (3, *WIDTHS[:-1])
        self.encoder = nn.ModuleList(map(DoubleConv, inputs, WIDTHS, ENCODER_DROPOUT))
        deep, shallow = WIDTHS[:0:-1], WIDTHS[-2::-1]
        self.up = nn.ModuleList(nn.ConvTranspose2d(d, s, 2, stride=2) for d, s in zip(deep, shallow, strict=True))
        self.decoder = nn.ModuleList(DoubleConv(2 * s, s, 0.0) for s in shallow)
        self.head = nn.Conv2d(WIDTHS[0], classes, 3, padding=1)
        self.pool = nn.MaxPool2d(2)

    def encode(self, image: Tensor) -> list[Tensor]:
        """Features of the five stages, shallow first; the image padded to a multiple of 16."""
        features = [self.encoder[0](pad_to_multiple(image, 2 ** (len(WIDTHS) - 1)))]
        for block in self.encoder[1:]:
            features.append(block(self.pool(features[-1])))
        return features

    def decode(self, features: list[Tensor]) -> Tensor:
        """Logits from the features of `encode`, at the padded size."""
        x, skips = features[-1], features[:-1]
        for up, block, skip in zip(self.up, self.decoder, reversed(skips), strict=True):
            x = block(torch.cat([skip, up(x)], dim=1))
        logits: Tensor = self.head(x)
        return logits

    def forward(self, image: Tensor, modality: Tensor | None = None) -> Tensor:
        """Logits at the size of the image; the modality is not used."""
        height, width = image.shape[-2:]
        return self.decode(self.encode(image))[..., :height, :width]

    @staticmethod
    def from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """KnowSAM's U-Net keys (`UNet.in_conv...` in SGDL_best_model.pth) under this network's names."""
        rules = (
            (r"^in_conv\.conv_conv\.", r"encoder.0."),
            (r"^down(\d)\.maxpool_conv\.1\.conv_conv\.", r"encoder.\1."),
            (r"^up(\d)\.up\.", lambda m: f"up.{int(m[1]) - 1}."),
            (r"^up(\d)\.conv\.conv_conv\.", lambda m: f"decoder.{int(m[1]) - 1}."),
            (r"^out_conv\.", "head."),
        )
        prefix = "UNet."
        renamed = {}
        for key, value in state.items():
            if key.startswith(prefix):
                name = key.removeprefix(prefix)
                for pattern, new in rules:
                    name = re.sub(pattern, new, name)
                renamed[name] = value
        return renamed
