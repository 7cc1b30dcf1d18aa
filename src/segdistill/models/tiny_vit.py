"""TinyViT-5M as MobileSAM uses it: the image encoder of ESP-MedSAM, 5.74 M parameters with its neck.

Wu et al., ECCV 2022; Zhang et al. 2023 (last merging at stride 1, neck to SAM's 256 channels). Each transformer block
has two places where a modality controller may act (`Control`); without one it is the plain trunk. Parameters carry
the official names (`image_encoder.*` in mobile_sam.pt, `SemiTViT.*` in ESP-MedSAM). Left out: the ImageNet head,
stochastic depth, and the released cache of attention biases, which goes stale when weights load after `eval()`: they
are gathered in each pass.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import attend
from .channel_norm import ChannelNorm

DIMS = (64, 128, 160, 320)
DEPTHS = (2, 2, 6, 2)
HEADS = (2, 4, 5, 10)
WINDOWS = (7, 7, 14, 7)
BLOCKS = tuple((d, h) for d, n, h in zip(DIMS[1:], DEPTHS[1:], HEADS[1:], strict=True) for _ in range(n))
EXPANSION = 4  # of the inverted bottlenecks and of the MLPs
EMBEDDING = 256
STRIDE = 32  # sides of the input are multiples of it, so that the patch prompt's grid is whole


class Control(NamedTuple):
    """What controllers do in one block; R is 1 (the same for all rows) or the number of rows."""

    key: Tensor  # (R, heads, head width), one more key in every window
    value: Tensor  # (R, heads, head width)
    bias: Tensor  # (R,), added to the logits of that key
    mlp: Callable[[Tensor], Tensor]  # (B, h, w, D) -> (B, h, w, D), added beside the block's MLP


class ConvNorm(nn.Sequential):
    """A convolution without bias and its batch norm."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(OrderedDict(c=convolution, bn=nn.BatchNorm2d(outputs)))


class Bottleneck(nn.Module):
    """Inverted bottleneck (MBConv): 1x1 up, 3x3 depth-wise, 1x1 down, skip."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        wide = EXPANSION * dim
        self.conv1 = ConvNorm(dim, wide, 1)
        self.conv2 = ConvNorm(wide, wide, 3, groups=wide)
        self.conv3 = ConvNorm(wide, dim, 1)
        nn.init.zeros_(cast(nn.BatchNorm2d, self.conv3[1]).weight)  # starts as the identity

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w), same shape."""
        return F.gelu(x + self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x))))))


class Merging(nn.Module):
    """To the next stage's width, at half the resolution unless `stride` is 1."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(inputs, outputs, 1)
        self.conv2 = ConvNorm(outputs, outputs, 3, stride, groups=outputs)
        self.conv3 = ConvNorm(outputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, D', h / stride, w / stride)."""
        y: Tensor = self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))
        return y


class Mlp(nn.Module):
    """Norm, D -> 4 D, GELU, -> D; the skip is the caller's."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, EXPANSION * dim)
        self.fc2 = nn.Linear(EXPANSION * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D), same shape."""
        y: Tensor = self.fc2(F.gelu(self.fc1(self.norm(x))))
        return y


class WindowAttention(nn.Module):
    """Attention inside windows of side `window`, with a bias per head and offset (|dy|, |dx|)."""

    offsets: Tensor

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window**2))
        point = torch.cartesian_prod(torch.arange(window), torch.arange(window))
        dy, dx = (point[:, None] - point[None]).abs().unbind(-1)
        self.register_buffer("offsets", dy * window + dx, persistent=False)

    def forward(self, x: Tensor, control: Control | None) -> Tensor:
        """(B, h, w, D), same shape. The released code pads x with zeros and so attends to norm(0), its bias."""
        batch, height, width, dim = x.shape
        n = self.window
        qkv = _fill(self.qkv(self.norm(x)), self.qkv(self.norm.bias), -height % n, -width % n)
        rows, columns = qkv.shape[1] // n, qkv.shape[2] // n
        split = qkv.reshape(batch, rows, n, columns, n, self.heads, -1).permute(0, 1, 3, 5, 2, 4, 6)
        windows = split.reshape(batch * rows * columns, self.heads, n * n, -1)
        y = self._attend(windows, rows * columns, control)  # (windows, heads, n * n, head width)
        y = y.reshape(batch, rows, columns, self.heads, n, n, -1).permute(0, 1, 4, 2, 5, 3, 6)
        y = y.reshape(batch, rows * n, columns * n, dim)[:, :height, :width]
        out: Tensor = self.proj(y)
        return out

    def _attend(self, windows: Tensor, per_row: int, control: Control | None) -> Tensor:
        query, key, value = windows.chunk(3, dim=-1)
        bias = self.attention_biases[:, self.offsets][None]  # (1, heads, n * n, n * n)
        if control is not None:
            key = torch.cat([key, _per_window(control.key, per_row, windows.shape[0])], dim=2)
            value = torch.cat([value, _per_window(control.value, per_row, windows.shape[0])], dim=2)
            token = control.bias[:, None, None, None].expand(-1, self.heads, self.window**2, 1)
            bias = torch.cat([bias.expand(len(token), -1, -1, -1), token], dim=3)
            bias = bias if len(bias) == 1 else bias.repeat_interleave(per_row, dim=0)
        return attend(query, key, value, bias)


