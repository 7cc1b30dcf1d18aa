"""Modality controllers: what each modality adds to the shared trunk, all modalities of a batch in one pass.

ESP-MedSAM's MC (arXiv 2407.14153): in each transformer block one more key and value per window and one more MLP
beside the block's own, 3.14 M parameters per modality. Rows are dispatched by `Rows`, so that no loop over the images
is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .tiny_vit import BLOCKS, Control, Mlp

TOKEN_RANGE = 0.0875  # sqrt(6 / (3 * 16 * 16 + 16)), released code
START_BIAS = -8.0  # released: 0. The extra key starts with about exp(-8) of a token's weight: S2 starts from S1


class Rows(NamedTuple):
    """Which modality each row of a batch has. `groups` is empty where a graph that routes one image is traced."""

    modality: Tensor  # (B,) long
    groups: tuple[tuple[int, Tensor], ...]  # (modality, its rows), each modality that is present
    inverse: Tensor  # (B,) where a row lies after the groups were put one after the other

    @classmethod
    def of(cls, modality: Tensor, modalities: int) -> Rows:
        """Group the rows; reads the modalities on the host, once per pass."""
        order = modality.argsort(stable=True)
        if modalities == 1:
            return cls(torch.zeros_like(modality), ((0, order),), order.argsort())
        if torch.compiler.is_exporting():
            return cls(modality, (), order)
        values = modality.tolist()
        present = sorted(set(values))
        parts = order.split([values.count(k) for k in present])
        return cls(modality, tuple(zip(present, parts, strict=True)), order.argsort())

    def pick(self, values: Sequence[Tensor]) -> Tensor:
        """Each row's tensor of one per modality: (R, ...), R = 1 where all rows have the same.

        Those of absent modalities are left out: even a gradient of zero would let Adam move them.
        """
        if len(self.groups) == 1:
            return values[self.groups[0][0]][None]
        if not self.groups:
            return torch.stack(list(values))[self.modality]
        parts = [values[k].expand(len(rows), *values[k].shape) for k, rows in self.groups]
        return torch.cat(parts)[self.inverse]

    def apply(self, modules: Sequence[nn.Module], x: Tensor) -> Tensor:
        """Each row of x (B, ...) through its modality's module."""
        if not self.groups:
            z: Tensor = self.traced(modules, x)
            return z
        parts = [modules[k](x if len(self.groups) == 1 else x[rows]) for k, rows in self.groups]
        return parts[0] if len(parts) == 1 else torch.cat(parts)[self.inverse]

    def traced(self, modules: Sequence[nn.Module], *arguments: Any) -> Any:
        """One image's module where its modality is known only when the graph runs, which then chooses the weights."""
        tensors = [{**dict(m.named_parameters()), **dict(m.named_buffers())} for m in modules]
        chosen = {name: torch.stack([t[name] for t in tensors])[self.modality[0]] for name in tensors[0]}
        return functional_call(modules[0], chosen, arguments)


class Controller(nn.Module):
    """One modality's part in one block. A `shared` token is key and value at once, as released."""

    def __init__(self, dim: int, heads: int, shared: bool) -> None:
        super().__init__()
        self.key = nn.Parameter(torch.empty(heads, dim // heads).uniform_(-TOKEN_RANGE, TOKEN_RANGE))
        self.value = None if shared else nn.Parameter(self.key.detach().clone())
        self.bias = nn.Parameter(torch.tensor(START_BIAS))
        self.mlp = Mlp(dim)
        nn.init.trunc_normal_(self.mlp.fc1.weight, std=0.02)
        for parameter in (self.mlp.fc1.bias, self.mlp.fc2.weight, self.mlp.fc2.bias):
            nn.init.zeros_(parameter)


class Controllers(nn.ModuleList):
    """One modality's controllers, a Controller per block of the trunk."""

    def __init__(self, shared: bool) -> None:
        super().__init__(Controller(dim, heads, shared) for dim, heads in BLOCKS)


def controls(bank: Sequence[nn.Module], rows: Rows) -> list[Control]:
    """What the trunk needs in each block for these rows, from one `Controllers` per modality."""
    return [_control([modality[i] for modality in bank], rows) for i in range(len(BLOCKS))]  # type: ignore[index]


def _control(modalities: list[Controller], rows: Rows) -> Control:
    key = rows.pick([c.key for c in modalities])
    value = rows.pick([c.key if c.value is None else c.value for c in modalities])
    mlps = [c.mlp for c in modalities]
    return Control(key, value, rows.pick([c.bias for c in modalities]), lambda x: rows.apply(mlps, x))
