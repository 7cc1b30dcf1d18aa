"""A teacher that is the moving average of a student (Tarvainen & Valpola 2017)."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn


class MovingAverage(nn.Module):
    """Averages a network's parameters with decay min(`decay`, 1 - 1/(i + 1)) at update i; buffers are copied.

    The bound lets a short run forget its random start. The count is a buffer, so a resumed run goes on with it.
    """

    updates: Tensor

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.decay = decay
        self.register_buffer("updates", torch.zeros((), dtype=torch.float64))

    def forward(self, image: Tensor, modality: Tensor | None = None) -> Tensor:
        """The average network's logits, without a gradient."""
        with torch.no_grad():
            logits: Tensor = self.network(image, modality)
        return logits

    @torch.no_grad()
    def start(self, network: nn.Module) -> None:
        """The network's weights, trained ones: nothing to forget, so the decay is whole from the first update on."""
        self.network.load_state_dict(network.state_dict())
        self.updates.fill_(math.inf)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """One step towards the network."""
        self.updates += 1
        weight = 1 - (1 - 1 / (self.updates + 1)).clamp(max=self.decay)
        for mean, value in zip(self.network.parameters(), network.parameters(), strict=True):
            mean.lerp_(value, weight.to(mean.dtype))
        for kept, buffer in zip(self.network.buffers(), network.buffers(), strict=True):
            kept.copy_(buffer)
