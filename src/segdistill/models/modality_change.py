"""An ESP-MedSAM student with one modality alone, or with one more: the weights that stay are the same bits.

A class that no other modality has may come with the new one. The classifier's logits of the others stay too, so an
image is routed as before or to the new modality, never from one of the others to another.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from ..types import UserError
from .esp_medsam import EspMedSam
from .students import build_student, student_spec

PER_MODALITY = re.compile(r"(controllers|readouts|classifier\.scores)\.(\d+)\.(.*)")
PER_HEAD = re.compile(r"heads\.(\d+)\.(.*)")
PER_CLASS = re.compile(r"heads\.\d+\.prompt\.(?:patch|prompt)\.(\d+)\..*")
PER_ROW = ("memory.features", "memory.seen")  # tensors with a row per modality
NOT_CHOSEN = -8.0  # the new modality's logit in the classifier before it is trained


def bind_modality(student: EspMedSam, name: str) -> EspMedSam:
    """The student of one modality: it takes no other, needs no classifier and drops the other controllers."""
    if name not in student.modalities:
        raise UserError(f"the student has no modality {name!r}; give one of {', '.join(student.modalities)}")
    index = student.modalities.index(name)
    arguments = dict(student_spec(student).arguments)
    if arguments.get("modality_classes"):
        arguments["modality_classes"] = [arguments["modality_classes"][index]]
    if channels := arguments.get("joint_channels"):
        arguments["joint_channels"] = [channels[index], max(channels)]  # all queries stay: they attend to each other
    bound = build_student("esp_medsam", **arguments | {"modalities": [name], "separate_heads": False})
    state: dict[str, Tensor] = {}
    for key, value in student.state_dict().items():
        if match := PER_MODALITY.fullmatch(key):
            if int(match[2]) == index and match[1] != "classifier.scores":
                state[f"{match[1]}.0.{match[3]}"] = value
        elif key in PER_ROW:
            state[key] = value[[index]]
        elif match := PER_HEAD.fullmatch(key):
            if int(match[1]) == index or len(student.heads) == 1:
                state[f"heads.0.{match[2]}"] = value
        else:
            state[key] = value
    if student.counts[index] != max(student.counts):  # joint queries are kept for the classes of this modality only
        state = {k: v[: student.counts[index]] if k.endswith("joint.query") else v for k, v in state.items()}
    bound.load_state_dict(state)
    return cast(EspMedSam, bound.train(student.training))


def add_modality(student: EspMedSam, name: str, classes: Sequence[int], total: int | None = None) -> EspMedSam:
    """The student with one more modality of these foreground classes; the outputs of the others stay as they are.

    New are a controller, queries, an MLP and a row of the classifier, a head where heads are separate, which starts as
    a copy of the first one, and the patch prompt of each class that is new: `new_parameters`.

    Args:
        student: Not changed.
        name: Of the new modality.
        classes: Its foreground classes.
        total: Number of all classes, background included; None: those of the student. New ones come last, and the
            others' logits of them say never.

    Raises:
        UserError: the modality or a class of it exists or does not, or the queries are joint, so that a new one would
            change the outputs of all.
    """
    arguments = dict(student_spec(student).arguments)
    before = arguments["classes"]
    if arguments.get("joint_channels"):
        raise UserError("joint queries attend to each other, so a new modality would change the others; train without")
    own = arguments.get("modality_classes") or [list(range(1, arguments["classes"]))] * len(student.modalities)
    changed = {
        "classes": total or before,
        "modalities": [*student.modalities, name],
        "modality_classes": [*own, list(classes)],
    }
    extended = cast(EspMedSam, build_student("esp_medsam", **arguments | changed))
    state = dict(student.state_dict())
    state |= {key: torch.cat([state[key], torch.zeros_like(state[key][:1])]) for key in PER_ROW}
    if len(student.heads) > 1:
        first = {k: v for k, v in state.items() if k.startswith("heads.0.")}
        state |= {k.replace("heads.0.", f"heads.{len(student.heads)}.", 1): v for k, v in first.items()}
    missing, unexpected = extended.load_state_dict(state, strict=False)
    if unexpected or not all(PER_MODALITY.fullmatch(key) or _of_new_class(key, before) for key in missing):
        raise RuntimeError(f"weights without a place: {unexpected}, without a value: {missing}")
    assert extended.classifier is not None  # it has at least two modalities
    with torch.no_grad():
        cast(torch.nn.Linear, extended.classifier.scores[-1]).bias.fill_(NOT_CHOSEN)
    return extended.train(student.training)


def new_parameters(extended: EspMedSam, before: int) -> list[torch.nn.Parameter]:
    """All that `add_modality` added to a student of `before` classes: what its training may change."""
    names = dict(extended.named_parameters())
    parameters = extended.own_parameters(len(extended.modalities) - 1)
    if len(extended.heads) == 1:  # a head of its own is among its own parameters
        parameters += [parameter for name, parameter in names.items() if _of_new_class(name, before)]
    return parameters


def _of_new_class(key: str, before: int) -> bool:
    """Whether a tensor belongs to the patch prompt of a class beyond the first `before`, background included."""
    match = PER_CLASS.fullmatch(key)
    return match is not None and int(match[1]) >= before - 1
