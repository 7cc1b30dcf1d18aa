"""An ESP-MedSAM student with one modality alone, or with one more: the weights that stay are the same bits."""

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
NOT_CHOSEN = -8.0  # the new modality's logit in the classifier before it is trained


def bind_modality(student: EspMedSam, name: str) -> EspMedSam:
    """The student of one modality: it takes no other, needs no classifier and drops the other controllers."""
    if name not in student.modalities:
        raise UserError(f"the student has no modality {name!r}; give one of {', '.join(student.modalities)}")
    index = student.modalities.index(name)
    arguments = dict(student_spec(student).arguments)
    for key in ("modality_classes", "joint_channels"):
        if arguments.get(key):
            arguments[key] = [arguments[key][index]]
    bound = build_student("esp_medsam", **arguments | {"modalities": [name], "separate_heads": False})
    state: dict[str, Tensor] = {}
    for key, value in student.state_dict().items():
        if match := PER_MODALITY.fullmatch(key):
            if int(match[2]) == index and match[1] != "classifier.scores":
                state[f"{match[1]}.0.{match[3]}"] = value
        elif match := PER_HEAD.fullmatch(key):
            if int(match[1]) == index or len(student.heads) == 1:
                state[f"heads.0.{match[2]}"] = value
        else:
            state[key] = value
    if student.counts[index] != max(student.counts):  # joint queries are kept for the classes of this modality only
        state = {k: v[: student.counts[index]] if k.endswith("joint.query") else v for k, v in state.items()}
    bound.load_state_dict(state)
    return cast(EspMedSam, bound.train(student.training))


def add_modality(student: EspMedSam, name: str, classes: Sequence[int]) -> EspMedSam:
    """The student with one more modality of these foreground classes; the outputs of the others stay as they are.

    New are a controller, queries, an MLP and a row of the classifier (`student.own_parameters(-1)`), and a head where
    heads are separate, which starts as a copy of the first one.

    Raises:
        UserError: the modality or a class of it exists or does not, or the queries are joint, so that a new one would
            change the outputs of all.
    """
    arguments = dict(student_spec(student).arguments)
    if arguments.get("joint_channels"):
        raise UserError("joint queries attend to each other, so a new modality would change the others; train without")
    own = arguments.get("modality_classes") or [list(range(1, arguments["classes"]))] * len(student.modalities)
    modalities, own = [*student.modalities, name], [*own, list(classes)]
    extended = cast(
        EspMedSam, build_student("esp_medsam", **arguments | {"modalities": modalities, "modality_classes": own})
    )
    state = dict(student.state_dict())
    if len(student.heads) > 1:
        first = {k: v for k, v in state.items() if k.startswith("heads.0.")}
        state |= {k.replace("heads.0.", f"heads.{len(student.heads)}.", 1): v for k, v in first.items()}
    missing, unexpected = extended.load_state_dict(state, strict=False)
    if unexpected or any(not PER_MODALITY.fullmatch(key) for key in missing):
        raise RuntimeError(f"weights without a place: {unexpected}, without a value: {missing}")
    assert extended.classifier is not None  # it has at least two modalities
    with torch.no_grad():
        cast(torch.nn.Linear, extended.classifier.scores[-1]).bias.fill_(NOT_CHOSEN)
    return extended.train(student.training)
