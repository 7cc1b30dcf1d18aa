"""The pyramid vision transformer PVTv2 (Wang et al. 2022), b0 to b5, from transformers, with its published weights.

Two facts that transformers' own class does not carry: the norms of the patch embeddings and of the spatial reduction
have eps 1e-5, the others 1e-6 (whai362/PVT, `pvt_v2.py`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from ..types import UserError
from .weights import HUB_FILES, from_hub, read_weights


class Variant(NamedTuple):
    """What distinguishes b0 to b5; heads (1, 2, 5, 8) and reductions (8, 4, 2, 1) are common."""

    widths: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    mlp: tuple[int, int, int, int]


WIDE = (64, 128, 320, 512)
VARIANTS = {
    "b0": Variant((32, 64, 160, 256), (2, 2, 2, 2), (8, 8, 4, 4)),
    "b1": Variant(WIDE, (2, 2, 2, 2), (8, 8, 4, 4)),
    "b2": Variant(WIDE, (3, 4, 6, 3), (8, 8, 4, 4)),
    "b3": Variant(WIDE, (3, 4, 18, 3), (8, 8, 4, 4)),
    "b4": Variant(WIDE, (3, 8, 27, 3), (8, 8, 4, 4)),
    "b5": Variant(WIDE, (3, 6, 40, 3), (4, 4, 4, 4)),
}
DROP_PATH = 0.1  # b0 to b2 in whai362/PVT, Polyp-PVT and KDAS
REDUCTION_EPS = 1e-5


class ReducedAttention(nn.Module):
    """PVTv2's attention with fewer keys than queries, of the parts, and under the names, of transformers' module.

    That one writes the matrix of all pairs four times; here it is never whole.
    """

    query: nn.Module
    key: nn.Module
    value: nn.Module
    proj: nn.Module
    spatial_reduction: nn.Module
    layer_norm: nn.Module

    def __init__(self, parts: nn.Module) -> None:
        super().__init__()
        self.heads = int(parts.num_attention_heads)  # type: ignore[arg-type]
        for name, module in parts.named_children():
            if not isinstance(module, nn.Dropout):  # of probability 0
                self.add_module(name, module)

    def forward(self, hidden_states: Tensor, height: int, width: int, output_attentions: bool = False) -> tuple[Tensor]:
        """(B, height width, C) -> the same shape; the attention itself is not given out."""
        keys = hidden_states
        if hasattr(self, "spatial_reduction"):
            image = keys.transpose(1, 2).unflatten(2, (height, width))
            keys = self.layer_norm(self.spatial_reduction(image).flatten(2).transpose(1, 2))
        q, k, v = (
            each.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, tokens, C / heads)
            for each in (self.query(hidden_states), self.key(keys), self.value(keys))
        )
        context = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return (self.proj(context),)


class PvtV2(nn.Module):
    """Normalised RGB (B, 3, H, W) -> features of four stages, (B, widths[i], H / 2^(i+2), W / 2^(i+2))."""

    def __init__(self, layers: nn.ModuleList, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = layers
        self.widths = widths

    def forward(self, image: Tensor) -> list[Tensor]:
        """Features, shallow first; H and W are multiples of 32."""
        x, features = image, []
        for layer in self.layers:
            (tokens, *_), height, width = layer(x, False)
            x = tokens.transpose(1, 2).unflatten(2, (height, width))
            features.append(x)
        return features


def pvt_v2(variant: str) -> PvtV2:
    """A PVTv2 with random weights, by its name in VARIANTS."""
    from transformers.models.pvt_v2.configuration_pvt_v2 import PvtV2Config
    from transformers.models.pvt_v2.modeling_pvt_v2 import PvtV2Model

    if variant not in VARIANTS:
        raise UserError(f"backbone {variant!r} does not exist; choose one of {', '.join(VARIANTS)}")
    widths, depths, mlp = VARIANTS[variant]
    config = PvtV2Config(hidden_sizes=widths, depths=depths, mlp_ratios=mlp, drop_path_rate=DROP_PATH)
    layers = PvtV2Model(config).encoder.layers
    for name, module in list(layers.named_modules()):
        if name.endswith(("patch_embedding.layer_norm", "attention.layer_norm")):
            module.eps = REDUCTION_EPS
        if name.endswith(".attention"):
            layers.get_submodule(name.rpartition(".")[0]).attention = ReducedAttention(module)
    return PvtV2(layers, widths)


def load_backbone(network: PvtV2, source: str) -> None:
    """Put published ImageNet weights into the network.

    Args:
        network: Any variant.
        source: `hub`; or a `pvt_v2_b*.pth` or the hub's file; or a folder that holds one of them under its name.

    Raises:
        UserError: They cannot be had, or are those of another variant.
    """
    path = from_hub(f"OpenGVLab/pvt_v2_{variant_of(network)}") if source == "hub" else Path(source)
    if path.is_dir():
        names = (f"pvt_v2_{variant_of(network)}.pth", *HUB_FILES)
        path = next((path / name for name in names if (path / name).is_file()), path / names[0])
    state = from_official(read_weights(path))
    own = network.state_dict()
    wrong = [key for key in own if key not in state or state[key].shape != own[key].shape]
    if wrong:
        raise UserError(
            f"{path} does not hold the weights of PVTv2-{variant_of(network)} ({len(wrong)} of {len(own)} tensors are "
            f"missing or of another size, first {wrong[0]}); give the file of that backbone, or choose another backbone"
        )
    network.load_state_dict({key: state[key] for key in own})


def variant_of(network: PvtV2) -> str:
    """The name in VARIANTS."""
    return variant_in(network.state_dict())


def variant_in(state: dict[str, Tensor]) -> str:
    """The name in VARIANTS of weights under this module's names; KeyError or StopIteration if they are of none."""
    width = len(state["layers.0.layer_norm.weight"])
    depths = tuple(len({k.split(".")[3] for k in state if k.startswith(f"layers.{i}.blocks.")}) for i in range(4))
    return next(name for name, v in VARIANTS.items() if (v.widths[0], v.depths) == (width, depths))


