"""ESP-MedSAM's query-decoupled modality decoder (QDMD): each modality reads the image through queries of its own.

Published: only the routed modality's queries enter SAM's two-way transformer, and its own MLP turns them into the
kernels of its masks, so modalities meet in the shared weights only. Released: seven queries attend to each other and
share one MLP (`JointReadout`). Published with one class; here a query per (modality, class) decodes alone with its
class's dense prompt, folded into the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .controllers import Rows
from .patch_prompt import PatchPrompt
from .two_way import DIM, FEATURES, Finer, Position, TwoWayTransformer, Upscaling

RELEASED_QUERIES = 7  # six modalities and one that nothing reads


class KernelMlp(nn.Module):
    """A query's output (..., 256) -> the kernel of its mask (..., 32)."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (DIM, DIM, DIM, FEATURES)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        """The kernel."""
        x = F.relu(self.layers[1](F.relu(self.layers[0](x))))
        y: Tensor = self.layers[2](x)
        return y


class Readout(nn.Module):
    """One modality's queries (its classes, 256) and its MLP."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(classes, DIM))
        self.mlp = KernelMlp()


class Reader(Protocol):
    """How queries enter the decoder and what is read from them, for B rows with K classes each."""

    def tokens(self, rows: Rows, k: int) -> Tensor:
        """(B or 1, K, T, 256)."""
        ...

    def kernels(self, decoded: Tensor, rows: Rows) -> Tensor:
        """(B, K, T, 256) after the decoder -> (B, K, 32)."""
        ...


class Readouts(nn.ModuleList):
    """The published reader: one Readout per modality, T = 1."""

    def __init__(self, classes: Sequence[int]) -> None:
        super().__init__(map(Readout, classes))

    def tokens(self, rows: Rows, k: int) -> Tensor:
        """The routed modality's queries; its last one fills the places that it does not use."""
        queries = [cast(Readout, readout).query for readout in self]
        return rows.pick([q[torch.arange(k, device=q.device).clamp(max=len(q) - 1)] for q in queries])[:, :, None]

    def kernels(self, decoded: Tensor, rows: Rows) -> Tensor:
        """Each row through its modality's MLP."""
        return rows.apply([cast(Readout, readout).mlp for readout in self], decoded[:, :, 0])


class JointReadout(nn.Module):
    """The released reader: all queries enter; modality m reads the one at `channels[m]`; one MLP for all."""

    channels: Tensor

    def __init__(self, classes: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(classes, max(RELEASED_QUERIES, 1 + max(channels)), DIM))
        self.mlp = KernelMlp()
        self.register_buffer("channels", torch.tensor(channels), persistent=False)

    def tokens(self, rows: Rows, k: int) -> Tensor:
        """All queries of the first K classes."""
        return self.query[None, :k]

    def kernels(self, decoded: Tensor, rows: Rows) -> Tensor:
        """The modality's query through the MLP."""
        row = torch.arange(decoded.shape[0], device=decoded.device)
        y: Tensor = self.mlp(decoded[row, :, self.channels[rows.modality]])
        return y


class Decoded(NamedTuple):
    """What a Head computes for the rows of a batch."""

    mask: Tensor  # (B, K, H/4, W/4) logits of K classes
    patch: Tensor  # (B, foreground classes, H/32, W/32) logits


class Head(nn.Module):
    """Patch prompt, transformer and upscaling: what all modalities share; as released, the queries too (`joint`)."""

    def __init__(self, foreground: int, patch_prompt: str, joint: JointReadout | None) -> None:
        super().__init__()
        self.joint = joint
        self.prompt = PatchPrompt(foreground, patch_prompt)
        self.position = Position()
        self.transformer = TwoWayTransformer()
        self.upscaling = Upscaling()

    def forward(
        self, embedding: Tensor, finer: Finer | None, readouts: Readouts, rows: Rows, chosen: Tensor
    ) -> Decoded:
        """Masks of K classes per row from (B, 256, h, w); `chosen` (B, K) indexes the foreground classes."""
        batch, k = chosen.shape
        reader: Reader = self.joint or readouts
        patch = self.prompt.logits(embedding)
        prompted = (embedding[:, None] + self.prompt(patch, chosen)).flatten(0, 1)  # (B K, 256, h, w)
        tokens = reader.tokens(rows, k).expand(batch, -1, -1, -1).flatten(0, 1)
        tokens, prompted = self.transformer(prompted, self.position(*embedding.shape[2:]), tokens)
        kernels = reader.kernels(tokens.unflatten(0, (batch, k)), rows).flatten(0, 1)
        features = self.upscaling(prompted, finer and finer.each(lambda x: x.repeat_interleave(k, 0)))
        mask = (kernels[:, None] @ features.flatten(2)).unflatten(2, features.shape[2:])
        return Decoded(mask.squeeze(1).unflatten(0, (batch, k)), patch)
