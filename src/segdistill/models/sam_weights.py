"""SAM's weights: found by name, folder or file, under transformers' names, at the size of the training.

Official files (`.pth`: SAM, MedSAM, KnowSAM's sam_best_model.pth) are renamed; hub files (`facebook/sam-vit-base`,
`wanglab/medsam-vit-base`) have the names already. The architecture is read off the tensors; no config file is needed.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from ..types import UserError
from .weights import HUB_FILES, from_hub, read_weights

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
HEADS = {768: 12, 1024: 16, 1280: 16}  # ViT-B, L, H
WINDOW = 14  # of all official models
META = "https://dl.fbaipublicfiles.com/segment_anything/"
OFFICIAL_FILES = {
    "sam_vit_b_01ec64.pth": META + "sam_vit_b_01ec64.pth",
    "sam_vit_l_0b3195.pth": META + "sam_vit_l_0b3195.pth",
    "sam_vit_h_4b8939.pth": META + "sam_vit_h_4b8939.pth",
    "medsam_vit_b.pth": "https://zenodo.org/records/10689643",
}
RULES = [  # official -> transformers; KnowSAM's decoder has an MLP with names of its own
    (r"^image_encoder\.blocks\.(\d+)\.norm", r"vision_encoder.layers.\1.layer_norm"),
    (r"^image_encoder\.blocks\.", "vision_encoder.layers."),
    (r"^image_encoder\.patch_embed\.proj\.", "vision_encoder.patch_embed.projection."),
    (r"^image_encoder\.neck\.0\.", "vision_encoder.neck.conv1."),
    (r"^image_encoder\.neck\.1\.", "vision_encoder.neck.layer_norm1."),
    (r"^image_encoder\.neck\.2\.", "vision_encoder.neck.conv2."),
    (r"^image_encoder\.neck\.3\.", "vision_encoder.neck.layer_norm2."),
    (r"^image_encoder\.", "vision_encoder."),
    (r"pe_layer\.positional_encoding_gaussian_matrix$", "shared_embedding.positional_embedding"),
    (r"\.point_embeddings\.", ".point_embed."),
    (r"\.mask_downscaling\.0\.", ".mask_embed.conv1."),
    (r"\.mask_downscaling\.1\.", ".mask_embed.layer_norm1."),
    (r"\.mask_downscaling\.3\.", ".mask_embed.conv2."),
    (r"\.mask_downscaling\.4\.", ".mask_embed.layer_norm2."),
    (r"\.mask_downscaling\.6\.", ".mask_embed.conv3."),
    (r"^(mask_decoder\.transformer\.layers\.\d+)\.norm", r"\1.layer_norm"),
    (r"\.norm_final_attn\.", ".layer_norm_final_attn."),
    (r"\.mlp\.layers\.0\.0\.", ".mlp.lin1."),
    (r"\.mlp\.fc\.", ".mlp.lin2."),
    (r"\.output_upscaling\.0\.", ".upscale_conv1."),
    (r"\.output_upscaling\.1\.", ".upscale_layer_norm."),
    (r"\.output_upscaling\.3\.", ".upscale_conv2."),
    (r"(mlps\.\d+|iou_prediction_head)\.layers\.0\.", r"\1.proj_in."),
    (r"(mlps\.\d+|iou_prediction_head)\.layers\.2\.", r"\1.proj_out."),
    (r"(mlps\.\d+|iou_prediction_head)\.layers\.1\.", r"\1.layers.0."),
]


class Origin(NamedTuple):
    """Whose weights: for the run's record."""

    file: str
    sha256: str
    plain: bool = False  # MedSAM's, which its authors trained on images in [0, 1] as they are


class Shape(NamedTuple):
    """An image encoder."""

    width: int
    heads: int
    windows: tuple[int, ...]  # of each block, in tokens; 0: it sees the whole grid
    relative: bool  # relative positions in the attention


class Weights(NamedTuple):
    """What a file holds."""

    state: dict[str, Tensor]  # SAM's, float32, transformers' names
    knowsam: dict[str, Tensor]  # KnowSAM's adapters and learnable prompts, official names; empty elsewhere
    origin: Origin


