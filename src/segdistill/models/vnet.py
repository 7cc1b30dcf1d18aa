"""The 2-D V-Net of KnowSAM: 16 to 256 filters, additive skips, 3.27 M parameters at two classes.

Milletari et al. 2016, in the two-dimensional version of KnowSAM's released code (its `VNet`, whose skips leave before a
stage's convolutions); official keys load by `from_official`. Takes RGB in [0, 1] as it is, as in the released code.
Released without normalisation; `normalised` adds batch norm to each convolution but the head.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from .padding import pad_to_multiple

WIDTHS = (16, 32, 64, 128, 256)
CONVOLUTIONS = (1, 2, 3, 3, 3)  # per encoder stage; the decoder mirrors them without the deepest
OFFICIAL = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def activated(convolution: nn.Conv2d | nn.ConvTranspose2d, normalised: bool) -> list[nn.Module]:
    """The convolution, batch norm if asked for, ReLU."""
    norm = [nn.BatchNorm2d(convolution.out_channels)] if normalised else []
    return [convolution, *norm, nn.ReLU(inplace=True)]


def convolutions(inputs: int, outputs: int, count: int, normalised: bool = False) -> nn.Sequential:
    """`count` 3x3 convolutions, each with ReLU."""
    layers: list[nn.Module] = []
    for i in range(count):
        layers += activated(nn.Conv2d(inputs if i == 0 else outputs, outputs, 3, padding=1), normalised)
    return nn.Sequential(*layers)


class VNet(nn.Module):
    """(B, 3, H, W) in [0, 1] -> logits (B, classes, H, W); any size, padded inside to a multiple of 16."""

    def __init__(self, classes: int, normalised: bool = False) -> None:
        super().__init__()
        pairs = list(pairwise(WIDTHS))
        stages = list(zip((3, *WIDTHS[1:]), WIDTHS, CONVOLUTIONS, strict=True))

        def down(a: int, b: int) -> nn.Sequential:
            return nn.Sequential(*activated(nn.Conv2d(a, b, 2, stride=2), normalised))

        def up(a: int, b: int) -> nn.Sequential:
            return nn.Sequential(*activated(nn.ConvTranspose2d(b, a, 2, stride=2), normalised))

        self.encoder = nn.ModuleList(convolutions(*stage, normalised) for stage in stages)
        self.down = nn.ModuleList(down(a, b) for a, b in pairs)
        self.up = nn.ModuleList(up(a, b) for a, b in pairs[::-1])
        self.decoder = nn.ModuleList(
            convolutions(w, w, n, normalised) for w, n in zip(WIDTHS[-2::-1], CONVOLUTIONS[-2::-1], strict=True)
        )
        self.head = nn.Conv2d(WIDTHS[0], classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight)

    def encode(self, image: Tensor) -> list[Tensor]:
        """The four skips, shallow first, and the deepest features; the image padded to a multiple of 16."""
        skip = x = self.encoder[0](pad_to_multiple(image, 2 ** len(self.down)))
        skips = []
        for down, block in zip(self.down, self.encoder[1:], strict=True):
            skips.append(skip)
            skip = down(x)  # a stage's skip is its input, not its output as in Milletari's: as released
            x = block(skip)
        return [*skips, x]

    def decode(self, features: list[Tensor]) -> Tensor:
        """Logits from the features of `encode`, at the padded size."""
        x, skips = features[-1], features[:-1]
        for up, block, skip in zip(self.up, self.decoder, reversed(skips), strict=True):
            x = block(up(x) + skip)
        logits: Tensor = self.head(x)
        return logits

    def forward(self, image: Tensor, modality: Tensor | None = None) -> Tensor:
        """Logits at the size of the image; the modality is not used."""
        height, width = image.shape[-2:]
        return self.decode(self.encode(image))[..., :height, :width]

    @staticmethod
    def from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """KnowSAM's V-Net keys (`VNet.block_one.conv.0...` in SGDL_best_model.pth) under this network's names."""
        names = {"out_conv": "head"}
        for i, word in enumerate(OFFICIAL):
            names[f"block_{word}.conv"] = f"encoder.{i}" if i < 5 else f"decoder.{i - 5}"
            names[f"block_{word}_dw.conv"] = f"down.{i}"
            names[f"block_{word}_up.conv"] = f"up.{i - 4}"
        prefix = "VNet."
        renamed = {}
        for key, value in state.items():
            if key.startswith(prefix):
                part, _, rest = key.removeprefix(prefix).partition(".")
                part, rest = (
                    (part, rest) if part in names else (f"{part}.{rest.partition('.')[0]}", rest.partition(".")[2])
                )
                renamed[f"{names[part]}.{rest}"] = value
        return renamed
