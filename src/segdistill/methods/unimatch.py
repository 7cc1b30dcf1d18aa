"""UniMatch (Yang et al., CVPR 2023): confident predictions on weak views teach strong views and perturbed features.

For unlabelled images, the prediction on the weak view is the pseudo-label, where it is confident, of two strong views
(another photometry, CutMix) and of the same features under channel dropout. One network, no average, no SAM: the
strongest cheap rival. Here the two strong views share their photometry and differ in CutMix, and a CutMix partner is
the next image of the batch, whose pseudo-label is known already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW

from ..losses.consistency import confident_cross_entropy
from ..losses.schedules import warm_up_cosine
from ..losses.segmentation import annotated_logits, dice_cross_entropy
from ..models.students import build_student
from ..transforms.presets import weak, with_view
from ..types import Batch, Clip, Remarks, Stage, StepOutput, Task, UserError
from .sam_distillation import beside, heard, part, require_sam

STUDENTS = ("unet", "vnet", "polyp_pvt")  # features between encode and decode, of which channels can be dropped


@dataclass(frozen=True)
class UniMatchConfig:
    """Settings of UniMatch.

    Attributes:
        student: Network to train, by name: unet, vnet or polyp_pvt.
        iterations: Updates in all.
        labelled_batch: Labelled images per batch.
        other_batch: Other images per batch.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Decoupled weight decay.
        warm_up: Updates over which the learning rate rises linearly from 0.
        clip_norm: Gradients are clipped to this norm; 0: not at all.
        unsupervised: Weight of the unsupervised terms; 0 is plain supervised learning.
        threshold: Confidence from which a pseudo-label counts.
        feature_dropout: Probability that a channel of the features is dropped.
        cutmix: Probability of CutMix per image and strong view.
        sam: SAM whose knowledge is distilled as well (see knowsam's teacher), or none.
    """

    student: str = "unet"
    iterations: int = 3000
    labelled_batch: int = 12
    other_batch: int = 12
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    warm_up: int = 100
    clip_norm: float = 5.0
    unsupervised: float = 1.0
    threshold: float = 0.95  # the paper's
    feature_dropout: float = 0.5  # the paper's
    cutmix: float = 0.5  # the released code's
    sam: str = "none"


class UniMatch(nn.Module):
    """One student on weak, strong and perturbed views."""

    Config = UniMatchConfig

    @staticmethod
    def require(config: UniMatchConfig) -> UniMatchConfig:
        """UserError for a student whose features cannot be perturbed, or where SAM's weights are not to be had."""
        if config.student not in STUDENTS:
            raise UserError(
                f"--unimatch.student {config.student}: no network with features that UniMatch could perturb; "
                f"choose one of {', '.join(STUDENTS)}"
            )
        return replace(config, sam=require_sam(config.sam, "--unimatch.sam"))

    def __init__(self, config: UniMatchConfig, task: Task) -> None:
        super().__init__()
        self.config = config
        self.student = build_student(config.student, classes=task.classes)
        self.sam = part(config.sam, task)

    def stages(self) -> list[Stage]:
        """One stage; without unsupervised terms it is that of `supervised`, row for row."""
        c = self.config
        stage = Stage(
            name="unimatch",
            step=self.step,
            optimizers=[AdamW(self.student.parameters(), lr=c.learning_rate, weight_decay=c.weight_decay)],
            iterations=c.iterations,
            batch=(c.labelled_batch, c.other_batch if c.unsupervised or self.sam else 0),
            augment=with_view(weak),
            scored=self.student,
            schedule=partial(warm_up_cosine, warm_up=min(0.5, c.warm_up / c.iterations)),
            clip=Clip(norm=c.clip_norm),
        )
        return [beside(self.sam, stage)]

    def remarks(self, log: Sequence[Mapping[str, Any]], batch: Batch) -> Remarks:
        """Whether SAM had anything to teach."""
        return heard(self.sam, log)

    def step(self, batch: Batch, progress: float) -> StepOutput:
        """L = S(z, y) + w (s1/4 + s2/4 + fp/2): z weak, s strong views with CutMix, fp dropped feature channels."""
        c = self.config
        height, width = batch.image.shape[-2:]
        features = self.student.encode(batch.image)  # type: ignore[operator]
        z = self.student.decode(features)[..., :height, :width]  # type: ignore[operator]
        terms = {"sup": dice_cross_entropy(z, batch.mask, batch.labelled, batch.classes)}
        loss = terms["sup"]
        if self.sam:
            distilled, taught = self.sam.terms(batch, z, progress)
            loss, terms = loss + distilled, terms | taught
        other = (~batch.labelled).nonzero()[:, 0] if c.unsupervised else batch.index[:0]
        if len(other) == 0:
            return StepOutput(loss, terms)
        confidence, label = annotated_logits(z.detach()[other], batch.classes[other]).softmax(1).max(1)
        dropped = [F.dropout2d(feature[other], c.feature_dropout) for feature in features]
        z_fp = self.student.decode(dropped)[..., :height, :width]  # type: ignore[operator]
        classes = batch.classes[other][:, :, None, None]
        terms["fp"] = confident_cross_entropy(z_fp, label, confidence, classes, c.threshold)
        boxes = [cutmix_boxes(len(other), height, width, c.cutmix).to(z.device) for _ in range(2)]
        view = cast(Tensor, batch.view)[other]
        views = torch.cat([mixed(view, box[:, None]) for box in boxes])
        for name, z_strong, box in zip(("s1", "s2"), self.student(views).chunk(2), boxes, strict=True):
            target = mixed(label, box), mixed(confidence, box), mixed(classes, box[:, None])
            terms[name] = confident_cross_entropy(z_strong, *target, c.threshold)
        unsupervised = 0.25 * terms["s1"] + 0.25 * terms["s2"] + 0.5 * terms["fp"]
        return StepOutput(loss + c.unsupervised * unsupervised, terms)


def mixed(values: Tensor, box: Tensor) -> Tensor:
    """Inside the box (B, ..., H, W) bool the next row's values, elsewhere the row's own."""
    return torch.where(box, values.roll(1, 0), values)


def cutmix_boxes(rows: int, height: int, width: int, probability: float) -> Tensor:
    """(rows, H, W) bool: per row, with the probability, a box of 2 to 40 % of the area, sides 1:0.3 to 1:3.3."""
    draws = torch.rand(5, rows)
    area = (0.02 + 0.38 * draws[0]) * height * width
    ratio = torch.exp((2 * draws[1] - 1) * torch.tensor(1 / 0.3).log())
    tall = (area * ratio).sqrt().clamp(1, height)
    wide = (area / ratio).sqrt().clamp(1, width)
    top, left = draws[2] * (height - tall), draws[3] * (width - wide)
    y, x = torch.arange(height)[None, :, None], torch.arange(width)[None, None, :]
    inside = (y >= top[:, None, None]) & (y < (top + tall)[:, None, None])
    inside = inside & (x >= left[:, None, None]) & (x < (left + wide)[:, None, None])
    return inside & (draws[4] < probability)[:, None, None]
