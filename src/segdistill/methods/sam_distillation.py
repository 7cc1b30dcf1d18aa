"""KnowSAM's SKD (Huang et al., TMI 2025) as a part: SAM, prompted by a student and taught by the labels, teaches it.

Any method with a student can hold one: it adds SAM's own supervised loss and a distillation term on the student's
logits. A gate, which is ours, keeps a SAM that knows less than the student from teaching: on labelled rows only pixels
where SAM is right are distilled, and none anywhere while SAM's running Dice on labelled rows is behind the student's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam

from ..losses.consistency import ramp_up
from ..losses.distillation import distillation_kl
from ..losses.segmentation import annotated_logits, dice_cross_entropy, label_map
from ..models.knowsam_teacher import knowsam_teacher
from ..models.sam import WITHOUT_WEIGHTS
from ..models.sam_weights import Origin, find_sam
from ..models.weights import settled
from ..types import Batch, Remarks, Stage, Task, UserError
from .standing import Standing

LEAST = 128  # pixels: below, SAM's grid of 16-pixel tokens says little, and psi's pooling leaves one cell
SAM, STUDENT = 0, 1  # in the standing


@dataclass(frozen=True)
class Skd:
    """Settings of the part; a method's config names those that its users may change."""

    teacher: str  # see models.knowsam_teacher
    prompts: str = "tokens+dense"
    whole_windows: bool = False
    as_released: bool = False
    hard: bool = False  # distil SAM's argmax (SC-SAM's variant) instead of its logits
    temperature: float = 10.0  # released, losses.KDLoss(T=10)
    learning_rate: float = 1e-4  # released
    start: float = 0.15  # progress at which SAM starts to teach; published: 0, when it is random yet
    full: float = 0.4  # published: 0
    gated: bool = True  # published: no gate


