"""extend: one more modality for a trained ESP-MedSAM student; what it could do before, it does bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..deploy.artefact import read_card
from ..methods.esp_medsam import ESPMedSAMConfig
from ..types import UserError
from .options import TrainOptions
from .train import TrainResult, train
from .use import student_path


def extend(
    student: Path | str,
    data: Path | str | Sequence[Path | str],
    modality: str,
    out: Path | str | None = None,
    options: TrainOptions | None = None,
    config: ESPMedSAMConfig | None = None,
) -> TrainResult:
    """Train controllers, queries and MLP of a new modality, all else held still; the new student is in the run folder.

    Args:
        student: Folder of a student of esp_medsam, or of its run. Not changed.
        data: Data of the new modality, as `train` takes them.
        modality: Its name.
        out: Run folder to create; `train --resume` goes on with it.
        options: As of `train`; size, fit, neighbours, post-processing and licence are the student's.
        config: Iterations (`head_iterations`), batch size and learning rate; the rest is the student's.

    Returns:
        As of `train`.

    Raises:
        UserError: Not such a student, a modality that it has, or as `train`.
    """
    folder = student_path(student)
    card, _ = read_card(folder)
    if card.name != "esp_medsam":
        raise UserError(f"{student}: a {card.name} has no modalities to add to; extend takes a student of esp_medsam")
    if modality in card.modalities:
        raise UserError(f"--modality {modality}: the student knows it already; choose a new name")
    its_own: dict[str, Any] = {name: getattr(card, name) for name in ("fit", "neighbours", "postprocess", "licence")}
    its_own["size"] = "x".join(map(str, card.size))
    chosen = replace(options or TrainOptions(), method="esp_medsam", modality=modality, **its_own)
    return train(data, out, chosen, replace(config or ESPMedSAMConfig(), init=str(folder.resolve())))
