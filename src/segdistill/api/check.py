"""check: what an augmentation preset does to the user's own images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..types import UserError
from .data import read_mapping
from .options import TrainOptions, parse_size
from .terminal import console


def show_augment(
    data: Path | str,
    preset: str,
    out: Path | str = "augmented.png",
    *,
    size: int | str = 256,
    classes: str | None = None,
    threshold: int | None = None,
    images: int = 4,
    versions: int = 3,
    seed: int = 0,
) -> Path:
    """Write a contact sheet of a preset: each image as it is, then some of its versions, mask outlines drawn.

    Args:
        data: Data folder or manifest.
        preset: weak, strong, weak_strong or evaluation.
        out: The PNG to write.
        size: Training size, "128" or "128x192".
        classes: Class names, background first, separated by commas.
        threshold: Mask values above it are foreground.
        images: Images shown.
        versions: Versions of each.
        seed: Of the augmentation.

    Raises:
        UserError: Unknown preset, unusable data.
    """
    from ..data.labels import colours
    from ..data.manifest import load_manifest
    from ..formats import read_image, read_mask, resize_image, resize_labels, write_image
    from ..report.sheet import contact_sheet
    from ..transforms.presets import PRESETS

    if preset not in PRESETS:
        raise UserError(f"--show-augment {preset}: choose one of {', '.join(PRESETS)}")
    rows = [row for row in load_manifest(Path(data)).rows if row.mask]
    mapping = read_mapping(rows, TrainOptions(classes=classes, threshold=threshold))
    tiles: list[tuple[str, Any, Any]] = []
    for number, row in enumerate(rows[:: max(1, len(rows) // images)][:images]):
        assert row.mask
        shape = parse_size(size)
        image = resize_image(read_image(row.image), shape, "squash")
        labels = resize_labels(mapping.apply(read_mask(row.mask)), shape, "squash")
        tiles.append((row.image.name, image, labels))
        tiles += [(f"{preset} {n + 1}", *_augmented(image, labels, preset, (seed, number, n))) for n in range(versions)]
    write_image(Path(out), contact_sheet(tiles, colours(len(mapping.classes)), versions + 1))
    console.print(f"{out}: {len(tiles)} pictures", markup=False)
    return Path(out)


def _augmented(image: Any, labels: Any, preset: str, place: tuple[int, ...]) -> tuple[Any, Any]:
    """One version of an image and its label map, as arrays again."""
    import torch

    from ..engine.randomness import seed_everything
    from ..transforms.presets import PRESETS
    from ..types import Batch

    seed_everything(*place)
    one = torch.ones(1, dtype=torch.bool)
    pixels = torch.from_numpy(image)[None].permute(0, 3, 1, 2).float() / 255
    mask = torch.from_numpy(labels)[None].long()
    batch = Batch(pixels, None, mask, one, one[:, None], torch.zeros(1).long(), torch.zeros(1).long())
    batch = PRESETS[preset](batch)
    return (batch.image[0].permute(1, 2, 0) * 255).round().byte().numpy(), batch.mask[0].byte().numpy()