def read_sam(teacher: str) -> Weights:
    """Find and read a hub name, a local folder of one, or a file.

    Raises:
        UserError: it is not there (with what to fetch and where to put it), unreadable, or holds more than tensors.
    """
    path = find_sam(teacher)
    state = {k: v.float() if v.is_floating_point() else v for k, v in read_weights(path).items()}
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if any(key.startswith("image_encoder.") for key in state):
        knowsam = {key: value for key, value in state.items() if "_Adapter." in key or key.startswith("super_prompt.")}
        state = {_renamed(key): value for key, value in state.items() if key not in knowsam}
    else:
        knowsam = {}
        shared = state.pop("shared_image_embedding.positional_embedding", None)  # the same matrix under two names
        if shared is not None:
            state["prompt_encoder.shared_embedding.positional_embedding"] = shared
    return Weights(state, knowsam, Origin(str(path), sha256, is_medsam(teacher)))


def is_medsam(teacher: str) -> bool:
    """Whether a hub name, a folder or a file is called after MedSAM: the tensors do not tell.

    bowang-lab/MedSAM @ 3e56a52: MedSAM_Inference.py scales an image to [0, 1] and gives it to the encoder, while SAM's
    own code subtracts ImageNet's mean.
    """
    path = Path(teacher).expanduser()
    return "medsam" in (path.name if path.exists() else teacher).lower()


def _renamed(key: str) -> str:
    for pattern, new in RULES:
        key, done = re.subn(pattern, new, key)
        if done and pattern.startswith("(mlps"):  # layers.2 -> layers.1 must not be renamed again
            break
    return key


def find_sam(teacher: str) -> Path:
    """The file behind a hub name, a folder or a path; UserError with what to fetch and where to put it."""
    path = Path(teacher).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        for name in HUB_FILES:
            if (path / name).is_file():
                return path / name
        raise UserError(
            f"{path} holds no {' or '.join(HUB_FILES)}; give the folder of a SAM from the hub, or a .pth file"
        )
    if path.suffix in SUFFIXES or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", teacher):
        source = OFFICIAL_FILES.get(path.name)
        way = (
            f"fetch {source} and save it as {path.absolute()}"
            if source
            else (
                "give tiny, small, a hub name such as facebook/sam-vit-base, a folder of one, or an official file "
                f"such as {META}sam_vit_b_01ec64.pth"
            )
        )
        raise UserError(f"SAM's weights {teacher!r} do not exist; {way}")
    return from_hub(teacher)


def shape_of(state: dict[str, Tensor], name: str) -> Shape:
    """The image encoder behind a state with transformers' names; UserError if it is none of SAM's."""
    depth = len({key.split(".")[2] for key in state if key.startswith("vision_encoder.layers.")})
    if depth == 0 or "vision_encoder.pos_embed" not in state:
        raise UserError(
            f"{name}: no SAM (no image encoder among its keys {', '.join(sorted(state)[:3])}, ...); give SAM ViT-B, L, "
            "H or MedSAM, official or from the hub"
        )
    width = state["vision_encoder.pos_embed"].shape[-1]
    tables = [state.get(f"vision_encoder.layers.{i}.attn.rel_pos_h") for i in range(depth)]
    relative = tables[0] is not None
    heads = width // tables[0].shape[1] if tables[0] is not None else HEADS.get(width, width // 64)
    local = [t is not None and len(t) == 2 * WINDOW - 1 for t in tables]
    if not relative or all(local):  # the tables do not tell: every quarter's last block, as in ViT-B, L and H
        local = [(i + 1) % max(1, depth // 4) != 0 for i in range(depth)]
    return Shape(width, heads, tuple(WINDOW if here else 0 for here in local), relative)


def resized(state: dict[str, Tensor], shape: Shape, grid: tuple[int, int]) -> dict[str, Tensor]:
    """The state with position tables for a grid (h, w); tables of windows stay unless their block lost its window."""
    out = dict(state)
    absolute = state["vision_encoder.pos_embed"]
    if absolute.shape[1:3] != grid:
        table = F.interpolate(absolute.permute(0, 3, 1, 2), grid, mode="bicubic", align_corners=False)
        out["vision_encoder.pos_embed"] = table.permute(0, 2, 3, 1).contiguous()
    for i, window in enumerate(shape.windows):
        for axis, size in zip("hw", (window, window) if window else grid, strict=True):
            key = f"vision_encoder.layers.{i}.attn.rel_pos_{axis}"
            if not shape.relative:
                out.pop(key, None)
            elif key in state and len(state[key]) != 2 * size - 1:
                out[key] = F.interpolate(state[key].T[None], 2 * size - 1, mode="linear")[0].T.contiguous()
    return out
