"""Scores of a folder of masks that any tool made, beside reference masks."""

from __future__ import annotations

from pathlib import Path

from ..data.manifest import load_manifest
from ..data.rows import Row
from ..data.volumes import expand
from ..engine.evaluator import Evaluation, Part, cases_of, evaluate_cases
from ..formats import IMAGE_SUFFIXES, is_volume, read_mask, split_address, stem_of
from ..types import UserError
from .references import Split, labelled_rows, mapping_of


def evaluate_masks(
    predicted: Path, data: Path, split: Split, classes: list[str] | None, threshold: int | None, tolerance: float
) -> Evaluation:
    """Masks against masks, matched by their path below the folder without suffix."""
    rows, names, root = _references(data, split)
    found = {_name(path, predicted): path for path in _masks_below(predicted)}
    missing = sorted(set(names.values()) - found.keys())
    if missing:
        listed = ", ".join(missing[:3])
        raise UserError(
            f"{predicted}: no mask for {len(missing)} of {len(set(names.values()))} references ({listed}); "
            "each needs a mask of the same name"
        )
    truth = mapping_of([row.mask for row in rows if row.mask], classes, threshold)
    guessed = {row.image: _like(found[names[row.image]], row) for row in rows}
    guess = mapping_of([guessed[row.image] for row in rows], truth.classes, threshold)

    def look(row: Row) -> Part:
        assert row.mask
        return Part(guess.apply(read_mask(guessed[row.image])), truth.apply(read_mask(row.mask)))

    return evaluate_cases(
        cases_of(rows, look, {"": root}), classes=truth.classes, dataset=data.name, tolerance=tolerance
    )


def _references(data: Path, split: Split) -> tuple[list[Row], dict[Path, str], Path]:
    """Labelled rows, the name of each one's file, and their folder; of a data set, or of a plain folder of masks."""
    try:
        manifest = load_manifest(data)
    except UserError:
        plain = expand([Row(path, path) for path in _masks_below(data)], data) if data.is_dir() else []
        if not plain:
            raise
        return plain, {row.image: _name(split_address(row.image)[0], data) for row in plain}, data
    rows = labelled_rows(manifest.rows, split, data)
    return rows, {row.image: stem_of(Path(split_address(row.image)[0].name)) for row in rows}, manifest.root


def _like(found: Path, row: Row) -> Path:
    """The predicted mask of a row: of a slice in a file of many, the same slice of the predicted file."""
    slice = split_address(row.image)[1]
    return found.with_name(f"{found.name}#{slice}") if slice is not None and is_volume(found) else found


def _masks_below(folder: Path) -> list[Path]:
    outputs = ("_overlay",)  # what predict writes beside its masks
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    masks = (path for path in files if is_volume(path) or path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path for path in masks if not stem_of(path).endswith(outputs))


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_name(stem_of(path)).as_posix()
