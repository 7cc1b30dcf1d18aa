"""Small SAM checkpoints in the official layout, filled as the reference numbers are."""

import json
from pathlib import Path

import torch
from reference.fill import fill

MINI = json.loads((Path(__file__).parent / "reference" / "sam_mini.json").read_text(encoding="utf-8"))


def filled(keys, prefix=""):
    return {
        prefix + key: torch.zeros(shape, dtype=torch.long) if not shape else torch.from_numpy(fill(key, tuple(shape)))
        for key, shape in keys.items()
    }


def mini_sam():
    return filled(MINI["encoder"], "image_encoder.") | filled(MINI["prompt_and_decoder"])


def mini_knowsam(classes):
    """A sam_best_model.pth in the official layout: width 192, depth 4, no relative positions."""
    state = {k: v for k, v in filled(MINI["encoder"], "image_encoder.").items() if "rel_pos" not in k}
    state |= filled(MINI["knowsam_prompt_and_decoder"])
    shapes = {"D_fc1.weight": (48, 192), "D_fc1.bias": (48,), "D_fc2.weight": (192, 48), "D_fc2.bias": (192,)}
    for block in range(4):
        for name in ("MLP", "Space", "Depth"):
            state |= filled(shapes, f"image_encoder.blocks.{block}.{name}_Adapter.")
    for number in range(classes):
        state |= filled(MINI["knowsam_class_prompt"], f"super_prompt.box_decoder.{number}.")
    return state


def saved(path, state):
    torch.save(state, path)
    return str(path)
