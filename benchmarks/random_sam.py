"""A SAM ViT-B with random weights, as a file in the hub's layout: time and memory do not depend on the weights."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from segdistill.models.sam import Sam
from segdistill.models.sam_weights import Shape

VIT_B = Shape(768, 12, (14, 14, 0) * 4, True)


def random_vit_b(folder: Path) -> str:
    """Write it into the folder; what `--knowsam.teacher` takes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sam = Sam(VIT_B, (1024, 1024), None, normalise=True, cut_first=False)
    save_file({key: value.contiguous() for key, value in sam.state_dict().items()}, folder / "model.safetensors")
    return str(folder)
