"""Other people's weights: tensors out of a file, nothing else ever run."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from ..types import UserError


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a .safetensors file, or in one that torch saved (`weights_only`: no code in it can run).

    Keys lose the prefix `module.` of DataParallel. Raises UserError for a file that is missing, cut off or holds more
    than named tensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"{path} is not a file; give the file that holds the weights")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, UnpicklingError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path} cannot be read as weights ({reason}); download it again, or convert it") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(
            f"{path} holds more than named tensors; save the state dict alone: torch.save(net.state_dict())"
        )
    return {key.removeprefix("module."): value for key, value in state.items()}