class SamDistillation(nn.Module):
    """An adapted SAM, its prompts and its gate. Held by a method beside the student."""

    def __init__(self, settings: Skd, task: Task) -> None:
        super().__init__()
        self.settings = settings
        self.size = sam_size(task.size)
        self.teacher = knowsam_teacher(
            settings.teacher,
            self.size,
            task.classes,
            prompts=settings.prompts,
            whole_windows=settings.whole_windows,
            as_released=settings.as_released,
        )
        self.distil = hard_distillation if settings.hard else distillation_kl
        self.standing = Standing(2)

    def optimizer(self) -> Adam:
        """Adam for what trains: adapters and prompts; all of a SAM without weights."""
        return Adam([p for p in self.parameters() if p.requires_grad], lr=self.settings.learning_rate)

    def forward(self, image: Tensor, z: Tensor) -> Tensor:
        """SAM's logits z_s (B, C, H, W) for an image (B, 3, H, W) and the student's logits z, of which no gradient."""
        if image.shape[-2:] == self.size:
            return self.teacher(image, z)  # type: ignore[no-any-return]
        larger = F.interpolate(image, self.size, mode="bilinear")  # SAM's size is never the smaller one
        z_s = self.teacher(larger, z)
        return F.interpolate(z_s, image.shape[-2:], mode="bilinear")

    def terms(self, batch: Batch, z: Tensor, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """L_SAM + mu(t) KD into the logits z of one student; both and mu by name."""
        z_s = self(batch.image, z)
        self.standing.observe(batch, z_s, z)
        terms = {"sam": dice_cross_entropy(z_s, batch.mask, batch.labelled, batch.classes)}
        if ramp_up(progress, self.settings.start, self.settings.full) == 0:
            return terms["sam"], terms
        terms |= {"kd": self.kd(z, z_s, batch), "mu": torch.as_tensor(self.weight(progress))}
        return terms["sam"] + terms["mu"] * terms["kd"], terms

    def weight(self, progress: float) -> float | Tensor:
        """mu: the ramp, times 0 while the gate is shut."""
        s = self.settings
        ramp = ramp_up(progress, s.start, s.full)
        return ramp * self.ahead().float() if s.gated and ramp else ramp

    def ahead(self) -> Tensor:
        """Scalar bool: SAM's running Dice is at most .02 behind the student's."""
        return self.standing.may_teach(SAM, STUDENT)

    def kd(self, z: Tensor, z_s: Tensor, batch: Batch) -> Tensor:
        """Distillation into logits z (B, C, H, W); on labelled rows only where SAM is right."""
        known, taught = annotated_logits(z, batch.classes), annotated_logits(z_s.detach(), batch.classes)
        weight = None
        if self.settings.gated:
            wrong = (label_map(taught) != batch.mask) & batch.labelled[:, None, None]
            weight = (~wrong).float()
        return self.distil(known, taught, self.settings.temperature, weight)

    def about(self, log: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        """What the log says about SAM, for the report; its Dice is watched under the name `sam`."""
        entries = [entry for entry in log if "sam" in entry.get("watched", {})]
        if not entries:
            return
        origin = self.teacher.sam.origin
        yield about_weights(origin) if origin else "SAM began without weights."
        ahead = [entry["watched"]["sam"] - entry["validation"]["dice"] for entry in entries]
        last = entries[-1]
        yield (
            f"SAM was ahead of the student at {sum(gap > 0 for gap in ahead)} of {len(ahead)} validations; at the last "
            f"one its Dice was {last['watched']['sam']:.3f} and the student's {last['validation']['dice']:.3f}."
        )
        if max(ahead) <= 0:
            yield "SAM never knew more than the student: there was nothing to teach, and the gain is the subnets' own."
        if self.settings.gated:
            sam, student = self.standing.running.tolist()
            state = "open" if self.ahead() else "shut"  # of the best weights, which are in place by now
            yield (
                f"The gate was {state} where the weights were best: on labelled training images SAM's running Dice was "
                f"{sam:.3f}, the student's {student:.3f}; a SAM more than .02 behind does not teach. It taught in "
                f"{share(log):.0%} of the updates in which it could have."
            )


def about_weights(origin: Origin) -> str:
    """Whose weights a teacher had, and how it sees images."""
    seen = "which sees images in [0, 1], as MedSAM was trained" if origin.plain else "which sees images as SAM does"
    return f"SAM's weights: {origin.file}, sha256 {origin.sha256}, {seen}."


def share(log: Sequence[Mapping[str, Any]]) -> float:
    """Part of the logged updates with a distillation term in which its weight was not 0."""
    weights = [float(entry["terms"]["mu"]) > 0 for entry in log if "mu" in entry.get("terms", {})]
    return sum(weights) / max(1, len(weights))


def require_sam(teacher: str, option: str) -> str:
    """UserError where the teacher is neither without weights nor to be had: before a run exists that needs it.

    A path comes back absolute. `option` is what names the teacher.
    """
    if teacher not in ("none", *WITHOUT_WEIGHTS):
        try:
            find_sam(teacher)
        except UserError as error:
            raise UserError(f"{error}; or train without its weights: {option} tiny") from None
    return settled(teacher, "none", *WITHOUT_WEIGHTS)


def part(teacher: str, task: Task) -> SamDistillation | None:
    """The part with its default settings, for methods that only name a teacher; None for `none`."""
    return None if teacher == "none" else SamDistillation(Skd(teacher), task)


def beside(sam: SamDistillation | None, stage: Stage) -> Stage:
    """A stage of a method that holds the part: its optimizer, its gate once per update, its Dice at validations."""
    if sam is None:
        return stage

    def after_update(progress: float) -> None:
        stage.after_update(progress)
        sam.standing.update()

    def watched(image: Tensor, modality: Tensor) -> dict[str, Tensor]:
        z = cast(nn.Module, stage.scored)(image, modality)
        return {"student": z, "sam": sam(image, z)}

    optimizers = [*stage.optimizers, sam.optimizer()]
    return replace(stage, optimizers=optimizers, after_update=after_update, watched=watched)


def heard(sam: SamDistillation | None, log: Sequence[Mapping[str, Any]]) -> Remarks:
    """What a method that holds the part says in its report."""
    return Remarks(tuple(sam.about(log)) if sam else (), ())


def sam_size(size: tuple[int, int]) -> tuple[int, int]:
    """The training size, rounded up to SAM's tokens; at least 128."""
    height, width = (max(LEAST, -(-side // 16) * 16) for side in size)
    return height, width


def hard_distillation(student: Tensor, teacher: Tensor, temperature: float, weight: Tensor | None = None) -> Tensor:
    """S against the teacher's argmax; the temperature is not used."""
    everything: Any = torch.ones(student.shape[:2], dtype=torch.bool, device=student.device)
    return dice_cross_entropy(student, label_map(teacher), everything[:, 0], everything, weight=weight)
