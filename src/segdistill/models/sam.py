"""Segment Anything as a promptable teacher (Kirillov et al., ICCV 2023), at any size, classes folded into the batch.

The parameters live in transformers' SAM modules under its names; `load_sam` fills them from the hub, a folder or an
official file (`sam_weights`). The image encoder is computed here, because transformers' is square only and computes the
windows' padding too: at 256 pixels (16 x 16 tokens, windows of 14) two thirds of its tokens are padding. Padded tokens
are all alike, so their keys and values are one vector, computed once; the function is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..types import UserError
from .sam_weights import Origin, Shape, Weights, read_sam, resized, shape_of
from .tiny_vit import Control

PATCH = 16
WIDTH = 256  # of embeddings and prompts
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of SAM's inputs, in 0..255


WITHOUT_WEIGHTS = {"tiny": Shape(96, 3, (0,) * 4, True), "small": Shape(192, 6, (0,) * 8, True)}


class EncoderBlock(nn.Module):
    """A transformer block of SAM's image encoder: tokens (B, h, w, D) -> (B, h, w, D).

    Windows are cut after the first norm and padded with zeros; with `cut_first` before it (KnowSAM's released code), so
    that padded tokens become the norm's bias. A window of 0 is the whole grid.
    """

    layer_norm1: nn.LayerNorm
    attn: Any
    layer_norm2: nn.LayerNorm
    mlp: nn.Module

    def __init__(self, layer: Any, heads: int, window: int, cut_first: bool) -> None:
        super().__init__()
        self.layer_norm1, self.attn = layer.layer_norm1, layer.attn
        self.layer_norm2, self.mlp = layer.layer_norm2, layer.mlp
        self.heads = heads
        self.window = window
        self.cut_first = cut_first

    def attention(self, tokens: Tensor, control: Control | None = None) -> Tensor:
        """What the attention adds to the tokens; a control brings one more key and value into every window."""
        height, width = tokens.shape[1:3]
        qkv = self.attn.qkv(self.layer_norm1(tokens))
        window = (self.window, self.window) if self.window else (height, width)
        windows = cut_windows(self._pad(qkv, window), window)  # (B', h', w', 3D)
        seen = self._attend(windows, control)
        return self.attn.proj(join_windows(seen, height, width))  # type: ignore[no-any-return]

    def _pad(self, qkv: Tensor, window: tuple[int, int]) -> Tensor:
        batch, height, width, _ = qkv.shape
        below, right = -height % window[0], -width % window[1]
        if not below and not right:
            return qkv
        outside = self.layer_norm1.bias if self.cut_first else torch.zeros_like(self.layer_norm1.bias)
        value = self.attn.qkv(outside).to(qkv.dtype)
        qkv = torch.cat([qkv, value.expand(batch, height, right, -1)], 2)
        return torch.cat([qkv, value.expand(batch, below, width + right, -1)], 1)

    def _attend(self, qkv: Tensor, control: Control | None) -> Tensor:
        """Self-attention of each (B, h, w, 3D) with decomposed relative positions (Li et al. 2022) -> (B, h, w, D).

        A query's position terms and a key's row and column are further dimensions of both, so that their product is the
        whole score: torch's fused attention then needs no (hw, hw) bias, whose gradient it does not know.
        """
        batch, height, width, _ = qkv.shape
        q, k, v = qkv.view(batch, height * width, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (B, heads, hw, d)
        depth = q.shape[-1]
        queries, keys = [q * depth**-0.5], [k]
        if self.attn.use_rel_pos:
            grid = q.reshape(batch, self.heads, height, width, depth)
            rows = torch.einsum("bnhwd,hkd->bnhwk", grid, relative(self.attn.rel_pos_h, height))
            columns = torch.einsum("bnhwd,wkd->bnhwk", grid, relative(self.attn.rel_pos_w, width))
            queries += [rows.flatten(2, 3).to(q.dtype), columns.flatten(2, 3).to(q.dtype)]
            keys.append(places(height, width, k).expand(batch, self.heads, -1, -1))
        query, key = torch.cat(queries, -1), torch.cat(keys, -1)
        if control is not None:
            query, key, v = _with_token(query, key, v, control)
        value = F.pad(v, (0, query.shape[-1] - depth))  # fused attention wants one width
        seen = F.scaled_dot_product_attention(query, key, value, scale=1.0)[..., :depth]
        return seen.transpose(1, 2).reshape(batch, height, width, -1)

    def forward(self, tokens: Tensor, control: Control | None = None) -> Tensor:
        """Attention, then MLP, each added; the control's MLP, of the normed tokens, beside the block's."""
        tokens = tokens + self.attention(tokens, control)
        normed = self.layer_norm2(tokens)
        out: Tensor = tokens + self.mlp(normed)
        return out if control is None else out + control.mlp(normed)


def _with_token(query: Tensor, key: Tensor, value: Tensor, control: Control) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys (B', heads, N, d') and values of windows with the control's key, value and bias."""
    windows, heads, n, wide = key.shape
    token_key, token_value = (each_window(x[:, :, None], windows).to(key.dtype) for x in (control.key, control.value))
    bias = each_window(control.bias[:, None, None, None].expand(-1, heads, 1, 1), windows).to(key.dtype)
    last = torch.cat([F.pad(token_key, (0, wide - token_key.shape[-1])), bias], -1)
    key = torch.cat([F.pad(key, (0, 1)), last], 2)
    query = torch.cat([query, query.new_ones(windows, heads, n, 1)], -1)
    return query, key, torch.cat([value, token_value], 2)


def each_window(x: Tensor, windows: int) -> Tensor:
    """What a row of the batch, or all (R = 1), have: (R, ...) -> (windows, ...), rows outermost."""
    return x.expand(windows, *x.shape[1:]) if len(x) == 1 else x.repeat_interleave(windows // len(x), 0)


def relative(table: Tensor, size: int) -> Tensor:
    """Rows of a table (2 size - 1, d) of distances -(size - 1)..size - 1, by query and key: (size, size, d)."""
    steps = torch.arange(size, device=table.device)
    return table[steps[:, None] - steps + size - 1]


def places(height: int, width: int, like: Tensor) -> Tensor:
    """Row and column of each cell of the grid, one-hot: (height * width, height + width)."""
    row = torch.eye(height, dtype=like.dtype, device=like.device).repeat_interleave(width, 0)
    column = torch.eye(width, dtype=like.dtype, device=like.device).repeat(height, 1)
    return torch.cat([row, column], 1)


def cut_windows(x: Tensor, window: tuple[int, int]) -> Tensor:
    """(B, H, W, D), H and W multiples of the window (h, w), -> (B * H/h * W/w, h, w, D)."""
    batch, height, width, _ = x.shape
    h, w = window
    return x.view(batch, height // h, h, width // w, w, -1).transpose(2, 3).reshape(-1, h, w, x.shape[-1])


def join_windows(x: Tensor, height: int, width: int) -> Tensor:
    """Windows (B', h, w, D) -> (B, height, width, D), without the padding."""
    h, w, depth = x.shape[1:]
    down, across = -(-height // h), -(-width // w)
    whole = x.view(-1, down, across, h, w, depth).transpose(2, 3).reshape(-1, down * h, across * w, depth)
    return whole[:, :height, :width].contiguous()  # else a linear layer copies its weight for each row


class Sam(nn.Module):
    """Image encoder, prompt encoder and mask decoder for images of `size` = (H, W).

    `origin` says whose weights these are; None: random ones, so all of it has to train.
    """

    vision_encoder: Any
    prompt_encoder: Any
    mask_decoder: Any
    mean: Tensor
    std: Tensor

    def __init__(
        self, shape: Shape, size: tuple[int, int], origin: Origin | None, *, normalise: bool, cut_first: bool
    ) -> None:
        super().__init__()
        from transformers.models.sam import modeling_sam as hf

        self.size = size
        self.grid = (size[0] // PATCH, size[1] // PATCH)
        self.origin = origin
        config = _config(shape)
        self.vision_encoder = hf.SamVisionEncoder(config.vision_config)
        self.vision_encoder.layers = nn.ModuleList(
            EncoderBlock(layer, shape.heads, window, cut_first)
            for layer, window in zip(self.vision_encoder.layers, shape.windows, strict=True)
        )
        self.prompt_encoder = hf.SamPromptEncoder(config)
        self.prompt_encoder.input_image_size = 1  # coordinates arrive as fractions of the image
        self.mask_decoder = hf.SamMaskDecoder(config.mask_decoder_config)
        frequencies = self.prompt_encoder.shared_embedding
        del frequencies.positional_embedding  # drawn once, never trained: a buffer, as in the official code
        frequencies.register_buffer("positional_embedding", torch.randn(2, WIDTH // 2))
        self._shape_positions()
        scale = 255.0 if normalise else 1.0
        self.register_buffer(
            "mean", torch.tensor(MEAN if normalise else (0.0,) * 3, device="cpu").view(3, 1, 1) / scale, False
        )
        self.register_buffer(
            "std", torch.tensor(STD if normalise else (1.0,) * 3, device="cpu").view(3, 1, 1) / scale, False
        )

    def _shape_positions(self) -> None:
        """Position tables for this grid; transformers' are for a square one."""
        encoder, (height, width) = self.vision_encoder, self.grid
        encoder.pos_embed = nn.Parameter(torch.randn(1, height, width, encoder.config.hidden_size) * 0.02)
        for block in encoder.layers:
            if block.attn.use_rel_pos:
                depth = block.attn.rel_pos_h.shape[1]
                h, w = (block.window, block.window) if block.window else self.grid
                block.attn.rel_pos_h = nn.Parameter(torch.zeros(2 * h - 1, depth))
                block.attn.rel_pos_w = nn.Parameter(torch.zeros(2 * w - 1, depth))

    def encode(self, image: Tensor, controls: Sequence[Control] = ()) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> embedding (B, 256, H/16, W/16); SAM's normalisation is done here.

        `controls`, one per block, are what ESP-MedSAM's teacher adds.
        """
        encoder = self.vision_encoder
        tokens = encoder.patch_embed.projection((image - self.mean) / self.std).permute(0, 2, 3, 1)
        tokens = tokens + encoder.pos_embed
        for i, block in enumerate(encoder.layers):
            tokens = block(tokens, controls[i]) if controls else block(tokens)
        return encoder.neck(tokens)  # type: ignore[no-any-return]

    def positions(self) -> Tensor:
        """Encoding of the grid's cells (1, 256, h, w), which the decoder adds to the embedding."""
        height, width = self.grid
        frequencies = self.prompt_encoder.shared_embedding
        like = frequencies.positional_embedding
        y = (torch.arange(height, device=like.device, dtype=like.dtype) + 0.5) / height
        x = (torch.arange(width, device=like.device, dtype=like.dtype) + 0.5) / width
        cells = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], -1)
        return frequencies(cells).permute(2, 0, 1).unsqueeze(0)  # type: ignore[no-any-return]

    def point_prompt(self, points: Tensor, labels: Tensor, *, with_box: bool = False) -> Tensor:
        """Points (P, N, 2) as x, y in pixels, labels (P, N) 1 object, 0 not -> sparse (P, N + 1, 256).

        The last token says that there is no box; `with_box` leaves it out.
        """
        return self.prompt_encoder._embed_points(self._fractions(points)[:, None], labels[:, None], not with_box)[:, 0]  # type: ignore[no-any-return]

    def box_prompt(self, boxes: Tensor) -> Tensor:
        """Boxes (P, 4) as x1, y1, x2, y2 in pixels -> sparse (P, 2, 256)."""
        corners = self._fractions(boxes.view(-1, 2, 2)).view(-1, 1, 4)
        return self.prompt_encoder._embed_boxes(corners)[:, 0]  # type: ignore[no-any-return]

    def _fractions(self, points: Tensor) -> Tensor:
        """Pixels to fractions, half a unit lower: the prompt encoder adds that half for the pixel's centre."""
        height, width = self.size
        return (points + 0.5) / points.new_tensor([width, height]) - 0.5

    def mask_prompt(self, mask: Tensor) -> Tensor:
        """Mask logits (P, 1, 4h, 4w) -> dense (P, 256, h, w)."""
        return self.prompt_encoder.mask_embed(mask)  # type: ignore[no-any-return]

    def no_mask(self, count: int) -> Tensor:
        """Dense (count, 256, h, w) of a prompt without a mask."""
        weight = self.prompt_encoder.no_mask_embed.weight
        return weight.view(1, WIDTH, 1, 1).expand(count, WIDTH, *self.grid)  # type: ignore[no-any-return]

    def decode(self, embedding: Tensor, sparse: Tensor, dense: Tensor) -> Tensor:
        """Mask logits (P, 4h, 4w) of P = B * C prompts, image by image, in one call of the decoder; single-mask output.

        Args:
            embedding: (B, 256, h, w) of `encode`; every image's is repeated for its C prompts.
            sparse: (P, N, 256), N may be 0.
            dense: (P, 256, h, w).
        """
        embedding = embedding.repeat_interleave(dense.shape[0] // embedding.shape[0], 0)
        positions = self.positions().to(embedding.dtype).expand(len(embedding), -1, -1, -1)
        masks, _ = self.mask_decoder(embedding, positions, sparse.unsqueeze(1), dense, multimask_output=False)
        return masks[:, 0, 0]  # type: ignore[no-any-return]


def _config(shape: Shape) -> Any:
    from transformers.models.sam.configuration_sam import SamConfig

    config: Any = SamConfig(
        vision_config={
            "hidden_size": shape.width,
            "num_hidden_layers": len(shape.windows),
            "num_attention_heads": shape.heads,
            "use_rel_pos": shape.relative,
            "initializer_range": 0.02,  # transformers' 1e-10 makes a random SAM's output vanish
            "image_size": PATCH,  # position tables follow at their own size
        },
        mask_decoder_config={"layer_norm_eps": 1e-5},  # segment-anything's; transformers has 1e-6, off by up to 1e-3
    )
    config.vision_config._attn_implementation = "eager"  # which holds the parameters; the function is ours
    config.mask_decoder_config._attn_implementation = "sdpa"
    return config


def load_sam(teacher: str, size: tuple[int, int]) -> Sam:
    """SAM for images of `size` = (H, W), multiples of 16, from a name, a folder or a file.

    Sizes other than the weights' own (1024 for SAM) resize the absolute positions (bicubic) and the relative positions
    of the blocks that see the whole grid (linear), as is usual when SAM is tuned at another size.

    Args:
        teacher: `tiny` or `small` (random weights), a hub name, a local folder of one, or an official `.pth`.
        size: of the images.

    Raises:
        UserError: the size does not fit, or the weights are missing, unreadable or not SAM's.
    """
    if teacher in WITHOUT_WEIGHTS:
        return random_sam(teacher, size)
    weights = read_sam(teacher)
    if weights.knowsam:
        raise UserError(
            f"{teacher} is an adapted SAM of KnowSAM, which only --method knowsam can use; give SAM's own weights"
        )
    return build_sam(weights, size)


def random_sam(name: str, size: tuple[int, int], *, as_released: bool = False) -> Sam:
    """`tiny` or `small`: no weights, all of it trains."""
    shape = WITHOUT_WEIGHTS[name]._replace(relative=not as_released)
    return Sam(shape, _checked(size), None, normalise=not as_released, cut_first=as_released)


def build_sam(
    weights: Weights, size: tuple[int, int], *, whole_windows: bool = False, as_released: bool = False
) -> Sam:
    """SAM from weights that were read.

    `whole_windows` treats the grid as one window: not SAM's function, but a faster one.
    `as_released` is KnowSAM's code: no relative positions, inputs as they are (in [0, 1]), windows cut before the norm.
    """
    shape = shape_of(weights.state, weights.origin.file)
    windows = tuple(0 for _ in shape.windows) if whole_windows else shape.windows
    shape = shape._replace(windows=windows, relative=shape.relative and not as_released)
    with torch.device("meta"):  # no random numbers for what is overwritten
        normalise = not (as_released or weights.origin.plain)
        sam = Sam(shape, _checked(size), weights.origin, normalise=normalise, cut_first=as_released)
    state = resized(weights.state, shape, sam.grid)
    needed = {key: value.shape for key, value in sam.state_dict().items()}
    wrong = [f"{key} is missing" for key in sorted(needed.keys() - state.keys())]
    wrong += [f"{key} is unknown" for key in sorted(state.keys() - needed.keys())]
    wrong += [
        f"{key} is {tuple(value.shape)}" for key, value in state.items() if needed.get(key, value.shape) != value.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(f"{weights.origin.file}: not SAM's weights ({', '.join(wrong[:3])}{more}); give SAM or MedSAM")
    sam.load_state_dict(state, assign=True)
    return sam


def _checked(size: tuple[int, int]) -> tuple[int, int]:
    if size[0] % PATCH or size[1] % PATCH or min(size) < PATCH:
        raise UserError(
            f"SAM needs sides of multiples of {PATCH}, not {size[0]} x {size[1]}; change the size of the images"
        )
    return size
