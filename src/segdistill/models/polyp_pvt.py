"""Polyp-PVT (Dong et al. 2021) on any PVTv2: KDAS's teacher with b2 (25.1 M parameters), its student with b0 (3.65 M).

Cascaded fusion (CFM) of the deep features, camouflage identification (CIM) on the shallow ones, and a graph module that
aggregates both. Two maps per foreground class at 1/8 of the image: P1 from the fusion, P2 from the aggregation; their
sum is the logit. Upstream's `SAM` is `SimilarityAggregation` here. Takes RGB in [0, 1]; ImageNet's normalisation is
inside.

Beyond the paper's one class: a map pair per foreground class, 0 for the background, softmax. With one class that is the
sigmoid of the paper; with more it keeps the classes exclusive, and a class that is nowhere likelier than not leaves the
background to win.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .padding import pad_to_multiple
from .pvt import PvtV2, pvt_v2

CHANNELS = 32
STRIDE = 8  # of the maps
STATES = 16  # of a node of the graph
SIDE = 4  # nodes a side
SMALLEST = 64  # pixels a side: below, the deepest feature is one token, over which batch norm cannot train


class PolypMaps(NamedTuple):
    """Everything one pass computes; the grids are those of the padded image."""

    features: list[Tensor]  # of the backbone, (B, widths[i], H / 2^(i+2), W / 2^(i+2))
    first: Tensor  # P1, (B, C - 1, H / 8, W / 8)
    second: Tensor  # P2, likewise
    logits: Tensor  # (B, C, H, W) at the size of the image


class ConvNorm(nn.Sequential):
    """A convolution and a batch norm, no activation."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
        )


