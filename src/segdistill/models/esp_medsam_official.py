"""ESP-MedSAM's and MobileSAM's own weight files under the names of our student.

An official ESP-MedSAM checkpoint holds one modality's controllers and a trunk and head that may or may not be those
of the next checkpoint. The queries of all six modalities are in each; a modality reads its own (the released loader's
order).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from ..types import UserError
from .esp_medsam import EspMedSam
from .students import build_student
from .tiny_vit import DEPTHS

CHANNELS = {"dermoscopy": 0, "xray": 1, "ultrasound": 2, "fundus": 3, "microscopy": 4, "colonoscopy": 5}
UNUSED = re.compile(
    r"SemiTViT\.(norm_head|head)\.|prompt_encoder\.(point_embeddings|not_a_point_embed|mask_downscaling|no_mask_embed)\."
    r"|.*\.num_batches_tracked$"
)
BLOCK = re.compile(r"SemiTViT\.layers\.(\d)\.blocks\.(\d)\.(.*)")
CONTROLLER = {"attn.med_attention_biases": "bias", "attn.deep_QKV_embeddings_med": "key"}
HEAD = {
    "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": "position.gaussian_matrix",
    "mask_decoder.transformer.": "transformer.",
    "mask_decoder.output_upscaling.": "upscaling.",
    "mask_decoder.output_hypernetworks_mlps.0.": "joint.mlp.",
    "mask_query.weight": "joint.query",
    "patch_decoder.3.": "prompt.patch.0.",
    "patch_decoder.": "prompt.shared.",
    "dense_prompter.": "prompt.prompt.0.",
}


def official_student(files: Mapping[str, Mapping[str, Tensor]], separate_heads: bool = False) -> EspMedSam:
    """One student, as released, from official checkpoints by modality; two classes.

    Args:
        files: Modality (a name of CHANNELS or its beginning) -> official state dict.
        separate_heads: Keep a head per modality where they differ. The trunk must be the same in any case.

    Raises:
        UserError: an unknown modality, a file of another layout, or shared tensors that differ.
    """
    names = [_modality(name) for name in files]
    student = build_student(
        "esp_medsam",
        classes=2,
        modalities=names,
        shared_token=True,
        joint_channels=[CHANNELS[name] for name in names],
        separate_heads=separate_heads,
        released_normalisation=True,
    )
    merged: dict[str, Tensor] = {}
    differing: list[str] = []
    for i, state in enumerate(files.values()):
        for key, value in state.items():
            name = _own_name(key, i, i if separate_heads else 0)
            if name is None:
                continue
            tensor = _reshaped(name, value)
            if name in merged and not torch.equal(merged[name], tensor):
                differing.append(key)
            merged.setdefault(name, tensor)
    if differing:
        hint = _hint(differing, separate_heads)
        raise UserError(f"shared weights differ between {', '.join(files)}: {_few(differing)}; {hint}")
    _load(cast(EspMedSam, student), merged, "ESP-MedSAM checkpoint", ("classifier.", "memory."))
    return cast(EspMedSam, student)


def load_mobile_sam(student: EspMedSam, state: Mapping[str, Tensor]) -> None:
    """Start the trunk from MobileSAM's image encoder (`image_encoder.*` of mobile_sam.pt)."""
    renamed = {}
    for key, value in state.items():
        name = key.replace("image_encoder.", "SemiTViT.", 1)
        if key.startswith("image_encoder.") and not UNUSED.match(name):
            renamed[f"trunk.{name.removeprefix('SemiTViT.')}"] = value
    own = ("controllers.", "skips.", "heads.", "readouts.", "classifier.", "memory.")
    _load(student, renamed, "MobileSAM file", own)


def _modality(name: str) -> str:
    found = [m for m in CHANNELS if name and m.startswith(name)]
    if len(found) != 1:
        raise UserError(f"ESP-MedSAM has no modality {name!r}; give one of {', '.join(CHANNELS)}")
    return found[0]


def _own_name(key: str, modality: int, head: int) -> str | None:
    """Our name of an official key; None where the official network does not use it; foreign keys stay as they are."""
    if UNUSED.match(key):
        return None
    if block := BLOCK.fullmatch(key):
        stage, i, rest = int(block[1]), int(block[2]), block[3]
        controller = CONTROLLER.get(rest) or (f"mlp.{rest[8:]}" if rest.startswith("med_dah.") else None)
        if controller:
            return f"controllers.{modality}.{sum(DEPTHS[1:stage]) + i}.{controller}"
    if key.startswith("SemiTViT."):
        return f"trunk.{key.removeprefix('SemiTViT.')}"
    for official, own in HEAD.items():
        if key.startswith(official):
            return f"heads.{head}.{own}{key.removeprefix(official)}"
    return key


def _reshaped(name: str, value: Tensor) -> Tensor:
    if name.endswith(".joint.query"):
        return value[None]  # one class
    if re.fullmatch(r"controllers\.\d+\.\d+\.(key|bias)", name):
        return value.squeeze(-2) if name.endswith("key") else value.reshape(())
    return value


def _load(student: EspMedSam, state: dict[str, Tensor], what: str, without: tuple[str, ...]) -> None:
    """Load what the file must hold, all of it and nothing else; `without` are the parts that it does not have."""
    own = {k: v.shape for k, v in student.state_dict().items() if not k.endswith("num_batches_tracked")}
    needed = {k: shape for k, shape in own.items() if not k.startswith(without)}
    wrong = [k for k in needed.keys() & state.keys() if state[k].shape != needed[k]]
    for problem, keys in (("lacks", needed.keys() - state.keys()), ("also has", state.keys() - needed.keys())):
        if keys:
            raise UserError(f"not a {what}: it {problem} {_few(sorted(keys))}; give the file as its authors saved it")
    if wrong:
        raise UserError(f"not a {what}: other shapes in {_few(sorted(wrong))}; give the file as its authors saved it")
    student.load_state_dict(state, strict=False)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _hint(differing: Sequence[str], separate_heads: bool) -> str:
    trunk = any(key.startswith("SemiTViT.") for key in differing)
    if trunk or separate_heads:
        return "their trunks were trained apart, so convert each alone"
    return "merge them with separate heads (--separate-heads)"
