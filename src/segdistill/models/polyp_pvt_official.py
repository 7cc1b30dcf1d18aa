"""Published Polyp-PVT checkpoints: `PolypPVT.pth` (DengPingFan/Polyp-PVT, b2) and KDAS's student (b0)."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from torch import Tensor

from ..types import UserError
from .polyp_pvt import PolypPVT
from .pvt import from_official, variant_in
from .students import build_student
from .weights import read_weights

CONV_NORMS = {
    "Translayer2_0": "identification.out",
    "Translayer2_1": "lateral.0",
    "Translayer3_1": "lateral.1",
    "Translayer4_1": "lateral.2",
    "CFM.conv_upsample1": "fusion.gates.0",
    "CFM.conv_upsample2": "fusion.gates.1",
    "CFM.conv_upsample3": "fusion.gates.2",
    "CFM.conv_upsample4": "fusion.lifts.0",
    "CFM.conv_upsample5": "fusion.lifts.1",
    "CFM.conv_concat2": "fusion.merges.0",
    "CFM.conv_concat3": "fusion.merges.1",
    "CFM.conv4": "fusion.out",
}
OTHERS = {
    "ca.fc1": "identification.squeeze",
    "ca.fc2": "identification.excite",
    "sa.conv1": "identification.spatial",
    "SAM.conv_state": "aggregation.state",
    "SAM.conv_proj": "aggregation.project",
    "SAM.gcn.conv1": "aggregation.between_nodes",
    "SAM.gcn.conv2": "aggregation.between_states",
    "SAM.conv_extend": "aggregation.extend",
    "out_CFM": "heads.0",
    "out_SAM": "heads.1",
}
NAMES = OTHERS | {f"{o}.{a}": f"{n}.{i}" for o, n in CONV_NORMS.items() for i, a in enumerate(("conv", "bn"))}


def polyp_pvt_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official keys under the names of `PolypPVT`; keys of no part of it raise UserError."""
    backbone = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    renamed = {f"backbone.{key}": value for key, value in from_official(backbone).items()}
    for key, value in state.items():
        if key.startswith("backbone."):
            continue
        part, _, leaf = key.rpartition(".")
        if part not in NAMES:
            raise UserError(f"{key} belongs to no part of Polyp-PVT; give a checkpoint of Polyp-PVT or of KDAS")
        renamed[f"{NAMES[part]}.{leaf}"] = value
    return renamed


def load_polyp_pvt(path: Path) -> PolypPVT:
    """The network in an official checkpoint, backbone and classes read from its tensors; made by `build_student`.

    Raises UserError for a file that is no Polyp-PVT.
    """
    state = polyp_pvt_state(read_weights(path))
    try:
        variant = variant_in({k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")})
        classes = len(state["heads.0.bias"]) + 1
    except (KeyError, StopIteration):
        raise UserError(f"{path} holds no Polyp-PVT; give PolypPVT.pth or a checkpoint of KDAS's student") from None
    network = cast(PolypPVT, build_student("polyp_pvt", classes=classes, backbone=variant))
    own = network.state_dict()
    state = {k: v for k, v in own.items() if k.endswith("num_batches_tracked")} | state  # old files lack these counters
    wrong = [k for k in own | state if k not in own or k not in state or own[k].shape != state[k].shape]
    if wrong:
        raise UserError(f"{path} is not a whole Polyp-PVT-{variant}: {len(wrong)} tensors differ, first {wrong[0]}")
    network.load_state_dict(state)
    return network
