"""Supervised learning: the baseline of every comparison.

Any student, the weak preset, cross-entropy + soft Dice on the labelled rows, AdamW with warm-up and cosine decay.
Left out on purpose: everything that needs an unlabelled image or a teacher.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import nn
from torch.optim import AdamW

from ..losses.schedules import warm_up_cosine
from ..losses.segmentation import dice_cross_entropy
from ..models.students import build_student, require_plain
from ..transforms.presets import weak
from ..types import Batch, Clip, Stage, StepOutput, Task


@dataclass(frozen=True)
class SupervisedConfig:
    """Settings of the supervised baseline.

    Attributes:
        student: Network to train, by name.
        iterations: Updates in all.
        batch_size: Labelled images per batch.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Decoupled weight decay.
        warm_up: Updates over which the learning rate rises linearly from 0.
        clip_norm: Gradients are clipped to this norm; 0: not at all.
    """

    student: str = "unet"
    iterations: int = 3000
    batch_size: int = 12
    learning_rate: float = 1e-3  # benchmarks/supervised_schedules.py
    weight_decay: float = 1e-2
    warm_up: int = 100
    clip_norm: float = 5.0


class Supervised(nn.Module):
    """One student, labels only."""

    Config = SupervisedConfig

    @staticmethod
    def require(config: SupervisedConfig) -> SupervisedConfig:
        """UserError for a student that it cannot train."""
        require_plain(config.student, "--supervised.student")
        return config

    def __init__(self, config: SupervisedConfig, task: Task) -> None:
        super().__init__()
        self.config = config
        self.student = build_student(config.student, classes=task.classes)

    def stages(self) -> list[Stage]:
        """One stage: the student on the labelled rows."""
        c = self.config
        return [
            Stage(
                name="supervised",
                step=self.step,
                optimizers=[AdamW(self.student.parameters(), lr=c.learning_rate, weight_decay=c.weight_decay)],
                iterations=c.iterations,
                batch=(c.batch_size, 0),
                augment=weak,
                scored=self.student,
                schedule=partial(warm_up_cosine, warm_up=min(0.5, c.warm_up / c.iterations)),
                clip=Clip(norm=c.clip_norm),
            )
        ]

    def step(self, batch: Batch, progress: float) -> StepOutput:
        """L = S(z, y) on the labelled rows; z logits, y classes."""
        z = self.student(batch.image, batch.modality)
        terms = {"sup": dice_cross_entropy(z, batch.mask, batch.labelled, batch.classes)}
        return StepOutput(terms["sup"], terms)