def _fill(x: Tensor, filler: Tensor, bottom: int, right: int) -> Tensor:
    """(B, h, w, D) padded at the bottom and right with the vector `filler` (D,)."""
    if bottom:
        x = torch.cat([x, filler.expand(x.shape[0], bottom, x.shape[2], -1)], dim=1)
    if right:
        x = torch.cat([x, filler.expand(x.shape[0], x.shape[1], right, -1)], dim=2)
    return x


def _per_window(token: Tensor, per_row: int, windows: int) -> Tensor:
    """(R, heads, width) -> (windows, heads, 1, width)."""
    repeated = token[:, None].expand(-1, windows if len(token) == 1 else per_row, -1, -1)
    return repeated.flatten(0, 1)[:, :, None]


class Block(nn.Module):
    """Window attention, depth-wise 3x3 convolution, MLP."""

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.attn = WindowAttention(dim, heads, window)
        self.local_conv = ConvNorm(dim, dim, 3, groups=dim)
        self.mlp = Mlp(dim)

    def forward(self, x: Tensor, control: Control | None) -> Tensor:
        """(B, h, w, D), same shape: x + MLP(x) + MLP_k(x) after the convolution."""
        x = x + self.attn(x, control)
        x = self.local_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        y: Tensor = x + self.mlp(x)
        return y if control is None else y + control.mlp(x)


class Stage(nn.Module):
    """The blocks of one width and, but for the last, the merging to the next."""

    def __init__(self, i: int) -> None:
        super().__init__()
        dim, last = DIMS[i], len(DIMS) - 1
        self.blocks = nn.ModuleList(
            Bottleneck(dim) if i == 0 else Block(dim, HEADS[i], WINDOWS[i]) for _ in range(DEPTHS[i])
        )
        self.downsample = Merging(dim, DIMS[i + 1], stride=1 if i + 1 == last else 2) if i < last else nn.Identity()


class TinyViT(nn.Module):
    """(B, 3, H, W), normalised, sides divisible by 32 -> (B, 256, H/16, W/16)."""

    def __init__(self) -> None:
        super().__init__()
        half = DIMS[0] // 2
        first, second = ConvNorm(3, half, 3, stride=2), ConvNorm(half, DIMS[0], 3, stride=2)
        self.patch_embed = nn.ModuleDict({"seq": nn.Sequential(first, nn.GELU(), second)})
        self.layers = nn.ModuleList(map(Stage, range(len(DIMS))))
        self.neck = nn.Sequential(
            nn.Conv2d(DIMS[-1], EMBEDDING, 1, bias=False),
            ChannelNorm(EMBEDDING),
            nn.Conv2d(EMBEDDING, EMBEDDING, 3, padding=1, bias=False),
            ChannelNorm(EMBEDDING),
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def early(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """What comes before the first controller: stage 0 (B, 64, H/4, W/4) and its merging (B, 128, H/8, W/8)."""
        x = self.patch_embed["seq"](image)
        stage = cast(Stage, self.layers[0])
        for block in stage.blocks:
            x = block(x)
        return x, stage.downsample(x)

    def late(self, x: Tensor, controls: Sequence[Control] | None) -> Tensor:
        """The embedding from the second output of `early`; one control per block, or none at all."""
        control: Iterator[Control | None] = iter(controls) if controls else repeat(None)
        for stage in cast(Iterable[Stage], self.layers[1:]):
            x = x.permute(0, 2, 3, 1)
            for block in stage.blocks:
                x = block(x, next(control))
            x = stage.downsample(x.permute(0, 3, 1, 2))
        embedding: Tensor = self.neck(x)
        return embedding

    def forward(self, image: Tensor, controls: Sequence[Control] | None = None) -> Tensor:
        """The embedding."""
        return self.late(self.early(image)[1], controls)
