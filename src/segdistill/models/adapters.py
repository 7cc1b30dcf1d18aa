"""Adapters d -> d/4 -> d in SAM's encoder and decoder (Chen et al. 2023), placed as in KnowSAM's released code.

Their last layer starts at zero, so that the adapted SAM equals SAM at step 0; as released it starts random, and the
decoder's self-attention is another one (EfficientSAM's).
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .sam import EncoderBlock, Sam

SCALE = 0.5  # of the adapter parallel to the MLP; released code


class Adapter(nn.Module):
    """What to add to tokens (..., d)."""

    def __init__(self, width: int, zero: bool) -> None:
        super().__init__()
        self.down = nn.Linear(width, width // 4)
        self.up = nn.Linear(width // 4, width)
        if zero:
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Without the skip: that is the caller's."""
        added: Tensor = self.up(F.gelu(self.down(tokens)))
        return added


class AdaptedBlock(nn.Module):
    """A block of the image encoder with an adapter after the attention and one parallel to the MLP."""

    def __init__(self, block: EncoderBlock, width: int, zero: bool) -> None:
        super().__init__()
        self.block = block
        self.after = Adapter(width, zero)
        self.beside = Adapter(width, zero)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, h, w, D) -> (B, h, w, D)."""
        seen = self.block.attention(tokens)
        tokens = tokens + seen + self.after(seen)
        normed = self.block.layer_norm2(tokens)
        out: Tensor = tokens + self.block.mlp(normed) + SCALE * self.beside(normed)
        return out


class AdaptedTwoWayLayer(nn.Module):
    """A layer of the decoder's two-way transformer; one adapter follows each of its three attentions."""

    layer: Any

    def __init__(self, layer: nn.Module, width: int, zero: bool) -> None:
        super().__init__()
        self.layer = layer
        self.after = Adapter(width, zero)
        self.beside = Adapter(width, zero)

    def _attend(self, attention: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        seen, _ = attention(query=query, key=key, value=value)
        adapted: Tensor = seen + self.after(seen)
        return adapted

    def _attend_each_other(self, queries: Tensor, at: Tensor) -> Tensor:
        attention = self.layer.self_attn
        if self.layer.skip_first_layer_pe:
            return self._attend(attention, queries, queries, queries)
        return queries + self._attend(attention, queries + at, queries + at, queries)

    def forward(
        self, queries: Tensor, keys: Tensor, query_point_embedding: Tensor, key_point_embedding: Tensor, **_: Any
    ) -> tuple[Tensor, Tensor, None]:
        """As transformers' SamTwoWayAttentionBlock: queries (B, P, N, D), keys (B, P, hw, D)."""
        at, layer = query_point_embedding, self.layer
        queries = layer.layer_norm1(self._attend_each_other(queries, at))
        image = keys + key_point_embedding
        queries = queries + self._attend(layer.cross_attn_token_to_image, queries + at, image, keys)
        queries = layer.layer_norm2(queries)
        queries = layer.layer_norm3(queries + layer.mlp(queries) + SCALE * self.beside(queries))
        keys = keys + self._attend(layer.cross_attn_image_to_token, image, queries + at, queries)
        return queries, layer.layer_norm4(keys), None


class ReleasedTwoWayLayer(AdaptedTwoWayLayer):
    """As released: the tokens' self-attention is EfficientSAM's, not SAM's.

    Its first layer keeps the skip; the second attends from, to and on top of tokens with their encoding.
    """

    def _attend_each_other(self, queries: Tensor, at: Tensor) -> Tensor:
        queries = queries if self.layer.skip_first_layer_pe else queries + at
        return queries + self._attend(self.layer.self_attn, queries, queries, queries)


class AdaptedTwoWay(nn.Module):
    """The decoder's two-way transformer with adapters in it and after its final attention."""

    def __init__(self, transformer: Any, layers: list[AdaptedTwoWayLayer], width: int, zero: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.final_attn_token_to_image = transformer.final_attn_token_to_image
        self.layer_norm_final_attn = transformer.layer_norm_final_attn
        self.after = Adapter(width, zero)

    def forward(
        self, point_embeddings: Tensor, image_embeddings: Tensor, image_positional_embeddings: Tensor, **_: Any
    ) -> tuple[Tensor, Tensor]:
        """As transformers' SamTwoWayTransformer: tokens (B, P, N, D), images (B, D, h, w)."""
        keys, positions = (
            x.flatten(2).transpose(1, 2).unsqueeze(1) for x in (image_embeddings, image_positional_embeddings)
        )
        queries = point_embeddings
        for layer in self.layers:
            queries, keys, _ = layer(queries, keys, point_embeddings, positions)
        seen, _ = self.final_attn_token_to_image(query=queries + point_embeddings, key=keys + positions, value=keys)
        queries = self.layer_norm_final_attn(queries + seen + self.after(seen))
        return queries + self.after(queries), keys  # the same adapter once more: as released


def adapt(sam: Sam, *, as_released: bool = False) -> None:
    """Put adapters into a SAM; what was frozen before stays so, the adapters train."""
    zero = not as_released
    encoder, decoder = sam.vision_encoder, sam.mask_decoder
    encoder.layers = nn.ModuleList(AdaptedBlock(block, encoder.config.hidden_size, zero) for block in encoder.layers)
    kind = ReleasedTwoWayLayer if as_released else AdaptedTwoWayLayer
    layers = [kind(layer, decoder.hidden_size, zero) for layer in decoder.transformer.layers]
    decoder.transformer = AdaptedTwoWay(decoder.transformer, layers, decoder.hidden_size, zero)
