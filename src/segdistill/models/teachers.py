"""A network that teaches: any student of ours, or a published Polyp-PVT checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from ..types import UserError
from .freeze import freeze
from .polyp_pvt_official import load_polyp_pvt
from .students import build_student
from .weights import read_weights

FILES = ("student.json", "student.safetensors")


def load_teacher(path: Path, classes: int) -> nn.Module:
    """The frozen network of a run, of a student's folder or of a checkpoint: (image, modality=None) -> logits.

    Raises UserError if there is none, or it knows another number of classes (background included).
    """
    if not path.exists():
        raise UserError(f"the teacher {path} is not there; if it was moved, mend its path in the run's config.yaml")
    with torch.random.fork_rng(devices=[]):  # random initial weights must not disturb a training run
        network, known = _from_folder(path) if path.is_dir() else _from_checkpoint(path)
    if known != classes:
        raise UserError(
            f"the teacher {path} has {known} classes, the data have {classes}; give a teacher for these data"
        )
    return freeze(network)


def _from_folder(path: Path) -> tuple[nn.Module, int]:
    folder = path / "student" if (path / "student" / FILES[0]).is_file() else path
    try:
        card = json.loads((folder / FILES[0]).read_text(encoding="utf-8"))
        network = build_student(card["name"], **card["arguments"])
        network.load_state_dict(read_weights(folder / FILES[1]))
        return network, len(card["classes"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path} holds no student that could teach ({reason}); give a finished run") from error


def _from_checkpoint(path: Path) -> tuple[nn.Module, int]:
    network = load_polyp_pvt(path)
    return network, int(network.heads[0].out_channels) + 1  # type: ignore[arg-type]
