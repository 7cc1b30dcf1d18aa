"""KnowSAM's learnable prompts: SAM is told by its own image embedding what to look for (upstream `Super_Prompt`)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .unet import DoubleConv

WIDTH = 256  # of SAM's embeddings and prompts
TOKENS = 2  # sparse tokens per class
DROPOUT = 0.1


class ClassPrompt(nn.Module):
    """psi of one class: embedding (B, 256, h, w), h, w >= 4 -> sparse (B, 2, 256) and features (B, 256, h, w)."""

    def __init__(self) -> None:
        super().__init__()
        self.full = DoubleConv(WIDTH, WIDTH, DROPOUT)
        self.pooled = nn.Sequential(
            nn.MaxPool2d(2),
            DoubleConv(WIDTH, WIDTH, DROPOUT),
            DoubleConv(WIDTH, WIDTH, DROPOUT),
            nn.MaxPool2d(2),
            DoubleConv(WIDTH, WIDTH, DROPOUT),
            nn.Conv2d(WIDTH, WIDTH, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.tokens = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH),
            nn.GELU(),
            nn.Dropout(DROPOUT),
            nn.Linear(4 * WIDTH, TOKENS * WIDTH),
            nn.Dropout(DROPOUT),
        )

    def forward(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens, and the features on the full grid from which a dense prompt can be made."""
        features = self.full(embedding)
        return self.tokens(self.pooled(features)).view(-1, TOKENS, WIDTH), features


class LearnablePrompts(nn.Module):
    """One psi per class; with `dense` also a map per class, zero at the start (the abstract's dense prompt)."""

    def __init__(self, classes: int, dense: bool) -> None:
        super().__init__()
        self.classes = nn.ModuleList(ClassPrompt() for _ in range(classes))
        maps = [nn.Conv2d(WIDTH, WIDTH, 1) for _ in range(classes if dense else 0)]
        for parameter in (p for layer in maps for p in layer.parameters()):
            nn.init.zeros_(parameter)
        self.dense = nn.ModuleList(maps)

    def forward(self, embedding: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, 256, h, w) -> sparse (B * C, 2, 256) and, if asked for, dense (B * C, 256, h, w); classes innermost."""
        prompts = [psi(embedding) for psi in self.classes]
        sparse = torch.stack([tokens for tokens, _ in prompts], 1).flatten(0, 1)
        if not self.dense:
            return sparse, None
        maps = [layer(features) for layer, (_, features) in zip(self.dense, prompts, strict=True)]
        return sparse, torch.stack(maps, 1).flatten(0, 1)

    @staticmethod
    def from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """KnowSAM's prompt keys (in sam_best_model.pth) under this network's names; the released code has no map."""
        names = {
            "conv_1.conv_conv.": "full.",
            "down_1.maxpool_conv.1.conv_conv.": "pooled.1.",
            "conv_2.conv_conv.": "pooled.2.",
            "down_2.maxpool_conv.1.conv_conv.": "pooled.4.",
            "conv_3.": "pooled.5.",
            "ffn.": "tokens.",
        }
        prefix = "super_prompt.box_decoder."
        renamed = {}
        for key, value in state.items():
            if key.startswith(prefix):
                number, _, rest = key.removeprefix(prefix).partition(".")
                old = next((old for old in names if rest.startswith(old)), rest)
                renamed[f"classes.{number}.{names.get(old, old)}{rest.removeprefix(old)}"] = value
        return renamed
