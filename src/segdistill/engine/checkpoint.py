"""Checkpoints: one safetensors file each, its header carrying the JSON. Never a pickle.

Written under a temporary name, synced, renamed; so a file that exists is whole. What a method froze with
`models.freeze` is not stored: its weights come from their own file again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from ..types import UserError

KEPT = 2


@dataclass
class Progress:
    """Where a run is: what a checkpoint knows besides tensors."""

    stage: int = 0
    iteration: int = 0  # updates done in this stage
    validated: int = -1  # iteration of the last validation
    best: float | None = None
    best_file: str | None = None
    stale: int = 0  # validations since the best
    precision: str = ""
    stopped: bool = False  # early stop: this stage is over


def stored_state(method: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a method except those that `freeze` marked."""
    frozen = {id(p) for p in method.parameters() if getattr(p, "frozen", False)}
    return {k: v for k, v in method.state_dict(keep_vars=True).items() if id(v) not in frozen}


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Atomic, synced safetensors file; the old file stays when the disk is full (UserError)."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, temporary, metadata)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"{path}: cannot write ({error}); what was saved before is intact. Free some space, then continue with "
            f"segdistill train --resume {path.parent.parent}"
        ) from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; UserError when it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def save(folder: Path, method: nn.Module, optimizers: Sequence[Optimizer], progress: Progress) -> Path:
    """Write the checkpoint of this moment and drop what it makes superfluous."""
    tensors = {f"model.{k}": v for k, v in stored_state(method).items()}
    for number, optimizer in enumerate(optimizers):
        for parameter, state in optimizer.state_dict()["state"].items():
            tensors |= {
                f"optimizer.{number}.{parameter}.{k}": torch.as_tensor(v) for k, v in state.items() if v is not None
            }
    path = folder / f"{progress.stage:02d}-{progress.iteration:08d}.safetensors"
    write_tensors(path, tensors, {"progress": json.dumps(asdict(progress))})
    _prune(folder)
    return path


def save_best(folder: Path, method: nn.Module, progress: Progress) -> str:
    """Write the weights of the best validation so far; the next checkpoint refers to the file by name."""
    name = f"best-{progress.stage:02d}-{progress.iteration:08d}.safetensors"
    write_tensors(folder / name, {f"model.{k}": v for k, v in stored_state(method).items()}, {})
    return name


def _prune(folder: Path) -> None:
    """Keep the last checkpoints and the best weights of each: who deletes a damaged one goes on from the one before."""
    for unneeded in (*checkpoints(folder)[:-KEPT], *folder.glob("*.tmp")):
        unneeded.unlink()
    try:
        needed = {peek(kept).best_file for kept in checkpoints(folder)}
    except UserError:  # damaged: nobody knows what it needs
        return
    for best in folder.glob("best-*.safetensors"):
        if best.name not in needed:
            best.unlink()


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(folder.glob("[0-9]*-*.safetensors"))


def load_weights(path: Path, method: nn.Module) -> dict[str, Any]:
    """Copy a checkpoint's weights into the method; returns everything else the file holds."""
    tensors, metadata = read_tensors(path)
    weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    mine = stored_state(method)
    if weights.keys() != mine.keys():
        different = sorted(weights.keys() ^ mine.keys())[:3]
        raise UserError(f"{path}: of another network (e.g. {', '.join(different)}); resume with the same settings")
    with torch.no_grad():
        for key, value in mine.items():
            value.copy_(weights[key])
    rest = {k: v for k, v in tensors.items() if not k.startswith("model.")}
    return {"tensors": rest, "progress": metadata.get("progress")}


def load(path: Path, method: nn.Module, optimizers: Sequence[Optimizer]) -> Progress:
    """Restore a method and its optimizers exactly (values and memory layout) and say where the run was."""
    rest = load_weights(path, method)
    for number, optimizer in enumerate(optimizers):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in rest["tensors"].items():
            _, owner, parameter, name = key.split(".", 3)
            if int(owner) == number:
                like = parameters[int(parameter)]
                state.setdefault(int(parameter), {})[name] = _laid_out(value, like)
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    return Progress(**json.loads(rest["progress"]))


def _laid_out(value: Tensor, like: Tensor) -> Tensor:
    """In the parameter's memory layout: vectorised updates round alike only on alike strides."""
    return torch.empty_like(like, dtype=value.dtype).copy_(value) if value.shape == like.shape else value


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: not a readable checkpoint ({error}); delete it to continue from the one before")


def peek(path: Path) -> Progress:
    """Where the run was when the checkpoint was written."""
    try:
        with safe_open(path, framework="pt") as file:
            return Progress(**json.loads(file.metadata()["progress"]))
    except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
        raise _unreadable(path, error) from error
