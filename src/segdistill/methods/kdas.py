"""KDAS (Trinh et al., ICME 2024): a compact polyp segmenter by attention supervision and symmetrical guiding.

Teacher Polyp-PVT on PVTv2-b2, student the same on b0. The attention of the student's two maps over their own rows
follows the teacher's (L_AT), and so does their symmetric part (L_SGM), which tolerates where the two disagree
otherwise. The paper's teacher is a given file; here a first stage trains it on the user's labels, or any student of
ours teaches. Beyond the paper: other classes than one, images without a label, controls, of which one, the same student
without a teacher, is trained in the same run and says what distillation gained. Left out: choosing the best checkpoint
on the test sets. `as_released` computes what the code at 647d51b does, in which L_AT has no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW

from ..losses.attention import (
    attention_loss,
    released_attention_loss,
    released_symmetric_loss,
    symmetric_loss,
)
from ..losses.distillation import distillation_kl, feature_distance
from ..losses.segmentation import annotated_logits
from ..losses.structure import released_structure_loss, structure_loss
from ..models.polyp_pvt import STRIDE, PolypMaps, PolypPVT, enlarged
from ..models.pvt import load_backbone
from ..models.students import build_student
from ..models.teachers import load_teacher
from ..models.weights import settled
from ..transforms.presets import weak_turned
from ..types import Batch, Clip, Remarks, Stage, StepOutput, Task, UserError
from .kdas_remarks import drawn, sentences

SCALES = (0.75, 1.0, 1.25)  # released; one update each
SHOWN = 3  # pictures of attention in the report
DISTILLED = {  # the controls: what is distilled, nothing else differs
    "none": (),
    "pixel": ("pixel",),
    "feature": ("feature",),
    "attention": ("attention",),
    "symmetric": ("symmetric",),
    "both": ("attention", "symmetric"),
}


@dataclass(frozen=True)
class KDASConfig:
    """Settings of KDAS.

    Attributes:
        backbone: PVTv2 of the student, b0 to b5.
        teacher: Run, student folder or Polyp-PVT checkpoint that teaches; empty: a first stage trains the teacher.
        teacher_backbone: PVTv2 of the teacher that the first stage trains.
        backbone_weights: ImageNet weights for both: hub, none, or a file or folder of pvt_v2_b*.pth.
        distil: What the student learns from the teacher; none is the control without a teacher.
        control: Train the same student also without distillation, same schedule, and say what distillation gained.
        unlabelled: Whether images without a label are distilled too; KDAS's own terms then by pixels also.
        iterations: Iterations of the student's stage, of three updates each.
        teacher_iterations: Iterations of the teacher's stage.
        labelled_batch: Labelled images per batch.
        other_batch: Other images per batch.
        learning_rate: Learning rate of AdamW, constant.
        weight_decay: Decoupled weight decay.
        clip_value: Gradients are clipped to this value, element by element; 0: not at all.
        temperature: Of the attention and of the pixels.
        alpha: Weight of what is distilled; the labels have 1 - alpha.
        as_released: Compute what the released code does, faults included.
    """

    backbone: str = "b0"
    teacher: str = ""
    teacher_backbone: str = "b2"
    backbone_weights: str = "none"  # published: ImageNet's, recipes/kdas_polyp.yaml
    distil: Literal["none", "pixel", "feature", "attention", "symmetric", "both"] = "both"
    control: bool = True  # published: no such control
    unlabelled: bool = True  # published: there are none
    iterations: int = 3000  # published: 99 epochs of 1450 images, 8960
    teacher_iterations: int = 3000  # published: 100 epochs (Polyp-PVT)
    labelled_batch: int = 16  # released
    other_batch: int = 16
    learning_rate: float = 1e-4  # released
    weight_decay: float = 1e-4  # released
    clip_value: float = 0.5  # released
    temperature: float = 2.0  # released
    alpha: float = 0.3  # released
    as_released: bool = False


class KDAS(nn.Module):
    """A student and its teacher."""

    Config = KDASConfig

    @staticmethod
    def require(config: KDASConfig) -> KDASConfig:
        """UserError where a teacher or backbone weights are named that are not there."""
        teacher, weights = settled(config.teacher), settled(config.backbone_weights, "hub", "none")
        if teacher and not Path(teacher).exists():
            raise UserError(
                f"--kdas.teacher {config.teacher}: no such run, student folder or checkpoint; leave it out to train one"
            )
        if weights not in ("hub", "none") and not Path(weights).exists():
            raise UserError(
                f"--kdas.backbone_weights {config.backbone_weights}: no such file; give hub, none, or a pvt_v2_b*.pth"
            )
        return replace(config, teacher=teacher, backbone_weights=weights)

    def __init__(self, config: KDASConfig, task: Task) -> None:
        super().__init__()
        check(config, task)
        self.config = config
        self.student = polyp_pvt(task.classes, config.backbone, config.backbone_weights)
        self.teacher: nn.Module | None = None
        if config.teacher and config.distil != "none":
            self.teacher = load_teacher(Path(config.teacher), task)
        elif config.distil != "none":
            self.teacher = polyp_pvt(task.classes, config.teacher_backbone, config.backbone_weights)
        alone = config.control and config.distil != "none"
        self.control = deepcopy(self.student) if alone else None  # the same initial weights
        self.projections = nn.ModuleList()
        if config.distil == "feature":
            self.projections.extend(projections(self.student, self.teacher))
        self.structure = released_structure_loss if config.as_released else structure_loss
        self.distilled: dict[str, Callable[[PolypMaps, PolypMaps], Tensor]] = {
            name: self.losses()[name] for name in DISTILLED[config.distil]
        }
        self.pixels_too = (
            config.unlabelled and not config.as_released and not {"pixel", "feature"} & self.distilled.keys()
        )

    @property
    def students(self) -> dict[str, nn.Module]:
        """What is scored beside the student: the control, and the teacher that this run trained."""
        found = {"teacher": None if self.config.teacher else self.teacher, "control": self.control}
        return {name: network for name, network in found.items() if network is not None}

    def losses(self) -> dict[str, Callable[[PolypMaps, PolypMaps], Tensor]]:
        """Everything that can be distilled, by the names of DISTILLED."""
        c = self.config
        return {
            "pixel": lambda s, t: distillation_kl(s.logits, t.logits, c.temperature),
            "feature": self.feature,
            "attention": partial(released_attention if c.as_released else attention, temperature=c.temperature),
            "symmetric": released_symmetric if c.as_released else symmetric,
        }

    def stages(self) -> list[Stage]:
        """The teacher on the labels, unless given or not needed; the control; the student on labels and teacher."""
        c = self.config
        plan = []
        if self.teacher is not None and not c.teacher:
            plan.append(self.stage("teacher", self.teach, self.teacher, c.teacher_iterations))
        if self.control is not None:
            plan.append(self.stage("control", self.go_without, self.control, c.iterations))
        last = self.stage("student", self.step, self.student, c.iterations, *self.projections)
        if self.teacher is not None:
            others = c.other_batch if c.unlabelled else 0
            last = replace(last, batch=(c.labelled_batch, others), watched=self.watched if c.teacher else None)
        return [*plan, last]

    def stage(
        self,
        name: str,
        step: Callable[[Batch, float], StepOutput],
        scored: nn.Module,
        iterations: int,
        *beside: nn.Module,
    ) -> Stage:
        """All stages train alike: AdamW at a constant rate, three scales per batch."""
        c = self.config
        parameters = [p for network in (scored, *beside) for p in network.parameters()]
        return Stage(
            name=name,
            step=step,
            optimizers=[AdamW(parameters, lr=c.learning_rate, weight_decay=c.weight_decay)],
            iterations=iterations,
            batch=(c.labelled_batch, 0),
            augment=weak_turned,
            scored=scored,
            scales=SCALES,
            clip=Clip(value=c.clip_value),
        )

    def teach(self, batch: Batch, progress: float) -> StepOutput:
        """L_seg of the teacher."""
        terms = {"seg": self.segmentation(cast(PolypPVT, self.teacher).explain(batch.image), batch)}
        return StepOutput(terms["seg"], terms)

    def go_without(self, batch: Batch, progress: float) -> StepOutput:
        """What the student's step is without a teacher."""
        terms = {"seg": self.segmentation(cast(PolypPVT, self.control).explain(batch.image), batch)}
        return StepOutput((1 - self.config.alpha) * terms["seg"], terms)

    def step(self, batch: Batch, progress: float) -> StepOutput:
        """L = (1 - alpha) L_seg + alpha (L_AT + L_SGM); s the student's maps, t the teacher's."""
        c = self.config
        s = self.student.explain(batch.image)
        terms = {"seg": self.segmentation(s, batch)}
        loss = (1 - c.alpha) * terms["seg"]
        if self.teacher is None:
            return StepOutput(loss, terms)
        t = self.taught(batch.image, batch.modality)
        s, t = annotated(s, batch.classes), annotated(t, batch.classes)
        terms |= {name: distilled(s, t) for name, distilled in self.distilled.items()}
        other = (~batch.labelled).nonzero()[:, 0]
        if self.pixels_too and len(other):
            terms["pixel"] = distillation_kl(s.logits[other], t.logits[other], c.temperature)
        return StepOutput(loss + c.alpha * cast(Tensor, sum(v for k, v in terms.items() if k != "seg")), terms)

    def segmentation(self, s: PolypMaps, batch: Batch) -> Tensor:
        """L_seg = structure(s_1) + structure(s_2) at the size of the image, labelled rows only."""
        height, width = batch.image.shape[-2:]
        first, second = (enlarged(x)[..., :height, :width] for x in (s.first, s.second))
        target = batch.mask, batch.labelled, batch.classes
        return self.structure(first, *target) + self.structure(second, *target)

    @torch.no_grad()
    def taught(self, image: Tensor, modality: Tensor) -> PolypMaps:
        """The teacher's maps; of one that is no Polyp-PVT, its logits less the background's, averaged to the grid.

        Where the grid reaches beyond the image, the values at its edge go on: zeros would teach p = .5.
        """
        if isinstance(self.teacher, PolypPVT):
            return self.teacher.explain(image)
        z = cast(nn.Module, self.teacher)(image, modality)
        height, width = self.student.padded(image).shape[-2:]
        beyond = (0, width - z.shape[-1], 0, height - z.shape[-2])
        both = F.avg_pool2d(F.pad(z[:, 1:] - z[:, :1], beyond, mode="replicate"), STRIDE)
        return PolypMaps([], both, both, z)

    def feature(self, s: PolypMaps, t: PolypMaps) -> Tensor:
        """FitNets: the student's stages, projected, against the teacher's."""
        projected = [project(f) for project, f in zip(self.projections, s.features, strict=True)]
        return feature_distance(projected, t.features)

    def watched(self, image: Tensor, modality: Tensor) -> dict[str, Tensor]:
        """A given teacher's logits: its validation is nowhere else."""
        return {"teacher": self.taught(image, modality).logits}

    def remarks(self, log: Sequence[Mapping[str, Any]], batch: Batch) -> Remarks:
        """What distillation gained, and whose rows attend to which, drawn beside the images."""
        if self.teacher is None:
            return Remarks((), ())
        networks = [self.student, *([self.control] if self.control is not None else [])]
        maps = [self.taught(batch.image, batch.modality).first, *(x.explain(batch.image).first for x in networks)]
        names = "the teacher's, the student's" + (", the control's" if self.control is not None else "")
        caption = (
            "A training image, then how much each of its rows (down) attends to each (across), the more the whiter: "
            f"{names} (P1, first class)"
        )
        count = min(SHOWN, len(batch.image))
        pictures = [
            (caption, drawn(batch.image[i], [x[i] for x in maps], self.config.temperature)) for i in range(count)
        ]
        return Remarks(tuple(sentences(log)), tuple(pictures))


