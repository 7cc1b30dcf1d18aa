"""A method with everything the loop must carry: two stages, two optimizers, scales, dropout, norms, an EMA copy."""

import copy
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn
from torch.optim import SGD, AdamW

from segdistill.data.batches import Dataset, TrainingBatches
from segdistill.data.cache import Cache
from segdistill.data.rows import Row
from segdistill.engine.logging import RunLog
from segdistill.engine.settings import Settings
from segdistill.engine.trainer import Trainer
from segdistill.losses.segmentation import dice_cross_entropy
from segdistill.models.freeze import freeze
from segdistill.transforms.presets import weak_strong
from segdistill.types import Clip, Stage, StepOutput


class Net(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, image, modality=None):
        return self.head(self.body(image))


class Toy(nn.Module):
    """Stage one trains `student` and `other`; stage two only the student's head, against an EMA of the student."""

    def __init__(self, iterations=(6, 6)):
        super().__init__()
        torch.manual_seed(0)
        self.student, self.other = Net(), Net()
        self.teacher = copy.deepcopy(self.student)
        self.foreign = freeze(nn.Conv2d(3, 2, 1))
        self.iterations = iterations
        self.prepared = []

    def stages(self):
        return [
            Stage(
                name="pair",
                step=self.pair,
                optimizers=[SGD(self.student.parameters(), 0.1, momentum=0.9), AdamW(self.other.parameters(), 1e-2)],
                iterations=self.iterations[0],
                batch=(2, 2),
                augment=weak_strong,
                scored=self.student,
                scales=(1.0, 2.0),
                schedule=lambda progress: 1 - progress,
                clip=Clip(norm=1.0),
                prepare=lambda: self.prepared.append("pair"),
                after_update=self.average,
            ),
            Stage(
                name="head",
                step=self.tune,
                optimizers=[AdamW(self.student.head.parameters(), 1e-2)],
                iterations=self.iterations[1],
                batch=(3, 0),
                augment=weak_strong,
                scored=self.student,
                clip=Clip(value=0.5),
                prepare=lambda: self.prepared.append("head"),
            ),
        ]

    def average(self, progress):
        with torch.no_grad():
            for mean, value in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                mean.lerp_(value, 0.1)

    def pair(self, batch, progress):
        z, other = self.student(batch.image), self.other(batch.image)
        terms = {
            "a": dice_cross_entropy(z, batch.mask, batch.labelled, batch.classes),
            "b": dice_cross_entropy(other, batch.mask, batch.labelled, batch.classes),
            "agree": (z.float().softmax(1) - other.float().softmax(1).detach()).square().mean(),
        }
        return StepOutput(terms["a"] + terms["b"] + progress * terms["agree"], terms)

    def tune(self, batch, progress):
        z = self.student(batch.image)
        with torch.no_grad():
            target = self.teacher(batch.image).float().softmax(1)
        terms = {
            "sup": dice_cross_entropy(z, batch.mask, batch.labelled, batch.classes),
            "ema": (z.float().softmax(1) - target).square().mean(),
        }
        return StepOutput(sum(terms.values()), terms)


def toy_data(size=32, seed=0):
    """Six labelled, four other, three validation rows of bright squares."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((13, size, size), np.uint8)
    for mask in masks:
        y, x = rng.integers(2, size - 14, 2)
        mask[y : y + 12, x : x + 12] = 1
    images = (rng.normal(80, 15, (13, size, size, 3)) + 90 * masks[..., None]).clip(0, 255).astype(np.uint8)
    split = ["train"] * 10 + ["val"] * 3
    rows = [Row(Path(f"{i}.png"), None if 6 <= i < 10 else Path(f"{i}m.png"), split[i]) for i in range(13)]
    return TrainingBatches(Dataset(Cache(images, masks, "toy"), rows, ("background", "square"), ("",)), seed=3)


def run_toy(method, folder, data=None, **settings):
    """Train a method, or go on where an earlier run in this folder was killed; the bytes of its log."""
    folder.mkdir(exist_ok=True)
    made = Settings(seed=3, device="cpu", precision="32", **settings)
    log = RunLog(folder, Console(quiet=True))
    trainer = Trainer(method, data or toy_data(), made, folder, "cpu", log)
    with log:
        trainer.start()
        trainer.run()
    return (folder / "log.jsonl").read_bytes()


def with_hidden(batches):
    """The same, where a label budget hides the masks of the other rows."""
    rows = [replace(row, hidden=Path("h")) if row.mask is None else row for row in batches.dataset.rows]
    return TrainingBatches(replace(batches.dataset, rows=rows), batches.seed)


class Plain(nn.Module):
    """No norm, no dropout, no augmentation, losses that are means over images: its global batch may be cut anywhere."""

    def __init__(self, batch=(2, 1)):
        super().__init__()
        torch.manual_seed(0)
        self.student = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 2, 3, padding=1))
        self.unused = nn.Linear(2, 2)
        self.batch = batch

    def stages(self):
        return [
            Stage(
                name="plain",
                step=self.step,
                optimizers=[AdamW(self.parameters(), 1e-2)],
                iterations=10,
                batch=self.batch,
                augment=lambda batch: batch,
                scored=None,
                clip=Clip(norm=1.0),
            )
        ]

    def step(self, batch, progress):
        z = self.student(batch.image)
        per_image = nn.functional.cross_entropy(z, batch.mask, reduction="none").mean((1, 2))
        terms = {"sup": per_image[batch.labelled].mean(), "soft": z.softmax(1)[:, 1][~batch.labelled].mean()}
        return StepOutput(terms["sup"] + terms["soft"], terms)


class Killed(BaseException):
    """The process ends here."""


@contextmanager
def killed_at(count):
    """Inside, training ends where its update number `count` would begin."""
    update, calls = Trainer._update, []

    def dying(self, stage):
        calls.append(1)
        if len(calls) == count:
            raise Killed
        update(self, stage)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_update", dying)
        with pytest.raises(Killed):
            yield
