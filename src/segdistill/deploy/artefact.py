"""A student on disk: `student.safetensors`, `student.json` and a model card in one folder. Never a pickle."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..types import UserError
from .card import Card, card_json, card_values, parse_card
from .model_card import model_card

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .student import Student

__all__ = ["Card", "load_student", "save_student"]

WEIGHTS, CARD, README = "student.safetensors", "student.json", "README.md"
DISPOSABLE = {WEIGHTS, CARD, README, ".DS_Store", "Thumbs.db", "desktop.ini"}  # the last three: left by file browsers


def save_student(folder: Path, network: nn.Module, card: Card) -> None:
    """Write or replace a student as a whole: what cannot be loaded again never replaces what can.

    Raises UserError where the folder holds anything but a student, or cannot be written.
    """
    from safetensors.torch import save

    folder = folder.absolute()
    if folder.exists() and not (folder.is_dir() and {f.name for f in folder.iterdir()} <= DISPOSABLE):
        raise UserError(f"{folder} holds more than a student, which would be lost; choose another folder")
    weights = save({key: value.detach().cpu().contiguous().clone() for key, value in network.state_dict().items()})
    sha256 = hashlib.sha256(weights).hexdigest()
    new = folder.with_name(f".{folder.name}.saving")
    try:
        shutil.rmtree(new, ignore_errors=True)  # of an interrupted save
        new.mkdir(parents=True)
        _write(new / WEIGHTS, weights)
        _write(new / CARD, card_json(card_values(card) | {"weights_sha256": sha256}).encode())
        _write(new / README, model_card(card, folder.name).encode())
        load_student(new)
        _replace(folder, new)
    except OSError as error:
        raise UserError(f"cannot write the student to {folder} ({_line(error)}); choose another folder") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _replace(folder: Path, new: Path) -> None:
    """Rename `new` to `folder`. A folder cannot be renamed onto another, so the old one steps aside first."""
    previous = _previous(folder)
    if not folder.exists():
        new.rename(folder)
    else:
        shutil.rmtree(previous, ignore_errors=True)
        folder.rename(previous)
        try:
            new.rename(folder)
        except OSError:
            previous.rename(folder)
            raise
    shutil.rmtree(previous, ignore_errors=True)


def _previous(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.previous")


def load_student(path: Path, device: str = "cpu") -> Student:
    """The student in a folder, on the device and in eval mode. Raises UserError for anything damaged or foreign."""
    import torch

    from ..models.students import build_student
    from .student import Student

    card, sha256 = read_card(path)
    weights = _weights(path, sha256)
    _require_finite(weights, path / WEIGHTS)
    _require_device(device)
    with torch.random.fork_rng(devices=[]):  # random initial weights must not disturb a training run
        try:
            network = build_student(card.name, **card.arguments)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{path / CARD}: no {card.name!r} can be built ({_line(error)}); copy it again") from None
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{path}: the weights are not of this {card.name!r} ({_line(error)}); copy it again") from None
    return Student(network, card).to(device)


def bound_student(student: Student, modality: str) -> Student:
    """The student of one of its modalities, without the others' weights; it needs no classifier.

    Raises UserError for one that it does not know, or a network that treats all modalities alike.
    """
    from ..models.modality_change import bind_modality
    from ..models.students import student_spec
    from .student import Student

    if not student.routes and student.card.modalities != (modality,):
        known = ", ".join(filter(None, student.card.modalities)) or "none by name"
        raise UserError(
            f"--modality {modality}: this {student.card.name} has no weights of a modality's own (it knows {known}); "
            "leave --modality out"
        )
    if not student.routes:
        return student
    network = bind_modality(student.network, modality)  # type: ignore[arg-type]
    card = replace(student.card, arguments=student_spec(network).arguments, modalities=(modality,))
    return Student(network, card).to(next(student.parameters()).device)


def read_card(path: Path) -> tuple[Card, str]:
    """The card of a student's folder and the SHA-256 of its weights."""
    try:
        text = (path / CARD).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a student: cannot read {CARD} ({_line(error)}){_hint(path)}") from None
    card, others = parse_card(text, str(path / CARD))
    if set(others) != {"weights_sha256"}:
        raise UserError(f"{path / CARD} has the extra entries {sorted(others)}, needed weights_sha256; copy it again")
    return card, str(others["weights_sha256"])


def _hint(path: Path) -> str:
    if (path / "student" / CARD).exists():
        return f"; the student of this run is {path / 'student'}"
    if _previous(path.absolute()).exists():
        return f"; an interrupted save left the earlier student in {_previous(path.absolute())}: rename that folder"
    return f"; give the folder that holds {CARD} and {WEIGHTS}"


def _weights(path: Path, sha256: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        content = (path / WEIGHTS).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot read {WEIGHTS} ({_line(error)}); copy the student again") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"{path / WEIGHTS} is truncated or not the file of {CARD} (other hash); copy the student again")
    try:
        return load(content)
    except SafetensorError as error:
        raise UserError(f"{path / WEIGHTS} is not a safetensors file ({_line(error)}); copy it again") from None


def _require_finite(weights: dict[str, Tensor], path: Path) -> None:
    """One weight that is not makes all that is predicted so, and NaN is above no threshold: all would be background."""
    wrong = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
    if wrong:
        raise UserError(
            f"{path}: {len(wrong)} tensors are not finite, first {wrong[0]}: nothing can be predicted with them; "
            "take another copy, or train again"
        )


def _require_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch built without CUDA
        raise UserError(f"device {device!r} cannot be used ({_line(error)}); use cpu") from None


def _line(error: Exception) -> str:
    """One line of an error that may have many."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200]
