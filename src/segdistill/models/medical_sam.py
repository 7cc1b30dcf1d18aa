"""ESP-MedSAM's medical teacher (arXiv 2407.14153): SAM's image encoder, told per modality what to look for.

Each block gets, per modality, one prompt token among the keys and values of every window and one MLP adapter beside
its MLP; heads like the student's make masks of the embedding. The paper's teacher was not released: the width of the
adapters is KnowSAM's, one token per block is the student's. At the start it is SAM, but for the tokens, whose values
are 0. Of a SAM with weights only tokens, adapters and heads train; one without (tiny, small) trains whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from .adapters import Adapter
from .controllers import TOKEN_RANGE, Rows
from .freeze import freeze
from .modality_heads import ModalityHeads, Segmented
from .padding import pad_to_multiple
from .sam import Sam, load_sam
from .tiny_vit import STRIDE, Control


class SamController(nn.Module):
    """One modality's part in one block.

    Its token starts as loud as any other, where the student's is faint: a teacher need not start at SAM exactly, and
    a faint token learns slowly.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.key = nn.Parameter(torch.empty(heads, width // heads).uniform_(-TOKEN_RANGE, TOKEN_RANGE))
        self.value = nn.Parameter(torch.zeros(heads, width // heads))
        self.bias = nn.Parameter(torch.zeros(()))
        self.adapter = Adapter(width, zero=True)


class MedicalSam(nn.Module):
    """(image (B, 3, H, W) in [0, 1], modality (B,)) -> logits (B, classes, H, W), as the student pads them."""

    def __init__(self, sam: Sam, decoder: ModalityHeads) -> None:
        super().__init__()
        del sam.prompt_encoder, sam.mask_decoder  # nothing is prompted
        self.sam = sam
        self.decoder = decoder
        blocks, width = sam.vision_encoder.layers, sam.vision_encoder.config.hidden_size
        self.controllers = nn.ModuleList(
            nn.ModuleList(SamController(width, block.heads) for block in blocks) for _ in decoder.modalities
        )

    def forward(self, image: Tensor, modality: Tensor) -> Tensor:
        """The logits."""
        return self.run(image, modality).logits

    def run(self, image: Tensor, modality: Tensor) -> Segmented:
        """Logits and patches of the prompt."""
        height, width = image.shape[2:]
        padded = pad_to_multiple(image, STRIDE)
        out = self.decoder.segment(self.encode(padded, modality), self.decoder.rows(modality), padded.shape[2:])
        return out._replace(logits=out.logits[..., :height, :width])

    def encode(self, image: Tensor, modality: Tensor | None) -> Tensor:
        """The embedding (B, 256, H/16, W/16) of images with sides divisible by 32; None: of SAM alone."""
        return self.sam.encode(image, () if modality is None else self._controls(self.decoder.rows(modality)))

    def own_parameters(self) -> list[nn.Parameter]:
        """All that no file gave."""
        parts = [self.controllers, self.decoder] if self.sam.origin else [self]
        return [parameter for part in parts for parameter in part.parameters()]

    def _controls(self, rows: Rows) -> list[Control]:
        blocks = zip(*(cast(nn.ModuleList, bank) for bank in self.controllers), strict=True)
        return [_control(cast(Sequence[SamController], block), rows) for block in blocks]


def _control(modalities: Sequence[SamController], rows: Rows) -> Control:
    key, value, bias = ([getattr(c, name) for c in modalities] for name in ("key", "value", "bias"))
    adapters = [c.adapter for c in modalities]
    return Control(rows.pick(key), rows.pick(value), rows.pick(bias), lambda x: rows.apply(adapters, x))


def medical_sam(name: str, size: tuple[int, int], decoder: ModalityHeads) -> MedicalSam:
    """The teacher for images of a size, from SAM's weights (see `load_sam`) or `tiny` or `small` without.

    Raises:
        UserError: as `load_sam`.
    """
    height, width = (-(-side // STRIDE) * STRIDE for side in size)
    sam = load_sam(name, (height, width))
    if sam.origin:
        freeze(sam)
    return MedicalSam(sam, decoder)
