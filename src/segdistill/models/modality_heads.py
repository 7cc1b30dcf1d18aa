"""What turns an embedding into masks: patch prompts, decoder, queries, and which modality has which classes.

ESP-MedSAM's student is one (its names stay at the top level, as artefacts have them) and its teacher holds one, so
that the student's may start from the teacher's.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..types import UserError
from .controllers import Rows
from .modality_decoder import Decoded, Head, JointReadout, Readouts
from .two_way import Finer

NEVER = -1e4  # no probability, and finite, so that its gradient is 0


class Segmented(NamedTuple):
    """What an embedding says about B images."""

    logits: Tensor  # (B, C, H, W)
    patch: Tensor  # (B, C - 1, H/32, W/32) logits of the patch prompt, per foreground class


class ModalityHeads(nn.Module):
    """Embeddings (B, 256, H/16, W/16) -> logits of all classes; arguments as `EspMedSam`.

    A modality has classes of its own, out of all: a class that it does not have gets the logit NEVER there, background
    the logit 0, so that the softmax over all classes is the softmax over background and the modality's own; with one
    class it is the sigmoid of the paper.
    """

    class_of: Tensor  # (modalities, K) index of a modality's k-th class among the foreground; its last one repeated
    source_of: Tensor  # (modalities, C) where a class's logit comes from: 0 background, 1 NEVER, 2 + k

    def __init__(
        self,
        classes: int,
        modalities: Sequence[str],
        modality_classes: Sequence[Sequence[int]] | None,
        *,
        patch_prompt: str,
        joint_channels: Sequence[int] | None,
        separate_heads: bool = False,
    ) -> None:
        super().__init__()
        own = modality_classes or [range(1, classes)] * len(modalities)
        _require_classes(classes, modalities, own)
        self.modalities = tuple(modalities)
        self.counts = [len(c) for c in own]
        self.heads = nn.ModuleList(
            Head(classes - 1, patch_prompt, JointReadout(max(self.counts), joint_channels) if joint_channels else None)
            for _ in range(len(modalities) if separate_heads else 1)
        )
        self.readouts = Readouts(() if joint_channels else self.counts)
        k = max(self.counts)
        class_of = [[c[min(i, len(c) - 1)] - 1 for i in range(k)] for c in map(list, own)]
        source_of = [[0] + [2 + list(c).index(j) if j in c else 1 for j in range(1, classes)] for c in own]
        for name, value in (("class_of", class_of), ("source_of", source_of)):
            self.register_buffer(name, torch.tensor(value), persistent=False)

    def rows(self, modality: Tensor) -> Rows:
        """Which modality each row (B,) has."""
        return Rows.of(modality, len(self.modalities))

    def segment(self, embedding: Tensor, rows: Rows, size: Sequence[int], finer: Finer | None = None) -> Segmented:
        """Logits of all classes at the size that was encoded."""
        decoded = self._decode(embedding, finer, rows)
        return Segmented(F.interpolate(self._placed(decoded.mask, rows), size, mode="bilinear"), decoded.patch)

    def _decode(self, embedding: Tensor, finer: Finer | None, rows: Rows) -> Decoded:
        """Masks of as many classes as the modalities in the batch have at most: an absent one changes nothing."""
        k = max((self.counts[m] for m, _ in rows.groups), default=max(self.counts))
        chosen = self.class_of[rows.modality, :k]
        if len(self.heads) == 1:
            decoded: Decoded = self.heads[0](embedding, finer, self.readouts, rows, chosen)
            return decoded
        if not rows.groups:
            traced: Decoded = rows.traced([*self.heads], embedding, finer, self.readouts, rows, chosen)
            return traced
        parts = []
        for m, i in rows.groups:
            own = finer and finer.each(itemgetter(i))
            parts.append(self.heads[m](embedding[i], own, self.readouts, self.rows(rows.modality[i]), chosen[i]))
        mask, patch = (torch.cat(values)[rows.inverse] for values in zip(*parts, strict=True))
        return Decoded(mask, patch)

    def _placed(self, mask: Tensor, rows: Rows) -> Tensor:
        """Logits of a modality's classes (B, K, h, w) among those of all (B, C, h, w)."""
        constant = torch.zeros_like(mask[:, :1])
        sources = torch.cat([constant, constant + NEVER, mask], dim=1)
        row = torch.arange(mask.shape[0], device=mask.device)[:, None]
        return sources[row, self.source_of[rows.modality]]


def _require_classes(classes: int, modalities: Sequence[str], own: Sequence[Sequence[int]]) -> None:
    if len(set(modalities)) != len(modalities) or not modalities:
        raise UserError(f"modalities {', '.join(modalities)}: name each once")
    if len(own) != len(modalities) or any(not c or not set(c) <= set(range(1, classes)) for c in own):
        text = f"{[list(c) for c in own]} for {len(modalities)} modalities"
        raise UserError(f"classes per modality {text}; give each at least one of 1 to {classes - 1}")
