"""ESP-MedSAM (Xu et al., TCSVT 2025, arXiv 2407.14153; later De-LightSAM): one light student for many modalities.

A medical teacher, SAM with tokens and adapters per modality, learns from the labels (S0). The student's trunk learns
SAM's embeddings (S1), one bank of controllers then the teacher's (S2); patch prompt and decoder, which start as the
teacher's, are tuned on the student's embeddings (S3). The authors released S2 alone, and it does not run; what is
inferred is marked in docs/methods/esp_medsam.md. Beyond the paper: one student for all modalities in one run, a
classifier that routes images whose modality is not told, several classes, one more modality later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Adam

from ..losses.dice_focal import PATCH, dice_focal, embedding_distance, patch_cross_entropy
from ..losses.schedules import exponential
from ..models.esp_medsam import EspMedSam
from ..models.esp_medsam_official import load_mobile_sam
from ..models.medical_sam import MedicalSam, medical_sam
from ..models.modality_heads import ModalityHeads
from ..models.padding import pad_to_multiple
from ..models.sam import WITHOUT_WEIGHTS
from ..models.students import build_student, student_spec
from ..models.tiny_vit import STRIDE
from ..models.weights import read_weights, settled
from ..transforms.presets import evaluation, weak
from ..types import Batch, Known, Remarks, Stage, StepOutput, Task, UserError
from .modality_transfer import Addition, known_before, with_addition
from .sam_distillation import about_weights, require_sam
from .teacher_embeddings import TeacherEmbeddings

ROUTING_RATE = 10  # of the classifier, a linear map, to the rate of the rest; benchmarks/routing_rate.py


@dataclass(frozen=True)
class ESPMedSAMConfig:
    """Settings of ESP-MedSAM.

    Attributes:
        sam: SAM that teaches: a hub name (facebook/sam-vit-base), a folder of one, an official .pth; tiny or small
            without weights.
        init: MobileSAM's mobile_sam.pt, in which the student's trunk starts; none: random. A folder with a student (or
            of a run): that student gets one more modality, and only what is new trains, in one stage (see `extend`).
        medical: S0, the medical teacher. Without it S2 distils SAM's own embeddings and S3 starts at random heads.
        common: S1, the trunk from SAM's embeddings; images without a label too.
        domain: S2, the controllers from the teacher's embeddings; images without a label too.
        controllers: Whether each modality has its controllers in the student; without them there is no S2.
        patch_prompt: The map that makes the dense prompt: hard or soft; none: no patch prompt and no loss for it.
        skips: Whether the decoder also sees the trunk's features at a quarter and an eighth of the size (SAM 2's way):
            what is small against the trunk's stride of 16 px, nuclei or vessels, needs them.
        cached: S1 and S2 see the images as they are, not augmented, so that the teacher's embeddings are computed once
            and then read from disk (in the run's folder, in half precision, until the stage is over).
        joint_queries: As released: all modalities' queries attend to each other and share one MLP.
        tuned: What S3 trains beside the classifier: the heads, or the whole student.
        medical_iterations: Updates in S0.
        common_iterations: Updates in S1.
        domain_iterations: Updates in S2.
        head_iterations: Updates in S3, or in the one stage of a modality that is added.
        batch_size: Images per batch: labelled ones in S0 and S3, any in S1 and S2.
        learning_rate: Learning rate of Adam at the start of each stage.
        final_factor: Share of it that is left at the end; it decays exponentially.
        patch_weight: Weight of the patch prompt's loss.
    """

    sam: str = "facebook/sam-vit-base"
    init: str = "none"  # released: MobileSAM's weights instead of S1
    medical: bool = True
    common: bool = True
    domain: bool = True
    controllers: bool = True
    patch_prompt: Literal["hard", "soft", "none"] = "hard"  # released
    skips: bool = True  # published: none
    joint_queries: bool = False  # released: true
    cached: bool = False  # released, S2: images are not augmented
    tuned: Literal["head", "student"] = "head"
    medical_iterations: int = 3000  # published: 216,450 (200 epochs of 4,329 images), said of S2
    common_iterations: int = 3000  # published: 216,450
    domain_iterations: int = 3000  # published: 216,450
    head_iterations: int = 3000  # published: 216,450
    batch_size: int = 4  # released, S2
    learning_rate: float = 5e-4  # released, S2; the other stages' are not known
    final_factor: float = 0.0176  # released, S2: .98 per epoch, 200 epochs
    patch_weight: float = 0.5  # UN-SAM, the authors' sister paper


class ESPMedSAM(nn.Module):
    """A student and its medical teacher."""

    Config = ESPMedSAMConfig

    @staticmethod
    def require(config: ESPMedSAMConfig) -> ESPMedSAMConfig:
        """UserError where SAM's or MobileSAM's weights are not to be had."""
        init, taught = settled(config.init, "none"), config.medical or config.common or config.domain
        if init != "none" and not Path(init).exists():
            raise UserError(
                f"--esp_medsam.init {config.init}: no such file; give MobileSAM's mobile_sam.pt, a student, or none"
            )
        if Path(init).is_dir():
            taught = False
        return replace(config, init=init, sam=require_sam(config.sam, "--esp_medsam.sam") if taught else config.sam)

    def __init__(self, config: ESPMedSAMConfig, task: Task) -> None:
        super().__init__()
        self.config = c = config
        self.teacher: MedicalSam | None = None
        self.addition: Addition | None = None
        if Path(c.init).is_dir():
            self.student, self.addition = with_addition(c.init, task)
            its_own = student_spec(self.student).arguments
            self.config = replace(c, patch_prompt=its_own.get("patch_prompt", "hard"))
            return
        check(config)
        joint = list(range(len(task.modalities))) if c.joint_queries else None
        own = [list(classes) for classes in task.modality_classes] or None
        self.student = cast(
            EspMedSam,
            build_student(
                "esp_medsam",
                classes=task.classes,
                modalities=list(task.modalities),
                modality_classes=own,
                controllers=c.controllers,
                patch_prompt=c.patch_prompt,
                skips=c.skips,
                joint_channels=joint,
            ),
        )
        if c.init != "none":
            load_mobile_sam(self.student, read_weights(Path(c.init)))
        if c.medical or c.common or c.domain:
            heads = ModalityHeads(task.classes, task.modalities, own, patch_prompt=c.patch_prompt, joint_channels=joint)
            self.teacher = medical_sam(c.sam, task.size, heads)
            self.embeddings = TeacherEmbeddings(self.teacher, task.store, task.size)

    @staticmethod
    def known(config: ESPMedSAMConfig) -> Known | None:
        """Of the student that gets one more modality."""
        return known_before(config.init)

    def stages(self) -> list[Stage]:
        """S0 to S3, without those that are left out; of a modality that is added one stage."""
        c, student = self.config, self.student
        labelled, all_rows = (c.batch_size, 0), (0, c.batch_size)
        if self.addition:
            extend = self.stage(
                "extend", self.add, self.addition.parameters, c.head_iterations, labelled, scored=student
            )
            return [replace(extend, watched=self.watched)]
        plan = []
        if c.medical and self.teacher:
            own = self.teacher.own_parameters()
            plan.append(self.stage("medical", self.teach, own, c.medical_iterations, labelled, scored=self.teacher))
        if c.common:
            trunk = list(student.trunk.parameters())
            common = self.stage("common", self.share, trunk, c.common_iterations, all_rows)
            plan.append(self.unchanging(common) if c.cached else common)
        if c.domain and c.controllers:
            bank = list(student.controllers.parameters())
            domain = self.stage("domain", self.specialise, bank, c.domain_iterations, all_rows)
            plan.append(self.unchanging(domain) if c.cached else domain)
        tuned = list(student.parameters()) if c.tuned == "student" else self.head_parameters()
        head = self.stage("head", self.tune, tuned, c.head_iterations, labelled, scored=student)
        return [*plan, replace(head, prepare=self.take_heads, watched=self.watched)]

    def stage(
        self,
        name: str,
        step: Callable[[Batch, float], StepOutput],
        parameters: list[nn.Parameter],
        iterations: int,
        batch: tuple[int, int],
        *,
        scored: nn.Module | None = None,  # S1 and S2 have no masks to score: their last weights stay
    ) -> Stage:
        """All stages train alike: Adam, decaying exponentially; a classifier among the parameters at its own rate."""
        rate, classifier = self.config.learning_rate, self.student.classifier
        own = {id(p) for p in classifier.parameters()} if classifier else set()
        groups = [{"params": [p for p in parameters if id(p) not in own]}]
        if routing := [p for p in parameters if id(p) in own]:
            groups.append({"params": routing, "lr": ROUTING_RATE * rate})  # type: ignore[dict-item]
        return Stage(
            name=name,
            step=step,
            optimizers=[Adam(groups, lr=rate)],
            iterations=iterations,
            batch=batch,
            augment=weak,
            scored=scored,
            schedule=partial(exponential, final=self.config.final_factor),
        )

    def unchanging(self, stage: Stage) -> Stage:
        """The stage on images as they are, its teacher's embeddings kept on disk."""
        return replace(stage, augment=evaluation, prepare=partial(self.embeddings.open, stage.name))

    def head_parameters(self) -> list[nn.Parameter]:
        """Patch prompt, decoder with its skips, queries and the classifier of the student."""
        student = self.student
        parts = [student.heads, student.readouts, student.skips, student.classifier]
        return [parameter for part in parts if part is not None for parameter in part.parameters()]

    def teach(self, batch: Batch, progress: float) -> StepOutput:
        """S0: L_seg + 0.5 L_patch of the teacher."""
        out = cast(MedicalSam, self.teacher).run(batch.image, batch.modality)
        terms = self.segmentation(out.logits, out.patch, batch)
        return StepOutput(self.weighted(terms), terms)

    def share(self, batch: Batch, progress: float) -> StepOutput:
        """S1: L_KD of the trunk without controllers against SAM without its own."""
        terms = {"common": self.distance(batch, None, None)}
        return StepOutput(terms["common"], terms)

    def specialise(self, batch: Batch, progress: float) -> StepOutput:
        """S2: L_KD of trunk and controllers against the medical teacher, or against SAM where there is none."""
        terms = {"domain": self.distance(batch, batch.modality, batch.modality if self.config.medical else None)}
        return StepOutput(terms["domain"], terms)

    def tune(self, batch: Batch, progress: float) -> StepOutput:
        """S3: L_seg + 0.5 L_patch of the student; the cross-entropy of its classifier, which reaches nothing else.

        It is taken over the last images of every modality alike, these included: rare ones are not drowned.
        """
        out = self.student.run(batch.image, batch.modality)
        terms = self.segmentation(out.logits, out.patch, batch)
        self.student.memory.remember(out.features, batch.modality)
        if self.student.classifier is not None:
            terms["route"] = self.student.memory.cross_entropy(self.student.classifier, len(self.student.modalities))
        return StepOutput(self.weighted(terms), terms)

    def add(self, batch: Batch, progress: float) -> StepOutput:
        """As S3, for what is new; the classifier also on what it remembers of the other modalities, if of all."""
        out = self.student.run(batch.image, batch.modality)
        terms = self.segmentation(out.logits, out.patch, batch)
        self.student.memory.remember(out.features, batch.modality)
        if self.student.classifier is not None and not cast(Addition, self.addition).forgotten:
            terms["route"] = F.cross_entropy(out.route.float(), batch.modality)
            old = len(self.student.modalities) - 1
            terms["keep"] = self.student.memory.cross_entropy(self.student.classifier, old)
        return StepOutput(self.weighted(terms), terms)

    def segmentation(self, logits: Tensor, patch: Tensor, batch: Batch) -> dict[str, Tensor]:
        """L_seg and, unless there is no patch prompt, L_patch."""
        target = batch.mask, batch.labelled, batch.classes
        terms = {"seg": dice_focal(logits, *target)}
        if self.config.patch_prompt != "none":
            terms["patch"] = patch_cross_entropy(patch, *target)
        return terms

    def weighted(self, terms: dict[str, Tensor]) -> Tensor:
        """The sum, the patch prompt's at its weight."""
        factors = {"patch": self.config.patch_weight}
        return torch.stack([factors.get(name, 1.0) * term for name, term in terms.items()]).sum()

    def distance(self, batch: Batch, student: Tensor | None, teacher: Tensor | None) -> Tensor:
        """L_KD between the embeddings with these modalities' controllers; both see the same padded images."""
        image = pad_to_multiple(batch.image, STRIDE)
        return embedding_distance(self.student.encode(image, student), self.embeddings(image, teacher, batch.index))

    def take_heads(self) -> None:
        """The student's heads start as the teacher's; a resumed stage loads its own after this."""
        if self.teacher:
            self.embeddings.close()
        if self.teacher is None or not self.config.medical:
            return
        taken = self.teacher.decoder.state_dict()
        _, unknown = self.student.load_state_dict(taken, strict=False)  # other shapes raise
        if unknown:
            raise RuntimeError(f"the student has no place for the teacher's {', '.join(unknown)}")

    def watched(self, image: Tensor, modality: Tensor) -> dict[str, Tensor]:
        """What the teacher knows, and what the student does where it has to find the modality itself."""
        seen = {}
        if self.teacher and self.config.medical:
            seen["teacher"] = self.teacher(image, modality)
        out = self.student.run(image, modality)
        seen["student"] = out.logits
        if self.student.classifier is not None:
            lost = out.route.argmax(1) != modality  # the others' second pass would be the same
            seen["routed"] = out.logits.clone()
            if lost.any():
                seen["routed"][lost] = self.student(image[lost])
        return seen

    def remarks(self, log: Sequence[Mapping[str, Any]], batch: Batch) -> Remarks:
        """Teacher, student and routed student compared; the patch prompts on images."""
        if self.config.patch_prompt == "none":
            return Remarks(tuple(self.sentences(log)), ())
        patch = self.student.run(batch.image, batch.modality).patch.sigmoid()
        own = self.student.class_of[batch.modality][:, :, None, None]  # the rest prompts nothing, and is not trained
        patch = patch.take_along_dim(own, 1).amax(1)
        caption = "A training image's patch prompt: where the decoder is told to look"
        pictures = [(caption, drawn(*one)) for one in zip(batch.image, patch, strict=True)]
        return Remarks(tuple(self.sentences(log)), tuple(pictures))

    def sentences(self, log: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        """What the log says about the teacher and the classifier."""
        origin = self.teacher.sam.origin if self.teacher else None
        if self.addition:
            old = ", ".join(filter(None, self.addition.before)) or "what it knew"
            yield f"{self.student.modalities[-1]} was added to {old}, whose outputs are the same bits as before."
            if self.addition.forgotten:
                lost = ", ".join(self.addition.forgotten)
                yield (
                    f"The student remembers no features of {lost}, so its classifier could not learn to find the new "
                    "modality, and finds it nowhere; tell it with --modality."
                )
        if self.teacher:
            alone = "SAM began without weights. Where measured, such a teacher brought nothing over labels alone."
            yield about_weights(origin) if origin else alone
        entries = [entry for entry in log if entry.get("stage") in ("head", "extend") and entry.get("watched")]
        if entries:
            last = entries[-1]
            others = {"teacher": "the medical teacher's", "routed": "the student's where it finds the modality itself"}
            named = [f"{others[name]} {dice:.3f}" for name, dice in last["watched"].items()]
            yield f"At the last validation the student's Dice was {last['validation']['dice']:.3f}, {', '.join(named)}."


def drawn(image: Tensor, patch: Tensor) -> NDArray[np.uint8]:
    """The image (3, H, W) with the patches (h, w) below one half darkened, (H, W, 3)."""
    height, width = image.shape[1:]
    shown = (patch >= 0.5).repeat_interleave(PATCH, 0).repeat_interleave(PATCH, 1)[:height, :width]
    lit = image.clamp(0, 1) * torch.where(shown, 1.0, 0.35)
    return cast(NDArray[np.uint8], (255 * lit).round().byte().permute(1, 2, 0).cpu().numpy())


def check(config: ESPMedSAMConfig) -> None:
    """Stages that would leave or copy random weights."""
    if config.sam in WITHOUT_WEIGHTS and not config.medical and (config.common or config.domain):
        raise UserError(
            f"--esp_medsam.sam {config.sam} has random weights, which teach nothing without S0; "
            "give SAM's weights or leave --esp_medsam.medical true"
        )
    if not config.common and config.init == "none" and config.tuned == "head":
        raise UserError(
            "--esp_medsam.common false leaves the trunk random; "
            "give --esp_medsam.init mobile_sam.pt or --esp_medsam.tuned student"
        )
