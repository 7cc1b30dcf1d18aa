"""torch's attention, in a form that leaves as a graph."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(width) + bias) v; (B, heads, N, width)."""
    y = F.scaled_dot_product_attention(query, key, value, bias)
    # The exporter's attention has other strides than torch's, on which a later change of shape would rely.
    return y.clone(memory_format=torch.contiguous_format) if torch.compiler.is_exporting() else y
