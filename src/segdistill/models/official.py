"""Weight files of other projects: tensors by name, nothing that runs."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..types import UserError


def read_official(path: Path) -> dict[str, Tensor]:
    """A state dict written by `torch.save`, without the prefix `module.` of a wrapped model.

    Raises UserError for a file that cannot be read, or that holds anything but tensors by name.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or foreign file raises errors of many modules
        reason = str(error).strip().split("\n")[0][:150]
        raise UserError(f"{path} cannot be read as weights ({reason}); give a state dict saved by torch.save") from None
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path} holds more than weights by name; save model.state_dict() alone")
    return {str(key).removeprefix("module."): value for key, value in state.items()}
