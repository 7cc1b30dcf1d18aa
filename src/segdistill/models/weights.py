"""Other people's weights: found in the hub's cache or by path; tensors out of a file, nothing else ever run."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from ..types import UserError

HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a .safetensors file, or in one that torch saved (`weights_only`: no code in it can run).

    Keys lose the prefix `module.` of DataParallel. Raises UserError for a file that is missing, cut off or holds more
    than named tensors.
    """
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"{path} is not a file; give the file that holds the weights")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:  # torch's own text advises to run what the file asks for
        raise _foreign(path) from None
    except Exception as error:  # torch raises anything else: RuntimeError, KeyError, EOFError
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(f"{path} cannot be read as weights ({reason}); download it again, or convert it") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise _foreign(path)
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def settled(name: str, *words: str) -> str:
    """The absolute path of a file or folder that is there; one of the words, or another name (a hub's), as it is."""
    path = Path(name).expanduser()
    return str(path.resolve()) if name and name not in words and path.exists() else name


def _foreign(path: Path) -> UserError:
    return UserError(
        f"{path} holds something else than named tensors, which is not run; save the state dict alone: "
        "torch.save(net.state_dict(), FILE)"
    )


def from_hub(name: str) -> Path:
    """The weights of a model in the hub's cache; downloaded only if they are not there.

    Raises:
        UserError: neither in the cache nor to be fetched; with what to fetch and where to put it.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    for file in HUB_FILES:
        try:
            return Path(hf_hub_download(name, file, local_files_only=True))
        except (OSError, ValueError):
            continue
    reason = "the hub has neither file"
    for file in HUB_FILES:
        try:
            return Path(hf_hub_download(name, file, etag_timeout=10))
        except RepositoryNotFoundError:
            reason = "the hub has no such model, or not for you"
            break
        except LocalEntryNotFoundError:  # also an EntryNotFoundError
            reason = "the hub cannot be reached"
            break
        except EntryNotFoundError:
            continue
        except Exception as error:  # the client's own: timeouts, proxies, full disks
            reason = " ".join(str(error).split())[:120]
            break
    raise UserError(
        f"{name}: not in the cache {constants.HF_HUB_CACHE} and {reason}; fetch "
        f"https://huggingface.co/{name}/resolve/main/{HUB_FILES[0]} (or {HUB_FILES[1]}) into a folder and give that "
        f"folder, or run `hf download {name}` where there is a network and copy that cache"
    )
