"""KnowSAM (Huang et al., TMI 2025, arXiv 2412.13742): two subnets and an adapted SAM that teach one another.

A U-Net and a V-Net co-teach each other (MC); an aggregation network fuses their logits (HAM); SAM, prompted by the
fusion and by prompts made from its own embedding (LPS), is distilled into both (SKD); uncertain regions are mixed
between labelled and unlabelled images (UGDA). SAM is not part of the student. Default: the paper's method with sound
definitions; `recipes/knowsam_published.yaml` sets every field to the paper's value; `as_released` computes what the
public code does. docs/methods/knowsam.md lists the differences, one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from ..losses.co_training import (
    cross_consistency,
    cross_pseudo_labels,
    entropy,
    released_consistency,
    released_entropy,
    released_inert_consistency,
)
from ..losses.consistency import ramp_up
from ..losses.distillation import released_pair_kl
from ..losses.schedules import warm_up_linear
from ..losses.segmentation import annotated_logits, dice_cross_entropy, label_map
from ..models.aggregation import Mean, Trio
from ..models.statistics import normalised_apart, untracked_statistics
from ..models.students import StudentSpec, build_student
from ..transforms.presets import released_weak_strong, weak_strong
from ..types import Batch, Clip, Remarks, Stage, StepOutput, Task, UserError
from .sam_distillation import SamDistillation, Skd, require_sam
from .standing import Standing
from .ugda import GRID, Mixed, about_mixing, drawn, mix, uncertain_cells

UNET, VNET = 0, 1  # in the standing


@dataclass(frozen=True)
class KnowSAMConfig:
    """Settings of KnowSAM.

    Attributes:
        student: What is scored and shipped: the fused trio, the mean of the two subnets, or one subnet alone.
        teacher: SAM: a hub name (facebook/sam-vit-base, wanglab/medsam-vit-base), a folder of one, an official .pth;
            tiny or small without weights; none: no SAM (an ablation).
        iterations: Updates in all.
        labelled_batch: Labelled images per batch.
        other_batch: Other images per batch.
        optimizer: Of the subnets: adamw or sgd (momentum .9).
        learning_rate: Of the subnets, at its peak; it decays linearly to 0.
        sam_learning_rate: Of SAM's adapters and prompts (Adam).
        weight_decay: Of the subnets.
        warm_up: Updates over which the learning rates rise linearly from 0.
        clip_norm: Gradients are clipped to this norm, of the subnets and of SAM each; 0: not at all.
        unsupervised_from: Progress at which distillation and entropy start to act.
        unsupervised_full: Progress at which they have their whole weight.
        consistency_from: Progress at which the consistency of the subnets starts.
        consistency_full: Progress at which it has its whole weight.
        mix_from: Progress from which UGDA mixes.
        mix_from_dice: UGDA also waits for this validation Dice of the student, the best so far; for very few masks.
            Not where nothing is validated.
        mix_cells: Cells of the 4 x 4 grid that are overwritten, up to 16; 0: no UGDA (an ablation).
        mix_where: Cells of the highest or the lowest entropy.
        mix_confidence: SAM's labels count in mixed images where its probability reaches this.
        mix_labels: Labels of unlabelled pixels: SAM's, or the student's while SAM is behind it.
        mix_tracks: Whether batch norms remember mixed images.
        apart: Whether labelled and other images are normalised apart; batch norms then remember the labelled ones.
        temperature: Of the distillation.
        kd: Distil SAM's logits (soft), its argmax (hard), or nothing (none).
        entropy_weight: Weight of the entropy.
        agreement: How the subnets co-teach: consistency, pseudo-labels (cps), or none.
        prompts: What SAM is told beside the image: the fusion's mask, two tokens per class made of the embedding
            (tokens), and a map (tokens+dense); or only which class is meant (none, an ablation).
        gate: Whether SAM teaches only where and while it knows enough, and a subnet the other only while it does.
        aggregation: Corrects the mean of the subnets, replaces it, or is left out (mean; an ablation).
        normalised: Whether the V-Net has batch norm.
        window: SAM's windows, or the whole grid as one (another function, faster).
        as_released: Compute what the public code does, faults included; not with gate, kd: hard or agreement: cps.
    """

    student: Literal["fused", "mean", "unet", "vnet"] = "fused"
    teacher: str = "facebook/sam-vit-base"  # the paper's ViT-B
    iterations: int = 3000  # published: 50,000
    labelled_batch: int = 12  # released
    other_batch: int = 12  # released
    optimizer: Literal["adamw", "sgd"] = "adamw"  # published: sgd
    learning_rate: float = 1e-3  # published: 0.01 (sgd)
    sam_learning_rate: float = 1e-4  # released
    weight_decay: float = 1e-2  # published: 1e-4 (sgd)
    warm_up: int = 100  # published: 0
    clip_norm: float = 5.0  # published: 0
    unsupervised_from: float = 0.15  # published: 0
    unsupervised_full: float = 0.4  # published: 0
    consistency_from: float = 0.15  # published: 0
    consistency_full: float = 0.4  # published: 1
    mix_from: float = 0.24  # 12k of 50k iterations
    mix_from_dice: float = 0.0
    mix_cells: int = 5  # released
    mix_where: Literal["highest", "lowest"] = "highest"  # released: lowest
    mix_confidence: float = 0.8  # published: 0
    mix_labels: Literal["better", "sam"] = "better"  # published: sam
    mix_tracks: bool = False  # published: true
    apart: bool = True  # published: false
    temperature: float = 10.0  # released, losses.KDLoss(T=10)
    kd: Literal["soft", "hard", "none"] = "soft"
    entropy_weight: float = 0.9  # released
    agreement: Literal["consistency", "cps", "none"] = "consistency"
    prompts: Literal["none", "mask", "tokens", "tokens+dense"] = "tokens+dense"  # released: tokens
    gate: bool = True  # published: false
    aggregation: Literal["corrects", "replaces", "mean"] = "corrects"  # published: replaces
    normalised: bool = True  # published: false
    window: Literal["sam", "whole"] = "sam"
    as_released: bool = False


Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


class Rules(NamedTuple):
    """The functions that the public code has otherwise."""

    unet_agrees: Loss
    vnet_agrees: Loss
    entropy: Callable[[Tensor, Tensor], Tensor]


AGREEMENT: dict[str, Loss] = {"consistency": cross_consistency, "cps": cross_pseudo_labels, "none": cross_consistency}
RELEASED = Rules(released_consistency, released_inert_consistency, released_entropy)


class KnowSAM(nn.Module):
    """The trio and its SAM."""

    best_dice: Tensor
    Config = KnowSAMConfig

    @staticmethod
    def require(config: KnowSAMConfig) -> KnowSAMConfig:
        """UserError for settings that the method cannot follow, or where SAM's weights are not to be had."""
        check(config)
        return replace(config, teacher=require_sam(config.teacher, "--knowsam.teacher"))

    def __init__(self, config: KnowSAMConfig, task: Task) -> None:
        super().__init__()
        self.config = c = config
        self.trio, self.choices = build_trio(c.aggregation, task.classes, c.normalised)
        agrees = AGREEMENT[c.agreement]
        self.rules = RELEASED if c.as_released else Rules(agrees, agrees, entropy)
        self.standing = Standing(2)
        self.register_buffer("best_dice", torch.tensor(-1.0))  # of validation; none yet
        self.validated = task.validated
        self.mixes = bool(c.mix_cells and c.other_batch and task.labelled and task.others)
        self.sam = None if c.teacher == "none" else SamDistillation(skd(c), task)
        if self.sam and c.as_released:
            self.sam.distil = released_pair_kl

    @property
    def student(self) -> nn.Module:
        """What ships."""
        return self.choices[self.config.student]

    @property
    def students(self) -> dict[str, nn.Module]:
        """What could ship instead: the same weights."""
        return {name: network for name, network in self.choices.items() if name != self.config.student}

    def stages(self) -> list[Stage]:
        """One stage, two optimizers: the trio's and SAM's."""
        c = self.config
        trio = list(self.trio.parameters())
        optimizers: list[Optimizer] = [
            SGD(trio, lr=c.learning_rate, momentum=0.9, weight_decay=c.weight_decay)
            if c.optimizer == "sgd"
            else AdamW(trio, lr=c.learning_rate, weight_decay=c.weight_decay)
        ]
        if self.sam:
            optimizers.append(self.sam.optimizer())
        return [
            Stage(
                name="knowsam",
                step=self.step,
                optimizers=optimizers,
                iterations=c.iterations,
                batch=(c.labelled_batch, c.other_batch),
                augment=released_weak_strong if c.as_released else weak_strong,
                scored=self.student,
                measured=self.trio,  # all students are shipped and compared
                schedule=partial(warm_up_linear, warm_up=min(0.5, c.warm_up / c.iterations)),
                clip=Clip(norm=c.clip_norm),
                after_update=self.after_update,
                after_validation=self.after_validation,
                watched=self.watched,
            )
        ]

    def step(self, batch: Batch, progress: float) -> StepOutput:
        """z_a U-Net, z_b V-Net, z_f fusion, z_s SAM; S on labelled rows, the rest on all; sums as in the paper."""
        c, rules = self.config, self.rules
        eta = ramp_up(progress, c.unsupervised_from, c.unsupervised_full)
        lam = ramp_up(progress, c.consistency_from, c.consistency_full) if c.agreement != "none" else 0.0
        z_a, z_b, z_f = self.branches(batch)
        self.standing.observe(batch, z_a, z_b)
        terms = {"unet": self.sup(z_a, batch), "vnet": self.sup(z_b, batch), "fusion": self.sup(z_f, batch)}
        loss = (terms["unet"] + terms["vnet"]) / 2 + terms["fusion"]
        z_s: Tensor | None = None
        mu: float | Tensor = 0.0
        if self.sam:
            z_s, mu = self.sam(batch.image, z_f), self.sam.weight(progress)
            self.sam.standing.observe(batch, z_s, z_f)
            terms["sam"] = self.sup(z_s, batch)
            loss = loss + terms["sam"]
        if self.sam and z_s is not None and eta and c.kd != "none":
            terms["kd"] = (self.sam.kd(z_a, z_s, batch) + self.sam.kd(z_b, z_s, batch)) / 2
            terms["mu"] = torch.as_tensor(mu)
            loss = loss + mu * terms["kd"]
        if eta and c.entropy_weight:
            terms["entropy"] = (rules.entropy(z_a, batch.classes) + rules.entropy(z_b, batch.classes)) / 2
            loss = loss + c.entropy_weight * eta * terms["entropy"]
        if lam:
            terms["consistency"] = self.agreement(z_a, z_b, batch.classes)
            loss = loss + lam * terms["consistency"]
        if self.mixes and progress >= c.mix_from and not self.waits:
            mixed = self.mixed(batch, z_f.detach(), self.pseudo(z_f, z_s))
            loss, terms = self.mixed_terms(mixed, batch, loss, terms, eta, lam)
        return StepOutput(loss, terms)

    @property
    def waits(self) -> bool:
        """Whether UGDA waits for a better student yet. The buffer is read only where it may: that waits for a GPU."""
        needed = self.config.mix_from_dice
        return bool(needed) and self.validated and float(self.best_dice) < needed

    def branches(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The trio's logits; strongly augmented images must not normalise the labelled ones: they pass apart."""
        if not self.config.apart:
            return self.trio.branches(batch.image)
        z_a, z_b, z_f = normalised_apart(
            self.trio, lambda rows: self.trio.branches(batch.image[rows]), batch.labelled, sum(batch.known)
        )
        return z_a, z_b, z_f

    def after_update(self, progress: float) -> None:
        """Who knows how much, once per update."""
        self.standing.update()
        if self.sam:
            self.sam.standing.update()

    def after_validation(self, dice: float) -> None:
        """How good the student's pseudo-labels have been on images that it does not learn from."""
        self.best_dice.fill_(max(dice, float(self.best_dice)))

    def mixed_terms(
        self, mixed: Mixed, batch: Batch, loss: Tensor, terms: dict[str, Tensor], eta: float, lam: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The same on mixed images, and z_f's argmax as a label for unlabelled hosts."""
        c, rules = self.config, self.rules
        everyone = torch.ones_like(batch.labelled)

        def sup(z: Tensor) -> Tensor:
            return dice_cross_entropy(z, mixed.label, everyone, mixed.classes, weight=mixed.weight)

        def pseudo(z: Tensor) -> Tensor:
            return dice_cross_entropy(z, label, ~batch.labelled, mixed.classes)

        with nullcontext() if c.mix_tracks else untracked_statistics(self.trio):
            z_a, z_b, z_f = self.trio.branches(mixed.image)
        label = label_map(annotated_logits(z_f.detach(), mixed.classes))
        terms |= {"mix_sup": (sup(z_a) + sup(z_b)) / 2, "mix_fusion": sup(z_f)}
        loss = loss + terms["mix_sup"] + terms["mix_fusion"]
        if eta and c.entropy_weight:
            terms["mix_entropy"] = (rules.entropy(z_a, mixed.classes) + rules.entropy(z_b, mixed.classes)) / 2
            loss = loss + c.entropy_weight * eta * terms["mix_entropy"]
        if lam:
            terms["mix_consistency"] = self.agreement(z_a, z_b, mixed.classes)
            terms["mix_pseudo"] = (pseudo(z_a) + pseudo(z_b)) / 2
            loss = loss + lam * (terms["mix_consistency"] + terms["mix_pseudo"])
        return loss, terms

    def sup(self, z: Tensor, batch: Batch) -> Tensor:
        """S on labelled rows."""
        return dice_cross_entropy(z, batch.mask, batch.labelled, batch.classes)

    def agreement(self, z_a: Tensor, z_b: Tensor, classes: Tensor) -> Tensor:
        """Each subnet towards the other, which has no gradient; not towards one that knows less."""
        to_unet, to_vnet = self.rules.unet_agrees(z_a, z_b, classes), self.rules.vnet_agrees(z_b, z_a, classes)
        if self.config.gate:
            to_unet = to_unet * self.standing.may_teach(VNET, UNET)
            to_vnet = to_vnet * self.standing.may_teach(UNET, VNET)
        return (to_unet + to_vnet) / 2

    def pseudo(self, z_f: Tensor, z_s: Tensor | None) -> Tensor:
        """Logits whose argmax labels unlabelled pixels: SAM's; the student's while SAM is behind, or not there."""
        if self.sam is None or z_s is None:
            return z_f.detach()
        if self.config.mix_labels == "sam":
            return z_s.detach()
        return torch.where(self.sam.ahead(), z_s.detach(), z_f.detach())

    def mixed(self, batch: Batch, z_f: Tensor, source: Tensor) -> Mixed:
        """UGDA: each row's uncertain cells are overwritten by its partner's."""
        return mix(batch, self.cells(z_f), source, self.config.mix_confidence)

    def cells(self, z_f: Tensor) -> Tensor:
        """(B, H, W) bool: what UGDA overwrites where the fusion says z_f."""
        c = self.config
        return uncertain_cells(z_f, c.mix_cells, lowest=c.mix_where == "lowest" or c.as_released)

    def watched(self, image: Tensor, modality: Tensor) -> dict[str, Tensor]:
        """Every network's logits, to see over the training who knows what."""
        z_a, z_b, z_f = self.trio.branches(image)
        seen = {"unet": z_a, "vnet": z_b, "mean": (z_a + z_b) / 2, "fused": z_f}
        if self.sam:
            seen["sam"] = self.sam(image, z_f)
        seen["student"] = seen.pop(self.config.student)
        return seen

    def remarks(self, log: Sequence[Mapping[str, Any]], batch: Batch) -> Remarks:
        """Whether SAM had anything to teach, and which cells UGDA overwrites, drawn on images."""
        self.eval()
        with torch.no_grad():
            cells = self.cells(self.trio(batch.image))
        caption = "The cells of a training image that UGDA overwrites with another image's"
        pictures = [(caption, drawn(*one)) for one in zip(batch.image, cells, strict=True)]
        mixing = about_mixing(log, float(self.best_dice), self.config.mix_from_dice) if self.mixes else ()
        words = (*(self.sam.about(log) if self.sam else ()), *mixing)
        return Remarks(words, tuple(pictures) if self.config.mix_cells else ())


def build_trio(aggregation: str, classes: int, normalised: bool) -> tuple[Trio, dict[str, nn.Module]]:
    """The trio, and the students that can be made of it: one set of weights under four names."""
    given = {"classes": classes, "normalised": normalised}
    if aggregation == "mean":
        trio = cast(Trio, build_student("knowsam_mean", **given))
    else:
        trio = cast(Trio, build_student("knowsam_trio", **given, corrects=aggregation == "corrects"))
    mean = Trio(trio.unet, trio.vnet, Mean())
    specs = {"unet": StudentSpec("unet", {"classes": classes}), "vnet": StudentSpec("vnet", given)}
    trio.unet.spec, trio.vnet.spec = specs["unet"], specs["vnet"]  # type: ignore[assignment]
    mean.spec = StudentSpec("knowsam_mean", given)  # type: ignore[assignment]
    return trio, {"fused": trio, "mean": mean, "unet": trio.unet, "vnet": trio.vnet}


def skd(c: KnowSAMConfig) -> Skd:
    """The part of the settings that is SAM's."""
    return Skd(
        teacher=c.teacher,
        prompts=c.prompts,
        whole_windows=c.window == "whole",
        as_released=c.as_released,
        hard=c.kd == "hard",
        temperature=c.temperature,
        learning_rate=c.sam_learning_rate,
        start=c.unsupervised_from,
        full=c.unsupervised_full,
        gated=c.gate,
    )


def check(c: KnowSAMConfig) -> None:
    """Settings that the grid does not have, or that the released code's losses would override in silence."""
    if not 0 <= c.mix_cells <= GRID**2:
        raise UserError(f"--knowsam.mix_cells {c.mix_cells}: the grid has {GRID**2} cells; give 0 to {GRID**2}")
    for name, value in (("kd", "hard"), ("agreement", "cps"), ("gate", True)):
        if c.as_released and getattr(c, name) == value:
            said = str(value).lower()
            raise UserError(
                f"--knowsam.{name} {said}: --knowsam.as_released true has the released loss instead; leave one out, or "
                "take recipes/knowsam_as_released.yaml"
            )
