"""KnowSAM's students: U-Net and V-Net side by side, their logits aggregated (upstream `KnowSAM`, `Discriminator`).

Huang et al., TMI 2025 (arXiv 2412.13742) and its released code. 5.25 M parameters at two classes. Published: the output
of the aggregation network takes the place of the logits; it ends in batch norm and LeakyReLU, which squeezes them. By
default it only corrects the mean of the two. Official keys load by `from_official`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .unet import UNet
from .vnet import VNet

GATE = 0.1  # weight of the correction at the start
RAMP = 0.01  # half the width of the default's soft threshold; published: 0
OFFICIAL = {  # KnowSAM's `Discriminator`
    "Discriminator.ambiguous_conv.": "disagreement.",
    "Discriminator.entmap_conv.": "certainty.",
    "Discriminator.logits_conv.": "logits.",
    "Discriminator.final_conv.": "fusion.",
}


def convolutions(inputs: int, hidden: int, outputs: int, last: int) -> nn.Sequential:
    """3x3, then a `last` x `last` convolution, each with batch norm and LeakyReLU(0.2)."""
    return nn.Sequential(
        nn.Conv2d(inputs, hidden, 3, padding=1, bias=False),
        nn.BatchNorm2d(hidden),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(hidden, outputs, last, padding=last // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(0.2, inplace=True),
    )


def entropy_map(prob: Tensor) -> Tensor:
    """H(p) = -sum_c p log(p + 1e-6), as released; (B, C, H, W) -> (B, 1, H, W), in nats."""
    return -(prob * (prob + 1e-6).log()).sum(1, keepdim=True)


class HybridAggregation(nn.Module):
    """Logits z_a, z_b (B, C, H, W) -> h (B, C, H, W), from where they disagree, how certain they are, what they say."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.disagreement = convolutions(classes, 16, 16, 1)
        self.certainty = convolutions(2, 16, 16, 1)
        self.logits = convolutions(2 * classes, 16, 32, 1)
        self.fusion = convolutions(64, 64, classes, 3)

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """Not detached: what is asked of h reaches both subnets."""
        p_a, p_b = z_a.softmax(1), z_b.softmax(1)
        agreed = 1 - self._disagree(p_a, p_b)
        certain = 1 - torch.cat([entropy_map(p_a), entropy_map(p_b)], 1)
        parts = [self.disagreement(agreed), self.certainty(certain), self.logits(torch.cat([z_a, z_b], 1))]
        h: Tensor = self.fusion(torch.cat(parts, 1))
        return h

    def _disagree(self, p_a: Tensor, p_b: Tensor) -> Tensor:
        """XOR([p_a > .5], [p_b > .5]), per class."""
        return ((p_a > 0.5) != (p_b > 0.5)).to(p_a.dtype)

    @staticmethod
    def from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """KnowSAM's keys (`Discriminator.final_conv...` in SGDL_best_model.pth) under this network's names."""
        renamed = {}
        for key, value in state.items():
            for old, new in OFFICIAL.items():
                if key.startswith(old):
                    renamed[new + key.removeprefix(old)] = value
        return renamed


class SteadyAggregation(HybridAggregation):
    """The exclusive or ramps between p = .49 and .51, so that rounding cannot flip a pixel.

    With the step, two correct programs (torch, onnxruntime) may differ visibly around a pixel with p = .5.
    """

    def _disagree(self, p_a: Tensor, p_b: Tensor) -> Tensor:
        a, b = (((p.detach() - 0.5) / (2 * RAMP) + 0.5).clamp(0, 1) for p in (p_a, p_b))
        return a + b - 2 * a * b


class Mean(nn.Module):
    """Logits z_a, z_b (B, C, H, W) -> their mean."""

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """(z_a + z_b) / 2."""
        return (z_a + z_b) / 2


class CorrectedMean(nn.Module):
    """The mean of both plus g h, g a learned scalar: aggregation that can only add to what the subnets say."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.aggregation = SteadyAggregation(classes)
        self.gate = nn.Parameter(torch.tensor(GATE))

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """(z_a + z_b) / 2 + g h."""
        z_f: Tensor = (z_a + z_b) / 2 + self.gate * self.aggregation(z_a, z_b)
        return z_f


class Trio(nn.Module):
    """(B, 3, H, W) in [0, 1] -> fused logits (B, C, H, W); the two subnets and what makes one of their logits."""

    def __init__(self, unet: nn.Module, vnet: nn.Module, aggregation: nn.Module) -> None:
        super().__init__()
        self.unet = unet
        self.vnet = vnet
        self.aggregation = aggregation

    def branches(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits z_a of the U-Net, z_b of the V-Net, z_f of both: (B, C, H, W) each."""
        z_a, z_b = self.unet(image), self.vnet(image)
        return z_a, z_b, self.aggregation(z_a, z_b)

    def forward(self, image: Tensor, modality: Tensor | None = None) -> Tensor:
        """z_f; the modality is not used."""
        return self.branches(image)[2]

    @staticmethod
    def from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """KnowSAM's SGDL_best_model.pth under the names of `knowsam_trio(classes, corrects=False)`."""
        parts = {
            "unet": UNet.from_official(state),
            "vnet": VNet.from_official(state),
            "aggregation": HybridAggregation.from_official(state),
        }
        return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()}


def knowsam_trio(classes: int, corrects: bool = True, normalised: bool = False) -> Trio:
    """U-Net, V-Net (`normalised`: with batch norm) and aggregation.

    `corrects=False`: it replaces the mean of the two, as published and released.
    """
    unet, vnet = UNet(classes), VNet(classes, normalised)  # in this order: a seed's initial weights hang on it
    return Trio(unet, vnet, CorrectedMean(classes) if corrects else HybridAggregation(classes))


def knowsam_mean(classes: int, normalised: bool = False) -> Trio:
    """U-Net and V-Net, and the mean of their logits."""
    return Trio(UNet(classes), VNet(classes, normalised), Mean())
