"""A trained network to learn from or to go on with: any student of ours, or a published Polyp-PVT checkpoint."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..types import Known, Task, UserError
from .freeze import freeze
from .polyp_pvt import PolypPVT
from .polyp_pvt_official import load_polyp_pvt
from .students import StudentSpec, build_student
from .weights import read_weights

FILES = ("student.json", "student.safetensors")
UNNAMED = re.compile(r"foreground|class_\d+")  # what data.labels calls classes that the user did not name


class Rerouted(nn.Module):
    """A teacher that numbers the modalities otherwise than the run does; of one it does not know it is told nothing."""

    places: Tensor

    def __init__(self, network: nn.Module, its: Sequence[str], ours: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self.known = set(ours) <= set(its)
        places = [its.index(name) for name in ours] if self.known else []
        self.register_buffer("places", torch.tensor(places, dtype=torch.long), persistent=False)

    def forward(self, image: Tensor, modality: Tensor | None = None) -> Tensor:
        """Logits (B, C, H, W); modality (B,) as the run numbers it."""
        told = self.places[modality] if self.known and modality is not None else None
        logits: Tensor = self.network(image, told)
        return logits


class AtItsSize(nn.Module):
    """A teacher that sees every image at the size that it was trained at, whatever the size of its pupil's."""

    def __init__(self, network: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.network = network
        self.size = size

    def forward(self, image: Tensor, modality: Tensor | None = None) -> Tensor:
        """Logits (B, C, H, W), fp32, at the size of the image (B, 3, H, W)."""
        logits: Tensor = self.network(resized(image, self.size), modality)
        return resized(logits, image.shape[-2:])


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, H, W) to (h, w) in fp32, bilinear, over as many pixels as fall together."""
    x = x.float()  # torch has no such kernel for bf16
    if x.shape[-2:] == tuple(size):
        return x
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False, antialias=True)


def load_teacher(path: Path, task: Task) -> nn.Module:
    """The network of a run, a student folder or a checkpoint, frozen, in eval mode: (image, modality=None) -> logits.

    One of a folder sees images at its own size, but for a Polyp-PVT, which was trained at three scales.

    Raises UserError if there is none, or it knows another number of classes, other ones, or the same in another order,
    or was trained on other shapes or channels (fit, neighbours).
    """
    if not path.exists():
        raise UserError(f"the teacher {path} is not there; if it was moved, mend its path in the run's config.yaml")
    with torch.random.fork_rng(devices=[]):  # random initial weights must not disturb a training run
        network, classes = _from_folder(path, task) if path.is_dir() else _from_checkpoint(path)
    if classes != task.classes:
        raise UserError(
            f"the teacher {path} has {classes} classes, the data have {task.classes}; give a teacher for these data"
        )
    return freeze(network).eval()


def load_trained(path: Path) -> tuple[nn.Module, Known]:
    """The network of a run's or a student's folder, and what it knows; UserError if there is none."""
    folder = path / "student" if (path / "student" / FILES[0]).is_file() else path
    try:
        card = json.loads((folder / FILES[0]).read_text(encoding="utf-8"))
        network = build_student(card["name"], **card["arguments"])
        network.load_state_dict(read_weights(folder / FILES[1]))
        classes, modalities, (height, width) = tuple(card["classes"]), tuple(card["modalities"]), card["size"]
        meanings = tuple(card.get("data", {}).get("mask values", ()))
        return network, Known(classes, modalities, (height, width), card["fit"], card["neighbours"], meanings)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path} holds no student that could teach ({reason}); give a finished run") from error


def _from_folder(path: Path, task: Task) -> tuple[nn.Module, int]:
    network, known = load_trained(path)
    _require_same_classes(path, known.classes, task.names)
    if (known.fit, known.neighbours) != (task.fit, task.neighbours):
        raise UserError(
            f"the teacher {path} was trained with --fit {known.fit} --neighbours {known.neighbours} and would see "
            f"other images here (--fit {task.fit} --neighbours {task.neighbours}); train with those, or give "
            "another teacher"
        )
    its = list(
        cast(StudentSpec, network.spec).arguments.get("modalities", [])
    )  # [] where the network has no use for them
    if its and its != list(task.modalities):
        network = Rerouted(network, its, task.modalities)
    return network if isinstance(network, PolypPVT) else AtItsSize(network, known.size), len(known.classes)


def _require_same_classes(path: Path, its: Sequence[str], ours: Sequence[str]) -> None:
    """UserError where a class that both name has other numbers, or a number other names.

    A name that nobody gave (UNNAMED) fits any; so does the background's. Other counts are refused by the caller.
    """
    pairs = list(zip(its[1:], ours[1:], strict=False)) if len(its) == len(ours) else []
    moved = [name for name, other in pairs if name != other and name in ours[1:]]
    other = [f"{a} (here {b})" for a, b in pairs if a != b and not (UNNAMED.fullmatch(a) or UNNAMED.fullmatch(b))]
    if moved or other:
        raise UserError(
            f"the teacher {path} has the classes {', '.join(its)}, the data {', '.join(ours)}, and would teach "
            f"{(other or moved)[0]}; give a teacher of these classes, or, where they are the same, number them as it "
            f"does and name them --classes {','.join(its)}"
        )


def _from_checkpoint(path: Path) -> tuple[nn.Module, int]:
    network = load_polyp_pvt(path)
    return network, int(network.heads[0].out_channels) + 1  # type: ignore[arg-type]
