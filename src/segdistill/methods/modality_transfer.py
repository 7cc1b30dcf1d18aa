"""ESP-MedSAM's modality transfer: a trained student gets one more modality, and nothing else of it changes.

Only what is new trains: a controller, queries and an MLP, a row of the classifier, and the patch prompt of each class
that is new. Published: as here, with a medical teacher for the new modality first; here the labels alone teach it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ..models.esp_medsam import EspMedSam
from ..models.modality_change import add_modality, new_parameters
from ..models.teachers import load_trained
from ..types import Known, Task, UserError


@dataclass(frozen=True)
class Addition:
    """A modality that was added, the last one of the student.

    Attributes:
        parameters: All that trains.
        before: Names of the modalities that were there.
        forgotten: Those of which the student remembers no features, so that its classifier cannot tell the new one
            from them.
    """

    parameters: list[nn.Parameter]
    before: tuple[str, ...]
    forgotten: tuple[str, ...]


def known_before(init: str) -> Known | None:
    """What the student in a folder knows; None where `init` is no folder."""
    return load_trained(Path(init))[1] if Path(init).is_dir() else None


def with_addition(init: str, task: Task) -> tuple[EspMedSam, Addition]:
    """The student in a folder with the task's last modality, and the classes that come with it.

    Raises:
        UserError: no student there, or one that cannot be added to.
    """
    student, known = load_trained(Path(init))
    if not isinstance(student, EspMedSam):
        raise UserError(f"{init}: only a student of esp_medsam can get one more modality; train anew with both")
    *before, name = task.modalities
    if tuple(before) != known.modalities:
        raise UserError(
            f"{init}: the student knows {', '.join(known.modalities)}, this run began with one that knew "
            f"{', '.join(before)}; give back that student, or start a new run"
        )
    classes = task.modality_classes[-1] if task.modality_classes else range(1, task.classes)
    grown = add_modality(student, name, list(classes), task.classes)
    forgotten = tuple(one for m, one in enumerate(before) if not len(grown.memory.recalled(m)))
    return grown, Addition(new_parameters(grown, len(known.classes)), tuple(before), forgotten)