def from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under this module's names, from the keys of whai362/PVT (`patch_embed1.proj`) or of the hub.

    Published classifiers (`head.`, `classifier.`) are left out. One `kv` projection becomes `key` and `value`.
    """
    rules = (
        (r"^(?:pvt_v2\.)?encoder\.layers\.", "layers."),  # the hub's
        (r"^patch_embed(\d)\.norm\.", lambda m: f"layers.{int(m[1]) - 1}.patch_embedding.layer_norm."),
        (r"^patch_embed(\d)\.", lambda m: f"layers.{int(m[1]) - 1}.patch_embedding."),
        (r"^block(\d)\.(\d+)\.", lambda m: f"layers.{int(m[1]) - 1}.blocks.{m[2]}."),
        (r"^norm(\d)\.", lambda m: f"layers.{int(m[1]) - 1}.layer_norm."),
        (r"\.attn\.q\.", ".attention.query."),
        (r"\.attn\.sr\.", ".attention.spatial_reduction."),
        (r"\.attn\.norm\.", ".attention.layer_norm."),
        (r"\.attn\.", ".attention."),
        (r"(blocks\.\d+)\.norm(\d)\.", r"\1.layer_norm_\2."),
        (r"\.mlp\.fc(\d)\.", r".mlp.dense\1."),
    )
    renamed = {}
    for key, value in state.items():
        name = key
        for pattern, new in rules:
            name = re.sub(pattern, new, name)
        if name.startswith(("head.", "classifier.")):
            continue
        if ".attention.kv." in name:
            for part, half in zip(("key", "value"), value.chunk(2), strict=True):
                renamed[name.replace(".kv.", f".{part}.")] = half
        else:
            renamed[name] = value
    return renamed
