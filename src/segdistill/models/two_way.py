"""The two-way transformer and the upscaling of SAM's mask decoder, for queries and dense prompts that are ours.

Kirillov et al., ICCV 2023; official parameter names. transformers' decoder is not used: it takes no dense prompt per
(image, class) and brings its own mask tokens and quality head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import attend
from .channel_norm import ChannelNorm

DIM = 256
DEPTH = 2
HEADS = 8
MLP_DIM = 2048
FEATURES = 32


class Finer(NamedTuple):
    """What an encoder saw before it came to H/16, at the widths of the upscaling."""

    quarter: Tensor  # (B, 32, H/4, W/4)
    eighth: Tensor  # (B, 64, H/8, W/8)

    def each(self, change: Callable[[Tensor], Tensor]) -> Finer:
        """Both changed alike."""
        return Finer(change(self.quarter), change(self.eighth))


class Attention(nn.Module):
    """Attention of q to (k, v), all (B, N, 256), at an inner width."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(DIM, inner) for _ in range(3))
        self.out_proj = nn.Linear(inner, DIM)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, N of q, 256)."""
        projected = (self.q_proj(q), self.k_proj(k), self.v_proj(v))
        heads = [x.unflatten(2, (HEADS, -1)).transpose(1, 2) for x in projected]
        y: Tensor = self.out_proj(attend(*heads).transpose(1, 2).flatten(2))
        return y


class TwoWayBlock(nn.Module):
    """Queries attend to themselves and to the image, pass an MLP, and the image attends to them."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first = first  # in the first block the queries are their own positions
        self.self_attn = Attention(DIM)
        self.cross_attn_token_to_image = Attention(DIM // 2)
        self.cross_attn_image_to_token = Attention(DIM // 2)
        self.mlp = nn.ModuleDict({"lin1": nn.Linear(DIM, MLP_DIM), "lin2": nn.Linear(MLP_DIM, DIM)})
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(DIM) for _ in range(4))

    def forward(self, queries: Tensor, image: Tensor, tokens: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (B, T, 256) and image (B, N, 256); `tokens` and `position` mark their places."""
        if self.first:
            queries = self.norm1(self.self_attn(queries, queries, queries))
        else:
            marked = queries + tokens
            queries = self.norm1(queries + self.self_attn(marked, marked, queries))
        queries = self.norm2(queries + self.cross_attn_token_to_image(queries + tokens, image + position, image))
        queries = self.norm3(queries + self.mlp["lin2"](F.relu(self.mlp["lin1"](queries))))
        image = self.norm4(image + self.cross_attn_image_to_token(image + position, queries + tokens, queries))
        return queries, image


class TwoWayTransformer(nn.Module):
    """Query tokens (B, T, 256) and an image embedding (B, 256, h, w) change each other."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(first=i == 0) for i in range(DEPTH))
        self.final_attn_token_to_image = Attention(DIM // 2)
        self.norm_final_attn = nn.LayerNorm(DIM)

    def forward(self, embedding: Tensor, position: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens (B, T, 256) and the embedding (B, 256, h, w) after it; `position` is (256, h, w)."""
        grid = embedding.shape[2:]
        queries, image, position = tokens, embedding.flatten(2).transpose(1, 2), position.flatten(1).T
        for layer in self.layers:
            queries, image = layer(queries, image, tokens, position)
        attended = self.final_attn_token_to_image(queries + tokens, image + position, image)
        return self.norm_final_attn(queries + attended), image.transpose(1, 2).unflatten(2, grid)


class Position(nn.Module):
    """SAM's positional encoding of a grid by random Fourier features, which belong to the weights."""

    gaussian_matrix: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gaussian_matrix", torch.randn(2, DIM // 2))

    def forward(self, height: int, width: int) -> Tensor:
        """(256, h, w): sin and cos of 2 pi (2 centre - 1) G, centres (x, y) in [0, 1]."""
        like = self.gaussian_matrix
        y = ((torch.arange(height, device=like.device, dtype=like.dtype) + 0.5) / height).expand(width, height).T
        x = ((torch.arange(width, device=like.device, dtype=like.dtype) + 0.5) / width).expand(height, width)
        angle = 2 * math.pi * ((2 * torch.stack([x, y], dim=-1) - 1) @ like)
        return torch.cat([angle.sin(), angle.cos()], dim=-1).permute(2, 0, 1)


class Upscaling(nn.Sequential):
    """(B, 256, h, w) -> (B, 32, 4 h, 4 w); finer features are added where SAM 2 adds them (Ravi et al. 2024)."""

    def __init__(self) -> None:
        super().__init__(
            nn.ConvTranspose2d(DIM, DIM // 4, 2, stride=2),
            ChannelNorm(DIM // 4),
            nn.GELU(),
            nn.ConvTranspose2d(DIM // 4, FEATURES, 2, stride=2),
            nn.GELU(),
        )

    def forward(self, x: Tensor, finer: Finer | None = None) -> Tensor:
        """The features from which kernels make masks."""
        first, norm, activation, second, last = self
        x = first(x) if finer is None else first(x) + finer.eighth
        x = second(activation(norm(x)))
        y: Tensor = last(x if finer is None else x + finer.quarter)
        return y
