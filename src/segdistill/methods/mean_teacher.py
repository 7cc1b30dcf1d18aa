"""Mean Teacher (Tarvainen & Valpola, NeurIPS 2017): the student agrees with its own moving average on other views.

The teacher sees a second photometric view of each image; where the two disagree, labelled or not, the student is drawn
to the teacher. Segmentation settings after SSL4MIS (mean squared error, weight .1). Left out: input noise, which the
view replaces. Ours: the first tenth of the run is labelled only, the average forgets its start, and the other images do
not normalise the labelled ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

from torch import Tensor, nn
from torch.optim import AdamW

from ..losses.consistency import mean_squared_probability, ramp_up
from ..losses.schedules import warm_up_cosine
from ..losses.segmentation import dice_cross_entropy
from ..models.ema import MovingAverage
from ..models.statistics import normalised_apart
from ..models.students import build_student, require_plain
from ..transforms.presets import weak, with_view
from ..types import Batch, Clip, Remarks, Stage, StepOutput, Task
from .sam_distillation import beside, heard, part, require_sam


@dataclass(frozen=True)
class MeanTeacherConfig:
    """Settings of Mean Teacher.

    Attributes:
        student: Network to train, by name.
        iterations: Updates in all.
        labelled_batch: Labelled images per batch.
        other_batch: Other images per batch.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Decoupled weight decay.
        warm_up: Updates over which the learning rate rises linearly from 0.
        clip_norm: Gradients are clipped to this norm; 0: not at all.
        ema_decay: Decay of the teacher's average.
        consistency: Weight of the consistency term; 0 is plain supervised learning.
        consistency_from: Progress at which the consistency starts.
        consistency_full: Progress at which it has its whole weight.
        apart: Labelled and other images pass the student apart, each normalised by its own batch.
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
    ema_decay: float = 0.99  # SSL4MIS
    consistency: float = 0.1  # SSL4MIS
    consistency_from: float = 0.1  # published: 0
    consistency_full: float = 0.4
    apart: bool = True  # published: false
    sam: str = "none"


class MeanTeacher(nn.Module):
    """A student and its moving average."""

    Config = MeanTeacherConfig

    @staticmethod
    def require(config: MeanTeacherConfig) -> MeanTeacherConfig:
        """UserError for a student that it cannot train, or where SAM's weights are not to be had."""
        require_plain(config.student, "--mean_teacher.student")
        return replace(config, sam=require_sam(config.sam, "--mean_teacher.sam"))

    def __init__(self, config: MeanTeacherConfig, task: Task) -> None:
        super().__init__()
        self.config = config
        self.student = build_student(config.student, classes=task.classes)
        self.sam = part(config.sam, task)
        self.teacher = MovingAverage(self.student, config.ema_decay)

    def stages(self) -> list[Stage]:
        """One stage; without consistency it is that of `supervised`, row for row."""
        c = self.config
        stage = Stage(
            name="mean_teacher",
            step=self.step,
            optimizers=[AdamW(self.student.parameters(), lr=c.learning_rate, weight_decay=c.weight_decay)],
            iterations=c.iterations,
            batch=(c.labelled_batch, c.other_batch if c.consistency or self.sam else 0),
            augment=with_view(weak),
            scored=self.student,
            schedule=partial(warm_up_cosine, warm_up=min(0.5, c.warm_up / c.iterations)),
            clip=Clip(norm=c.clip_norm),
            after_update=lambda progress: self.teacher.update(self.student),
        )
        return [beside(self.sam, stage)]

    def step(self, batch: Batch, progress: float) -> StepOutput:
        """L = S(z, y) on labelled rows + w(t) |p - p'|^2 on all; z the student's logits, z' the teacher's."""
        c = self.config
        weight = c.consistency * ramp_up(progress, c.consistency_from, c.consistency_full)
        z = self.logits(batch)
        terms = {"sup": dice_cross_entropy(z, batch.mask, batch.labelled, batch.classes)}
        loss = terms["sup"]
        if weight:
            z_teacher = self.teacher(cast(Tensor, batch.view), batch.modality)
            terms["cons"] = mean_squared_probability(z, z_teacher, batch.classes)
            loss = loss + weight * terms["cons"]
        if self.sam:
            distilled, taught = self.sam.terms(batch, z, progress)
            loss, terms = loss + distilled, terms | taught
        return StepOutput(loss, terms)

    def logits(self, batch: Batch) -> Tensor:
        """The student's of all rows."""
        if not self.config.apart:
            return cast(Tensor, self.student(batch.image, batch.modality))

        def forward(rows: Tensor | slice) -> tuple[Tensor]:
            return (self.student(batch.image[rows], batch.modality[rows]),)

        return normalised_apart(self.student, forward, batch.labelled, sum(batch.known))[0]

    def remarks(self, log: Sequence[Mapping[str, Any]], batch: Batch) -> Remarks:
        """Whether SAM had anything to teach."""
        return heard(self.sam, log)
