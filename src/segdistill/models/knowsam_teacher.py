"""KnowSAM's teacher: an adapted SAM, prompted per class by the fused student and by learnable prompts.

Huang et al., TMI 2025 (arXiv 2412.13742) and its released code. Of a SAM with weights only adapters and prompts train;
one without (tiny, small) trains whole. At inference it is not needed.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..types import UserError
from .adapters import adapt
from .freeze import freeze
from .prompts import WIDTH, LearnablePrompts
from .sam import WITHOUT_WEIGHTS, Sam, build_sam, random_sam
from .sam_weights import read_sam

LEAST = 64  # pixels: psi halves the grid of 16-pixel tokens twice


class Prompts(NamedTuple):
    """What SAM is told beside the image."""

    mask: bool  # the fused student's logits
    tokens: bool  # psi's two sparse tokens
    dense: bool  # psi's map


PROMPTS = {
    "none": Prompts(False, False, False),  # a token per class, which no image has made
    "mask": Prompts(True, False, False),
    "tokens": Prompts(True, True, False),  # released
    "tokens+dense": Prompts(True, True, True),
}


class KnowSamTeacher(nn.Module):
    """(image, fused logits) -> SAM's logits z_s. Constructed by `knowsam_teacher`."""

    def __init__(self, sam: Sam, classes: int, prompts: Prompts) -> None:
        super().__init__()
        self.sam = sam
        self.classes = classes
        self.from_mask = prompts.mask
        self.prompts = LearnablePrompts(classes, prompts.dense) if prompts.tokens else None
        # Without any prompt SAM would say the same of every class
        self.named = None if prompts.mask or prompts.tokens else nn.Parameter(torch.randn(classes, 1, WIDTH))

    def forward(self, image: Tensor, z_f: Tensor) -> Tensor:
        """Image (B, 3, H, W) in [0, 1], z_f (B, C, H, W), of which no gradient is taken -> z_s (B, C, H, W)."""
        embedding = self.sam.encode(image)
        z_s = self.sam.decode(embedding, *self.prompt(embedding, z_f))
        z_s = z_s.unflatten(0, (-1, self.classes))
        return F.interpolate(z_s, image.shape[-2:], mode="bilinear", align_corners=False)

    def prompt(self, embedding: Tensor, z_f: Tensor) -> tuple[Tensor, Tensor]:
        """Sparse (B * C, N, 256) and dense (B * C, 256, h, w) prompts; N is 0 where only a mask prompts."""
        count, (height, width) = len(embedding) * self.classes, self.sam.grid
        if self.from_mask:
            mask = F.interpolate(z_f.detach(), (4 * height, 4 * width), mode="bilinear", align_corners=False)
            dense = self.sam.mask_prompt(mask.flatten(0, 1).unsqueeze(1))
        else:
            dense = self.sam.no_mask(count)
        if self.named is not None:
            return self.named.repeat(len(embedding), 1, 1), dense
        if self.prompts is None:
            return embedding.new_zeros(count, 0, WIDTH), dense
        sparse, learned = self.prompts(embedding)
        return sparse, dense if learned is None else dense + learned


def knowsam_teacher(
    teacher: str,
    size: tuple[int, int],
    classes: int,
    *,
    prompts: str = "tokens+dense",
    whole_windows: bool = False,
    as_released: bool = False,
) -> KnowSamTeacher:
    """The teacher from `tiny`, `small`, SAM's weights (see `load_sam`) or KnowSAM's own sam_best_model.pth.

    `as_released`: SAM without relative positions and normalisation, windows cut before the norm, EfficientSAM's
    self-attention in the decoder, random adapters. A checkpoint of KnowSAM was trained so and is always run so.

    Raises:
        UserError: as `load_sam`; an image below 64 pixels; a checkpoint of KnowSAM with other classes.
    """
    if min(size) < LEAST:
        raise UserError(f"KnowSAM's teacher needs images of at least {LEAST} x {LEAST}, not {size[0]} x {size[1]}")
    if teacher in WITHOUT_WEIGHTS:
        sam, trained = random_sam(teacher, size, as_released=as_released), {}
    else:
        weights = read_sam(teacher)
        trained = weights.knowsam
        as_released = as_released or bool(trained)
        sam = build_sam(weights, size, whole_windows=whole_windows, as_released=as_released)
        freeze(sam)  # before the adapters come
    adapt(sam, as_released=as_released)
    network = KnowSamTeacher(sam, classes, PROMPTS[prompts])
    if trained:
        _load_trained(network, trained, teacher)
    return network


def _load_trained(network: KnowSamTeacher, trained: dict[str, Tensor], name: str) -> None:
    """Adapters and prompts of KnowSAM's sam_best_model.pth; what it holds unused is left."""
    state = {f"sam.{key}": value for key, value in adapters_from_official(trained).items()}
    if network.prompts is not None:
        state |= {f"prompts.{key}": value for key, value in LearnablePrompts.from_official(trained).items()}
    needed = {key: value.shape for key, value in network.state_dict().items() if _is_trained(key)}
    wrong = [f"{k} is missing" for k, shape in needed.items() if k not in state]
    wrong += [f"{k} is unknown" for k in state if k not in needed]
    wrong += [f"{k} is {tuple(v.shape)}" for k, v in state.items() if needed.get(k, v.shape) != v.shape]
    if wrong:
        raise UserError(
            f"{name}: its adapters and prompts are not for {network.classes} classes of this SAM ({wrong[0]}, "
            f"{len(wrong)} in all); give a checkpoint of the same classes, or SAM's own weights"
        )
    network.load_state_dict(state, strict=False)


def _is_trained(key: str) -> bool:
    """Also true of the counters of batch norm and false of psi's map, which the released code lacks."""
    return ".after." in key or ".beside." in key or key.startswith("prompts.classes.")


def adapters_from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """KnowSAM's adapter keys under the names of an adapted `Sam`.

    Left out, as nothing computes with them: the encoder's Depth_Adapter, the decoder's top MLP_Adapter.
    """
    places = (
        (r"^image_encoder\.blocks\.(\d+)\.(Space|MLP)_Adapter\.", r"vision_encoder.layers.\1.\2."),
        (
            r"^mask_decoder\.transformer\.layers\.(\d+)\.(Space|MLP)_Adapter\.",
            r"mask_decoder.transformer.layers.\1.\2.",
        ),
        (r"^mask_decoder\.transformer\.(Space)_Adapter\.", r"mask_decoder.transformer.\1."),
    )
    parts = {".Space.": ".after.", ".MLP.": ".beside.", ".D_fc1": ".down", ".D_fc2": ".up"}
    renamed = {}
    for key, value in state.items():
        for pattern, new in places:
            name, found = re.subn(pattern, new, key)
            if found:
                for old, part in parts.items():
                    name = name.replace(old, part)
                renamed[name] = value
    return renamed
