"""check: what is wrong with a data set, before it spoils a training; and what an augmentation does to its images."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..types import UserError
from .options import parse_size
from .runs import write_json
from .terminal import console

if TYPE_CHECKING:
    from ..data.audit import Audit
    from ..data.rows import Row
    from ..types import Batch

TILE, TILES, COLUMNS = 160, 30, 6  # of the thumbnail sheet: pixels, pictures, pictures in a line


def check(
    data: Path | str | Sequence[Path | str],
    *,
    classes: str | None = None,
    threshold: int | str | None = None,
    json: str | None = None,
    sheet: Path | None = None,
    threads: int | None = None,
) -> Audit:
    """Decode every image and mask once and show what would spoil a training or its scores.

    Args:
        data: Data folder or manifest; or several, to find copies across them.
        classes: Class names, background first, separated by commas; of several sets as "A=background,polyp; B=...".
        threshold: Mask values above it are foreground; or as "A=127; B=0".
        json: Also write facts and findings as JSON to this file; "-" prints them, and nothing else.
        sheet: Also write a contact sheet: the images of the findings first, mask outlines drawn.
        threads: Decoding threads. None: one per core.

    Raises:
        UserError: No data set there, or a file that cannot be written. What is wrong with images is a finding.
    """
    from ..data.audit import judge_sets
    from .data import inspect_sets, load_sets, named_sets

    sets = load_sets([Path(one) for one in ([data] if isinstance(data, str | Path) else data)])
    rows = [row for one in sets for row in one.rows]
    said = named_sets(sets, classes, threshold)
    result = judge_sets(rows, inspect_sets(rows, said, threads), said)
    if json == "-":
        print(_as_text(result))
    else:
        _show(", ".join(said), result)
    if json and json != "-":
        write_json(Path(json), result.to_json())
    if sheet:
        _write_sheet(sheet, rows, result)
        if json != "-":
            console.print(f"sheet: {sheet}", markup=False)
    return result


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
    flips: Literal["both", "horizontal", "vertical", "none"] = "both",
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
        flips: As of `train`.
        seed: Of the augmentation.

    Raises:
        UserError: Unknown preset, nothing to show, unusable data.
    """
    from ..data.labels import colours
    from ..formats import read_image, read_mask, resize_image, resize_labels, write_image
    from ..report.sheet import contact_sheet
    from ..transforms.presets import PRESETS, with_flips
    from .data import load_sets, named_sets, read_mappings

    if preset not in PRESETS:
        raise UserError(f"--show-augment {preset}: choose one of {', '.join(PRESETS)}")
    if images < 1 or versions < 1:
        raise UserError(f"--images {images} --versions {versions}: need numbers of at least 1")
    sets = load_sets([Path(data)])
    rows = [row for row in sets[0].rows if row.mask]
    (mapping,) = read_mappings(rows, named_sets(sets, classes, threshold)).values()
    augment = with_flips(PRESETS[preset], flips)
    tiles: list[tuple[str, Any, Any]] = []
    for number, row in enumerate(rows[:: max(1, len(rows) // images)][:images]):
        assert row.mask
        shape = parse_size(size)
        image = resize_image(read_image(row.image), shape, "squash")
        labels = resize_labels(mapping.apply(read_mask(row.mask)), shape, "squash")
        tiles.append((row.image.name, image, labels))
        tiles += [
            (f"{preset} {n + 1}", *_augmented(image, labels, augment, (seed, number, n))) for n in range(versions)
        ]
    write_image(Path(out), contact_sheet(tiles, colours(len(mapping.classes)), versions + 1))
    console.print(f"{out}: {len(tiles)} pictures", markup=False)
    return Path(out)


def _augmented(image: Any, labels: Any, augment: Callable[[Batch], Batch], place: tuple[int, ...]) -> tuple[Any, Any]:
    """One version of an image and its label map, as arrays again."""
    import torch

    from ..engine.randomness import seed_everything
    from ..types import Batch

    seed_everything(*place)
    one = torch.ones(1, dtype=torch.bool)
    pixels = torch.from_numpy(image)[None].permute(0, 3, 1, 2).float() / 255
    mask = torch.from_numpy(labels)[None].long()
    batch = Batch(pixels, None, mask, one, one[:, None], torch.zeros(1).long(), torch.zeros(1).long())
    batch = augment(batch)
    return (batch.image[0].permute(1, 2, 0) * 255).round().byte().numpy(), batch.mask[0].byte().numpy()


def _as_text(result: Audit) -> str:
    return json.dumps(result.to_json(), indent=1)


def _show(name: str, result: Audit) -> None:
    """Facts as a table, findings as a list, errors first."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(name), title_justify="left", show_header=False)
    for label, value in _facts(result.facts):
        table.add_row(Text(label), Text(value))
    console.print(table)
    for finding in result.findings:
        style = "red" if finding.severity == "error" else "yellow"
        console.print(f"{finding.severity}: {finding.what}", markup=False, style=style, soft_wrap=True)
        for file in finding.files:
            console.print(f"    {file}", markup=False, soft_wrap=True)
        if finding.more:
            console.print(f"    and {finding.more} more", markup=False)
        console.print(f"    -> {finding.way_out}", markup=False, soft_wrap=True)
    warnings = len(result.findings) - len(result.errors)
    console.print(f"kinds of finding: {len(result.errors)} error, {warnings} warning", markup=False)


def _facts(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Lines of the table."""
    yield "images", f"{facts['images']}, {facts['with mask']} with a mask"
    if facts["volumes"]:
        yield "volumes", str(facts["volumes"])
    yield "patients", str(facts["patients"] or "unknown")
    for split, part in facts["splits"].items():
        patients = f", {part['patients']} patients" if part["patients"] else ""
        yield f"split {split}", f"{part['images']} images, {part['with mask']} with a mask{patients}"
    yield "modalities", ", ".join(f"{name} ({count})" for name, count in facts["modalities"].items())
    if sizes := facts["sizes"]:
        height, width = sizes["commonest"]
        span = " to ".join("x".join(map(str, reversed(sizes[end]))) for end in ("smallest", "largest"))
        yield "width x height", f"{width}x{height}" if sizes["different"] == 1 else f"{span}, mostly {width}x{height}"
    yield from _classes("", facts)
    for name, part in facts.get("sets", {}).items():
        yield name, f"{part['images']} images, {part['with mask']} with a mask; {', '.join(part['modalities'])}"
        yield from _classes(f"{name}, ", part)


def _classes(of: str, facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for entry in facts["classes"] or ():
        yield f"{of}class {entry['name']}", f"{entry['pixels']:.2%} of pixels, in {entry['masks']:.1%} of masks"


def _write_sheet(path: Path, rows: Sequence[Row], result: Audit) -> None:
    """A contact sheet of the findings' images, five of each kind, filled up with others evenly spread over the set."""
    from ..data.labels import colours
    from ..formats import write_image
    from ..report.sheet import contact_sheet

    concerned = [number for finding in result.findings for number in finding.rows[:COLUMNS]]
    spread = range(0, len(rows), max(1, len(rows) // TILES))
    numbers = list(dict.fromkeys([*concerned, *spread]))[:TILES]
    tiles = [tile for number in numbers if (tile := _tile(rows[number], result)) is not None]
    if not tiles:
        raise UserError(f"{path}: no image can be read, so there is nothing to show")
    most = max((len(mapping.classes) for mapping in result.mappings.values()), default=1)
    write_image(path, contact_sheet(tiles, colours(most), COLUMNS))


def _tile(row: Row, result: Audit) -> tuple[str, Any, Any] | None:
    """One picture of the sheet; without outlines where the mask cannot be used, None where the image cannot."""
    from ..data.cache import read_labels, truth
    from ..formats import read_image, resize_image, resize_labels

    try:
        image = read_image(row.image)
    except UserError:
        return None
    labels, mask, mapping = None, truth(row), result.mappings.get(row.dataset)
    if mask and mapping:
        try:
            labels = resize_labels(read_labels(mask, mapping, image.shape[:2]), (TILE, TILE), "pad")
        except UserError:
            labels = None  # a finding says so
    return row.image.name, resize_image(image, (TILE, TILE), "pad"), labels