def attention(s: PolypMaps, t: PolypMaps, temperature: float) -> Tensor:
    """L_AT over both maps."""
    return attention_loss(s.first, t.first, temperature) + attention_loss(s.second, t.second, temperature)


def symmetric(s: PolypMaps, t: PolypMaps) -> Tensor:
    """L_SGM over both maps."""
    return symmetric_loss(s.first, t.first) + symmetric_loss(s.second, t.second)


def released_attention(s: PolypMaps, t: PolypMaps, temperature: float) -> Tensor:
    """Constant in the student; its NaN is logged as 0, which has the same gradient and lets the run go on."""
    pairs = ((s.first, t.first), (s.second, t.second))
    losses = [released_attention_loss(enlarged(a)[:, 1:], enlarged(b)[:, 1:], temperature) for a, b in pairs]
    return torch.stack(losses).nan_to_num().sum()


def released_symmetric(s: PolypMaps, t: PolypMaps) -> Tensor:
    """P1 only."""
    return released_symmetric_loss(enlarged(s.first)[:, 1:], enlarged(t.first)[:, 1:])


def annotated(maps: PolypMaps, classes: Tensor) -> PolypMaps:
    """Without the classes that a row does not annotate: 0 in the maps, no probability in the logits, no gradient."""
    unknown = ~classes[:, 1:, None, None]
    first, second = maps.first.masked_fill(unknown, 0), maps.second.masked_fill(unknown, 0)
    return maps._replace(first=first, second=second, logits=annotated_logits(maps.logits, classes))