class CascadedFusion(nn.Module):
    """CFM: three features at 1/8, 1/16, 1/32 -> one at 1/8, deeper ones gating shallower ones."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gates = nn.ModuleList(ConvNorm(channels, channels, 3) for _ in range(3))
        self.lifts = nn.ModuleList(ConvNorm(n * channels, n * channels, 3) for n in (1, 2))
        self.merges = nn.ModuleList(ConvNorm(n * channels, n * channels, 3) for n in (2, 3))
        self.out = ConvNorm(3 * channels, channels, 3)

    def forward(self, shallow: Tensor, middle: Tensor, deep: Tensor) -> Tensor:
        """(B, channels, ...) thrice -> (B, channels, H / 8, W / 8)."""
        deep_up = doubled(deep)
        gated_middle = self.gates[0](deep_up) * middle
        gated_shallow = self.gates[1](doubled(deep_up)) * self.gates[2](doubled(middle)) * shallow
        x = self.merges[0](torch.cat([gated_middle, self.lifts[0](deep_up)], 1))
        x = self.merges[1](torch.cat([gated_shallow, self.lifts[1](doubled(x))], 1))
        fused: Tensor = self.out(x)
        return fused


class CamouflageIdentification(nn.Module):
    """CIM: channel attention (ratio 16), then spatial attention (7 x 7), on the shallowest feature; out at 1/8."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, inputs // 16, 1, bias=False)
        self.excite = nn.Conv2d(inputs // 16, inputs, 1, bias=False)
        self.spatial = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.out = ConvNorm(inputs, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H / 4, W / 4) -> (B, channels, H / 8, W / 8)."""
        summaries = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        average, largest = (self.excite(self.squeeze(s).relu()) for s in summaries)
        x = (average + largest).sigmoid() * x
        x = self.spatial(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid() * x
        out: Tensor = self.out(x)
        return F.interpolate(out, scale_factor=0.5, mode="bilinear", align_corners=True)


class SimilarityAggregation(nn.Module):
    """A graph of SIDE x SIDE nodes over the fused feature, anchored where the shallow feature sees an edge."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.state = nn.Conv2d(channels, STATES, 1)
        self.project = nn.Conv2d(channels, STATES, 1)
        self.between_nodes = nn.Conv1d(SIDE**2, SIDE**2, 1)
        self.between_states = nn.Conv1d(STATES, STATES, 1, bias=False)
        self.extend = nn.Conv2d(STATES, channels, 1, bias=False)

    def forward(self, x: Tensor, shallow: Tensor) -> Tensor:
        """Two (B, channels, h, w) -> one."""
        # B images, S states, K nodes, N = h * w positions
        edge = shallow.softmax(1)[:, 1:2]  # the second channel is the edge, as released
        projected = self.project(x)
        inner = slice(1, 1 + SIDE)  # a frame of one cell is left out
        anchor = F.adaptive_avg_pool2d(projected * edge, SIDE + 2)[:, :, inner, inner].flatten(2)  # (B, S, K)
        assignment = (anchor.transpose(1, 2) @ projected.flatten(2)).softmax(1)  # (B, K, N)
        nodes = self.state(x).flatten(2) @ assignment.transpose(1, 2)  # (B, S, K)
        related = self.between_nodes(nodes.transpose(1, 2)).transpose(1, 2) - nodes
        related = self.between_states(related).relu()
        out: Tensor = x + self.extend((related @ assignment).unflatten(2, x.shape[2:]))
        return out


class PolypPVT(nn.Module):
    """(B, 3, H, W) in [0, 1] -> logits (B, classes, H, W); any size, padded inside to a multiple of 32."""

    mean: Tensor
    std: Tensor

    def __init__(self, classes: int, backbone: PvtV2) -> None:
        super().__init__()
        shallow, *deep = backbone.widths
        self.backbone = backbone
        self.identification = CamouflageIdentification(shallow, CHANNELS)
        self.lateral = nn.ModuleList(ConvNorm(width, CHANNELS, 1) for width in deep)
        self.fusion = CascadedFusion(CHANNELS)
        self.aggregation = SimilarityAggregation(CHANNELS)
        self.heads = nn.ModuleList(nn.Conv2d(CHANNELS, classes - 1, 1) for _ in range(2))
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225])[:, None, None], persistent=False)

    def padded(self, image: Tensor) -> Tensor:
        """The image as the network sees it: zeros at the bottom and right up to a multiple of 32."""
        height, width = image.shape[-2:]
        if min(height, width) < SMALLEST:
            image = F.pad(image, (0, max(0, SMALLEST - width), 0, max(0, SMALLEST - height)))
        return pad_to_multiple(image, 32)

    def encode(self, image: Tensor) -> list[Tensor]:
        """Features of the four stages, shallow first, of the padded image."""
        features: list[Tensor] = self.backbone((self.padded(image) - self.mean) / self.std)
        return features

    def maps(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """P1 and P2, (B, classes - 1, H / 8, W / 8) each, from the features of `encode`."""
        fused = self.fusion(*(lateral(x) for lateral, x in zip(self.lateral, features[1:], strict=True)))
        aggregated = self.aggregation(fused, self.identification(features[0]))
        return self.heads[0](fused), self.heads[1](aggregated)

    def decode(self, features: list[Tensor]) -> Tensor:
        """Logits from the features of `encode`, at the padded size."""
        first, second = self.maps(features)
        return enlarged(first + second)

    def explain(self, image: Tensor) -> PolypMaps:
        """The logits with all that led to them."""
        height, width = image.shape[-2:]
        features = self.encode(image)
        first, second = self.maps(features)
        return PolypMaps(features, first, second, enlarged(first + second)[..., :height, :width])

    def forward(self, image: Tensor, modality: Tensor | None = None) -> Tensor:
        """Logits at the size of the image; the modality is not used."""
        height, width = image.shape[-2:]
        return self.decode(self.encode(image))[..., :height, :width]


def doubled(x: Tensor) -> Tensor:
    """Twice the size, corners aligned, as released."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


def enlarged(maps: Tensor) -> Tensor:
    """Maps (B, C - 1, h, w) as logits (B, C, 8h, 8w): the background's are 0."""
    return F.pad(F.interpolate(maps, scale_factor=STRIDE, mode="bilinear", align_corners=False), (0, 0, 0, 0, 1, 0))


def polyp_pvt(classes: int, backbone: str = "b0") -> PolypPVT:
    """Polyp-PVT on PVTv2-b0 (KDAS's student) to b5; b2 is the published one. Random weights."""
    return PolypPVT(classes, pvt_v2(backbone))
