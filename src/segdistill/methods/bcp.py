"""BCP (Bai et al., CVPR 2023): bidirectional copy-paste of labelled into unlabelled images and back.

A box of one image is filled from another, so that labelled and unlabelled pixels meet in one image and the network
cannot treat them as two distributions; the unlabelled ones carry the labels of the student's moving average. Both
networks start from a student that was pre-trained on labelled pairs mixed with each other. Ours: AdamW with a cosine
in each stage instead of SGD at a constant rate, and a teacher in eval mode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from ..losses.schedules import warm_up_cosine
from ..losses.segmentation import annotated_logits, dice_cross_entropy, label_map
from ..models.ema import MovingAverage
from ..models.students import build_student, require_plain
from ..transforms.presets import weak
from ..types import Batch, Clip, Remarks, Stage, StepOutput, Task, UserError
from .sam_distillation import beside, heard, part, require_sam

BOX = 2 / 3  # side of the box per side of the image; the paper's


@dataclass(frozen=True)
class BCPConfig:
    """Settings of BCP.

    Attributes:
        student: Network to train, by name.
        iterations: Updates in all, pre-training included.
        pretrain: Share of them that pre-trains; 1 is copy-paste between labelled images alone, to the end.
        labelled_batch: Labelled images per batch; two of them make one mixed image.
        other_batch: Other images per batch.
        learning_rate: Peak learning rate of AdamW, in each stage.
        weight_decay: Decoupled weight decay.
        warm_up: Updates of each stage over which the learning rate rises linearly from 0.
        clip_norm: Gradients are clipped to this norm; 0: not at all.
        ema_decay: Decay of the teacher's average.
        unsupervised: Weight of pseudo-labelled pixels, labelled ones having 1; 0 is plain supervised learning.
        largest_component: Keep of each class of a pseudo-label the largest component; where one object is certain.
        sam: SAM whose knowledge is distilled as well (see knowsam's teacher), after pre-training; or none.
    """

    student: str = "unet"
    iterations: int = 3000
    pretrain: float = 0.25  # published: 10k of 40k
    labelled_batch: int = 12
    other_batch: int = 12
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    warm_up: int = 100
    clip_norm: float = 5.0
    ema_decay: float = 0.99  # the paper's
    unsupervised: float = 0.5  # the paper's
    largest_component: bool = False  # published: True, recipes/bcp_acdc_7patients.yaml
    sam: str = "none"


class BCP(nn.Module):
    """A student and its moving average."""

    Config = BCPConfig

    @staticmethod
    def require(config: BCPConfig) -> BCPConfig:
        """UserError for a share or student that is none, or where SAM's weights are not to be had or never teach."""
        if not 0 < config.pretrain <= 1:
            raise UserError(f"--bcp.pretrain {config.pretrain}: needs a share of the iterations, above 0 and up to 1")
        if config.sam != "none" and pretraining(config) >= config.iterations:
            raise UserError(
                f"--bcp.sam {config.sam}: SAM teaches after pre-training, and --bcp.pretrain {config.pretrain} leaves "
                "no updates for it; give a smaller share, or leave --bcp.sam out"
            )
        require_plain(config.student, "--bcp.student")
        return replace(config, sam=require_sam(config.sam, "--bcp.sam"))

    def __init__(self, config: BCPConfig, task: Task) -> None:
        super().__init__()
        self.config = config
        self.student = build_student(config.student, classes=task.classes)
        self.sam = part(config.sam, task)
        self.teacher = MovingAverage(self.student, config.ema_decay)

    def stages(self) -> list[Stage]:
        """Pre-training, then copy-paste both ways; without pseudo-labels the one stage of `supervised`, row for row."""
        c = self.config
        first = pretraining(c)
        stages = []
        if first:
            stages.append(self.stage("pretrain", self.pretrain, first, 0))
        if first < c.iterations:
            others = c.other_batch if c.unsupervised or self.sam else 0
            last = replace(
                self.stage("bcp", self.step, c.iterations - first, others),
                prepare=partial(self.teacher.start, self.student),
                after_update=lambda progress: self.teacher.update(self.student),
            )
            stages.append(beside(self.sam, last))
        return stages

    def remarks(self, log: Sequence[Mapping[str, Any]], batch: Batch) -> Remarks:
        """Whether SAM had anything to teach."""
        return heard(self.sam, log)

    def stage(self, name: str, step: Callable[[Batch, float], StepOutput], iterations: int, others: int) -> Stage:
        """Both stages train the student alike."""
        c = self.config
        return Stage(
            name=name,
            step=step,
            optimizers=[AdamW(self.student.parameters(), lr=c.learning_rate, weight_decay=c.weight_decay)],
            iterations=iterations,
            batch=(c.labelled_batch, others),
            augment=weak,
            scored=self.student,
            schedule=partial(warm_up_cosine, warm_up=min(0.5, c.warm_up / iterations)),
            clip=Clip(norm=c.clip_norm),
        )

    def step(self, batch: Batch, progress: float) -> StepOutput:
        """Copy-paste both ways; with a SAM also its loss and what it teaches the student on the images as they are."""
        output = self.copy_paste(batch, progress) if self.config.unsupervised else self.supervise(batch, progress)
        if not self.sam:
            return output
        z = self.student(batch.image, batch.modality)
        distilled, taught = self.sam.terms(batch, z, progress)
        return StepOutput(output.loss + distilled, output.terms | taught)

    def supervise(self, batch: Batch, progress: float) -> StepOutput:
        """L = S(z, y) on the labelled rows, nothing mixed."""
        z = self.student(batch.image, batch.modality)
        terms = {"sup": dice_cross_entropy(z, batch.mask, batch.labelled, batch.classes)}
        return StepOutput(terms["sup"], terms)

    def pretrain(self, batch: Batch, progress: float) -> StepOutput:
        """L = (S_M(z, y_a) + S_(1-M)(z, y_b)) / 2; z of l_a M + l_b (1 - M), M = 0 inside the box."""
        if not batch.labelled.any():
            return self.supervise(batch, progress)
        a, b = halves(batch.labelled.nonzero()[:, 0])
        box = random_box(*batch.mask.shape[-2:]).to(batch.image.device)
        z = self.student(torch.where(box, batch.image[b], batch.image[a]), batch.modality[a])
        terms = {
            "sup_a": region_loss(z, batch.mask[a], batch.classes[a], ~box),
            "sup_b": region_loss(z, batch.mask[b], batch.classes[b], box),
        }
        return StepOutput((terms["sup_a"] + terms["sup_b"]) / 2, terms)

    def copy_paste(self, batch: Batch, progress: float) -> StepOutput:
        """L = (S_(1-M)(z_u, y_a) + w S_M(z_u, y'_a) + S_M(z_l, y_b) + w S_(1-M)(z_l, y'_b)) / 2.

        z_u of in_u = u_a M + l_a (1 - M), z_l of in_l = l_b M + u_b (1 - M), y' the teacher's argmax on u. Rows of
        one kind only are mixed as in pre-training.
        """
        c = self.config
        if batch.labelled.all() or not batch.labelled.any():
            return self.pretrain(batch, progress)
        known, other = batch.labelled.nonzero()[:, 0], (~batch.labelled).nonzero()[:, 0]
        count = max(len(known), len(other))
        (l_a, l_b), (u_a, u_b) = halves(cycled(known, count)), halves(cycled(other, count))
        label = batch.mask.index_copy(0, other, self.pseudo_label(batch, other))
        box = random_box(*batch.mask.shape[-2:]).to(batch.image.device)
        host, partner = torch.cat([u_a, l_b]), torch.cat([l_a, u_b])
        image = torch.where(box, batch.image[partner], batch.image[host])
        z_u, z_l = self.student(image, batch.modality[host]).chunk(2)
        terms = {
            "sup_u": region_loss(z_u, label[l_a], batch.classes[l_a], box),
            "pseudo_u": region_loss(z_u, label[u_a], batch.classes[u_a], ~box),
            "sup_l": region_loss(z_l, label[l_b], batch.classes[l_b], ~box),
            "pseudo_l": region_loss(z_l, label[u_b], batch.classes[u_b], box),
        }
        supervised, unsupervised = terms["sup_u"] + terms["sup_l"], terms["pseudo_u"] + terms["pseudo_l"]
        return StepOutput((supervised + c.unsupervised * unsupervised) / 2, terms)

    def pseudo_label(self, batch: Batch, rows: Tensor) -> Tensor:
        """(len(rows), H, W) long: the teacher's most probable annotated class of the images as they are."""
        z = self.teacher(batch.image[rows], batch.modality[rows])
        label = label_map(annotated_logits(z, batch.classes[rows]))
        return largest_components(label) if self.config.largest_component else label


def pretraining(c: BCPConfig) -> int:
    """Updates of the first stage; without pseudo-labels there is none."""
    return max(1, round(c.pretrain * c.iterations)) if c.unsupervised else 0


def region_loss(z: Tensor, target: Tensor, classes: Tensor, region: Tensor) -> Tensor:
    """S_region: cross-entropy + soft Dice over the pixels of a region (H, W) bool of all rows."""
    rows = torch.ones(len(z), dtype=torch.bool, device=z.device)
    return dice_cross_entropy(z, target, rows, classes, weight=region.float().expand(len(z), -1, -1))


def random_box(height: int, width: int) -> Tensor:
    """(H, W) bool: a box of 2/3 of each side at a random place, the same for the whole batch; M is its complement."""
    box = torch.zeros(height, width, dtype=torch.bool)
    tall, wide = int(BOX * height), int(BOX * width)
    top, left = (int(torch.randint(side + 1, ())) for side in (height - tall, width - wide))
    box[top : top + tall, left : left + wide] = True
    return box


def halves(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Two halves of the same length; of an odd number the middle row is in both."""
    return rows[: (len(rows) + 1) // 2], rows[len(rows) // 2 :]


def cycled(rows: Tensor, count: int) -> Tensor:
    """`count` rows, from the first again after the last."""
    return rows[torch.arange(count, device=rows.device) % len(rows)]


def largest_components(label: Tensor) -> Tensor:
    """(B, H, W) without all but the largest 8-connected component of each foreground class of an image."""
    from scipy import ndimage

    kept = np.zeros(label.shape, np.int64)
    for row, found in zip(kept, label.cpu().numpy(), strict=True):
        for index in np.unique(found[found > 0]):
            components, _ = ndimage.label(found == index, structure=np.ones((3, 3)))
            row[components == 1 + np.bincount(components.ravel())[1:].argmax()] = index
    return torch.from_numpy(kept).to(label.device)
