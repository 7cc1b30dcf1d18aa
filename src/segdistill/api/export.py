"""export and load_student: what one does with a student where torch is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from ..deploy.artefact import read_card
from ..deploy.inputs import find_images
from ..deploy.variants import Exported, Format, Precision, Sample, export_student
from ..types import UserError
from .terminal import console
from .use import student_path

if TYPE_CHECKING:
    from ..data.rows import Row
    from ..data.several import Source
    from ..deploy.card import Card
    from ..deploy.student import Student
    from .references import Split


def export(
    student: Path | str,
    out: Path | str,
    *,
    images: Sequence[Path | str] = (),
    data: Path | str | None = None,
    precision: Precision = "fp32",
    format: Format = "onnx",
    modality: str | None = None,
    threads: int | None = None,
) -> Exported:
    """Write a student as a file with resizing and softmax inside, unless it loses more than half a point of Dice.

    Args:
        student: A student's or a run's folder.
        out: The .onnx file to write; for OpenVINO the .xml, beside which a .bin appears.
        images: Images and volumes to calibrate int8 and to compare on (files, folders, patterns); for fp32 none are
            needed.
        data: A folder or manifest with masks, to measure the Dice on: its validation split where it has one, else its
            training split or all. Calibrates int8 if there are no --images. None: a run's own validation images, for
            bf16 and int8; fp32 is compared with torch on the --images, or synthetic ones.
        precision: bf16 and int8 are refused if the Dice falls by more than 0.005 below fp32. With --images alone that
            is the Dice against fp32's masks, which says more than most int8 files pass.
        format: onnx, or openvino: faster on Intel's processors, above all in bf16; needs segdistill[openvino].
        modality: Bind the file to this one: without the others' weights, and nothing to find out. It is measured on
            images of this one. None: all of them; the file finds an image's modality itself unless it is told.
        threads: CPU threads to compare and to measure with. None: all cores.

    Returns:
        What the check found: images compared, and Dice, size and speed of each form of the student.

    Raises:
        UserError: No such modality, nothing to measure on, too much is lost, or an extra is not installed; what was at
            `out` stays as it was.
    """
    folder, out = student_path(student), Path(out)
    chosen = _slices([source for source, _ in find_images(images)]) if images else []
    card, _ = read_card(folder)
    samples: list[Sample] = []
    if data is not None:
        samples = _given(Path(student), Path(data), card, modality)
    elif not chosen and precision != "fp32":
        samples = _own(Path(student), card, modality)
    result = export_student(
        folder,
        out,
        images=chosen,
        labelled=samples,
        precision=precision,
        file_format=format,
        modality=modality,
        threads=threads,
    )
    _show(out, result)
    return result


def _slices(files: Sequence[Path]) -> list[Path]:
    """The images, a volume as its slices."""
    from ..data.rows import Row
    from ..data.volumes import expand

    return [row.image for row in expand([Row(file, None) for file in files], Path())]


def _given(run: Path, data: Path, card: Card, modality: str | None) -> list[Sample]:
    """The labelled images of a data set that are not for testing, with what its masks mean to the student."""
    from .data import load_sets, named_sets
    from .references import labelled_rows, sources_of, with_saved_splits

    sets = with_saved_splits(run, load_sets([data]))
    splits = {row.split for row in sets[0].rows if row.mask}
    split: Split = "val" if "val" in splits else "train" if "train" in splits else "all"
    rows = _of_modality(labelled_rows(sets[0].rows, split, data), modality, card)
    return _samples(rows, sources_of(sets, card, named_sets(sets, None, None), run), card, sets[0].rows)


def _own(run: Path, card: Card, modality: str | None) -> list[Sample]:
    """The validation images of the run that a path is or lies in; none where there is no run."""
    from .data import run_around, saved_sets

    around = run_around(run)
    if around is None:
        return []
    sources, parts = saved_sets(around)
    rows = [row for part in parts for row in part]
    validation = [row for row in rows if row.split == "val" and row.mask]
    return _samples(_of_modality(validation, modality, card), sources, card, rows)


def _of_modality(rows: Sequence[Row], modality: str | None, card: Card) -> Sequence[Row]:
    """The rows that a file bound to this modality is for: its own, and those of which nobody says what made them."""
    if modality not in card.modalities:  # None, or refused where the student is bound
        return rows
    chosen = [row for row in rows if row.modality in ("", modality)]
    if rows and not chosen:
        raise UserError(f"--modality {modality}: none of these images is of it; give some with --data or --images")
    return chosen


def _samples(rows: Sequence[Row], sources: Mapping[str, Source], card: Card, among: Sequence[Row]) -> list[Sample]:
    from ..data.cache import read_labels
    from ..data.volumes import read_neighbours, with_neighbours
    from ..formats import read_image

    around = with_neighbours(rows, among) if card.neighbours else {}
    samples = []
    for row in rows:
        mapping = sources[row.dataset].mapping
        if row.mask is None or mapping is None:
            continue
        read = partial(read_neighbours, around[row.image]) if around else partial(read_image, row.image)
        scored = tuple(k for k, marked in enumerate(mapping.marks()) if marked and k)
        samples.append(Sample(read, partial(read_labels, row.mask, mapping), scored))
    return samples


def _show(out: Path, result: Exported) -> None:
    """A row per variant; ms and memory are those of a process of its own."""
    table = Table("", "MB", "ms per image", "peak MB", "pixels as torch", "Dice")
    for one in result.variants:
        peak = "–" if one.cost.peak is None else f"{one.cost.peak / 1e6:.0f}"
        ms = f"{one.cost.ms:.3g}" if one.cost.ms < 10 else f"{one.cost.ms:.0f}"
        table.add_row(one.name, f"{one.bytes / 1e6:.1f}", ms, peak, f"{one.equal:.3%}", f"{one.dice:.4f}")
    console.print(table)
    kind = "labelled images" if result.labelled else "images, Dice against torch's masks"
    console.print(
        f"{out}: {result.variants[-1].name}, measured on {result.images} {'' if result.given else 'synthetic '}{kind}",
        markup=False,
        soft_wrap=True,
    )


def load_student(path: Path | str, device: str = "cpu") -> Student:
    """The student of a folder, as a torch module in eval mode.

    Args:
        path: A student's or a run's folder.
        device: cpu or cuda.

    Returns:
        A module that takes an RGB image, uint8 (H, W, 3) of any size, and gives labels, uint8 (H, W), and
        probabilities, float32 (C, H, W), of that size; `card` says what the classes are.

    Raises:
        UserError: No student there, or a damaged or foreign one.
    """
    from ..deploy.artefact import load_student as load

    return load(student_path(path), device)
