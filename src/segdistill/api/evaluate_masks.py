"""Scores of a folder of masks that any tool made, beside reference masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..data.labels import LabelMapping, as_known, build_mapping
from ..data.manifest import load_manifest
from ..data.rows import Manifest, Row
from ..data.several import join_manifests
from ..data.volumes import expand
from ..engine.evaluator import Evaluation, Part, cases_of, evaluate_cases
from ..formats import IMAGE_SUFFIXES, check_pair, is_volume, read_mask, split_address, stem_of
from ..types import UserError
from .data import named_sets
from .references import Split, labelled_rows, resolved, show_meaning, values_in


def evaluate_masks(
    predicted: Path,
    data: Path,
    split: Split,
    tolerance: float,
    *,
    classes: str | None = None,
    threshold: int | str | None = None,
    modality: str | None = None,
) -> Evaluation:
    """Masks against masks, matched by their path without suffix, as far up as it is given.

    What values mean is asked of all references, whatever is scored; options are as for a student.
    """
    manifest, rows, scored = _references(data, split, modality)
    said = named_sets([manifest], classes, threshold)[manifest.name]
    guessed = _matched(rows, manifest.root, predicted)
    references = [row.mask for row in manifest.rows if row.mask]
    truth = build_mapping(values_in(references, said.threshold, len(said.classes or ())), said.classes)
    guess = _meaning(list(guessed.values()), truth, predicted)
    show_meaning("reference values", truth)
    show_meaning("predicted values", guess)

    def look(row: Row) -> Part:
        assert row.mask
        return Part(guess.apply(read_mask(guessed[row.image])), truth.apply(read_mask(row.mask)))

    evaluation = evaluate_cases(
        cases_of(rows, look, {manifest.name: manifest.root}),
        classes=truth.classes,
        dataset=manifest.name,
        tolerance=tolerance,
    )
    evaluation.summary["run"] = {"scored split": scored}
    return evaluation


def _references(data: Path, split: Split, modality: str | None) -> tuple[Manifest, list[Row], str]:
    """A data set, or a plain folder of masks; its labelled rows of a split, and that split."""
    try:
        manifest = load_manifest(data)
    except UserError:
        plain = expand([Row(path, path) for path in _masks_below(data)], data) if data.is_dir() else []
        if not plain:
            raise
        (manifest,) = join_manifests([Manifest(data.resolve().name, data, tuple(plain))], modality)
        return manifest, [*manifest.rows], "all"
    (manifest,) = join_manifests([manifest], modality)
    return manifest, labelled_rows(manifest.rows, split, data), resolved(manifest.rows, split)


def _matched(rows: Sequence[Row], root: Path, predicted: Path) -> dict[Path, Path]:
    """Image -> its predicted mask: the one whose path below its folder is the longest end of the image's.

    So `p1/001` is found for images/p1/001.png, and a flat folder serves where file names occur once.

    Raises:
        UserError: An image without a mask, a mask that two images would claim, two masks of one name, or a volume
            whose mask has other slices or lies elsewhere.
    """
    found = _by_name(predicted)
    files = dict.fromkeys(split_address(row.image)[0] for row in rows)
    names = {file: next((name for name in _names(file, root) if name in found), None) for file in files}
    missing = sorted(next(_names(file, root)) for file, name in names.items() if name is None)
    if missing:
        raise UserError(
            f"{predicted}: no mask for {len(missing)} of {len(files)} references ({', '.join(missing[:3])}); "
            "each needs a mask of the same name"
        )
    owners: dict[str, Path] = {}
    for file, name in names.items():
        first = owners.setdefault(str(name), file)
        if first != file:
            raise UserError(
                f"{predicted}: its mask {name} would be scored for {first} and for {file}; lay the masks out in "
                "folders like the images, or choose one --split"
            )
    masks = {file: found[str(name)] for file, name in names.items()}
    for file, mask in masks.items():
        if is_volume(file) or is_volume(mask):
            check_pair(file, mask)
    return {row.image: _like(masks[split_address(row.image)[0]], row) for row in rows}


def _by_name(predicted: Path) -> dict[str, Path]:
    """The masks by their path in the folder without suffix."""
    found: dict[str, Path] = {}
    for path in _masks_below(predicted):
        name = path.relative_to(predicted).with_name(stem_of(path)).as_posix()
        if name in found:
            raise UserError(f"{predicted}: two masks for {name}, {found[name].name} and {path.name}; remove one")
        found[name] = path
    return found


def _names(file: Path, root: Path) -> Iterator[str]:
    """The path below the root without suffix, then without its first folders, one by one."""
    below = file.relative_to(root) if file.is_relative_to(root) else file
    parts = below.with_name(stem_of(below)).parts
    return ("/".join(parts[start:]) for start in range(len(parts)))


def _meaning(masks: list[Path], truth: LabelMapping, predicted: Path) -> LabelMapping:
    """What predicted values mean: what they mean in the references, or class indices, as `predict` writes them.

    Raises:
        UserError: They may be either, and that makes a difference; or neither.
    """
    index = _as_indices(masks, truth.classes)
    if index and truth.found.threshold is not None:
        return index
    found = index.found if index else values_in(masks, truth.found.threshold, len(truth.classes))
    own = as_known(found, [truth])
    if index and own and index.indices != own.indices:
        raise UserError(
            f"{predicted}: its values {found.listed()} may be class indices or the references' values "
            f"({truth.found.listed()}), which is not the same; renumber the references 0, 1, 2, ..."
        )
    return own or index or build_mapping(found, truth.classes)


def _as_indices(masks: list[Path], classes: Sequence[str]) -> LabelMapping | None:
    """Their values as class indices; None where there are others."""
    try:
        found = values_in(masks, None, len(classes))
    except UserError:  # grey levels, for a threshold; or unreadable, which the next scan says again
        return None
    fit = not found.packed_rgb and found.values[0] >= 0 and found.values[-1] < len(classes)
    return LabelMapping(found, found.values, tuple(classes)) if fit else None


def _like(found: Path, row: Row) -> Path:
    """The predicted mask of a row: of a slice in a file of many, the same slice of the predicted file."""
    slice = split_address(row.image)[1]
    return found.with_name(f"{found.name}#{slice}") if slice is not None and is_volume(found) else found


def _masks_below(folder: Path) -> list[Path]:
    outputs = ("_overlay",)  # what predict writes beside its masks
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    masks = (path for path in files if is_volume(path) or path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path for path in masks if not stem_of(path).endswith(outputs))