def polyp_pvt(classes: int, backbone: str, weights: str) -> PolypPVT:
    """A Polyp-PVT, its backbone as told by `backbone_weights`."""
    network = cast(PolypPVT, build_student("polyp_pvt", classes=classes, backbone=backbone))
    if weights != "none":
        load_backbone(network.backbone, weights)
    return network


def projections(student: PolypPVT, teacher: nn.Module | None) -> list[nn.Module]:
    """1x1, one per stage of the backbones."""
    if not isinstance(teacher, PolypPVT):
        raise UserError("--kdas.distil feature needs a Polyp-PVT teacher; choose another --kdas.distil or teacher")
    pairs = zip(student.backbone.widths, teacher.backbone.widths, strict=True)
    return [nn.Conv2d(a, b, 1) for a, b in pairs]


def check(config: KDASConfig, task: Task) -> None:
    """What the released code can do: one foreground class, square images."""
    if config.distil not in DISTILLED:
        raise UserError(f"--kdas.distil {config.distil}: no such control; choose one of {', '.join(DISTILLED)}")
    if config.as_released and (task.classes != 2 or task.size[0] != task.size[1]):
        size = " x ".join(map(str, task.size))
        raise UserError(
            f"--kdas.as_released needs 2 classes and a square size, not {task.classes} and {size}; leave it out"
        )
