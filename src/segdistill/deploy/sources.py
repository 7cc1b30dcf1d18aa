"""What one prediction is of: an image, a volume in one file, or a DICOM series; read as slices, written as its like."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..formats import (
    Series,
    holds_dicom,
    is_volume,
    layout,
    read_image,
    read_mask,
    read_mask_volume,
    read_seg,
    read_series,
    read_volume,
    series_of,
    sort_out,
    split_address,
    voxel_size,
    write_label_volume,
    write_labels,
    write_labels_like,
    write_series_nifti,
    write_series_seg,
)
from ..types import UserError
from .card import Card
from .inputs import distinct_names, find_images, plain

_WAY_OUT = "use --overwrite true or another output folder"


class Source(NamedTuple):
    """Files that are predicted together, and the path of the result without its suffix."""

    files: tuple[Path, ...]
    name: Path
    series: Series | None = None  # of DICOM files
    error: str | None = None  # one line: DICOM files that are not what they should be


def find_sources(inputs: Sequence[str | Path], out: Path) -> list[Source]:
    """As `find_images`; DICOM files that form a series are one source, named after their folder.

    `a.png` and `a.jpg`, or `a.png` and `A.png`, keep their suffix in the result's name. Series of one folder, or one
    beside a file that has the folder's name, are `FOLDER/series-HASH`. A DICOM file that is damaged or no image, and a
    series with missing or doubled positions, are sources with an `error`.

    Raises:
        UserError: as `find_images`.
    """
    found = dict(find_images(inputs, out))
    dicom = [file for file in found if _is_dicom(file)]
    series, _, broken = sort_out(dicom)
    grouped = {file for files in [*(one.files for one in series), *(files for files, _ in broken)] for file in files}
    sources = [Source((file,), relative) for file, relative in found.items() if file not in grouped]
    sources += [Source(one.files, found[one.files[0]].parent / f"series-{one.uid_hash}", one) for one in series]
    sources += [Source(files, found[files[0]], error=str(error)) for files, error in broken]
    names = distinct_names([(_short(source), source.name) for source in sources])
    return [source._replace(name=name) for source, name in zip(sources, names, strict=True)]


def _short(source: Source) -> Path:
    if source.series and source.name.parent != Path():
        return source.name.parent
    return source.name if source.series else plain(source.name)


def suffix_of(source: Source, *, dicom_seg: bool) -> str:
    """Of the result: PNG for an image, NIfTI or DICOM-SEG for DICOM volumes, else the source's own kind.

    Raises:
        UserError: the source's error, a header that cannot be read, or a DICOM volume whose place in the patient is
            unknown.
    """
    if source.error:
        raise UserError(source.error)
    file = source.files[0]
    if _is_dicom(file):
        if not dicom_seg and not source.series and layout(file).slices == 1:
            return ".png"
        _series(source)  # raises where the place in the patient is unknown
        return ".dcm" if dicom_seg else ".nii.gz"
    if not _is_whole(file):
        return ".png"
    return ".h5" if file.suffix.lower() in (".h5", ".hdf5") else ".nii.gz"


def read_slices(source: Source) -> NDArray[np.uint8]:
    """(N, H, W) grey or (N, H, W, 3); an image is one slice.

    Raises:
        UserError: unreadable.
    """
    if source.series:
        return read_series(source.series)
    file = source.files[0]
    return read_volume(file) if _is_whole(file) else read_image(file)[None]


def voxel_of(source: Source) -> float | None:
    """The mm3 of a voxel, of an image or a slice mm2 of a pixel; None where the files do not say."""
    file = source.files[0]
    if source.series or (_is_dicom(file) and layout(file).slices > 1):
        return math.prod(_series(source).spacing)  # from the frames' positions, as the masks are written
    return voxel_size(file)


def write_slices(path: Path, labels: NDArray[np.uint8], source: Source, card: Card) -> None:
    """Class indices (N, H, W) in the geometry of their source; the kind of file is that of `path`.

    Raises:
        UserError: the file cannot be written, or a DICOM source does not say where it lies in the patient.
    """
    file = source.files[0]
    if path.suffix == ".png":
        write_labels(path, labels[0], card.colours)
    elif path.suffix == ".h5":
        write_label_volume(path, labels, file)
    elif not _is_dicom(file):
        write_labels_like(path, labels, file)
    elif path.suffix == ".dcm":
        write_series_seg(path, labels, _series(source), card.classes[1:])
    else:
        write_series_nifti(path, labels, _series(source))


def _is_dicom(file: Path) -> bool:
    """Whether it is a DICOM file, all of it."""
    return split_address(file)[1] is None and holds_dicom(file)


def _is_whole(file: Path) -> bool:
    """Whether it is a file of slices, all of them."""
    return split_address(file)[1] is None and (is_volume(file) or holds_dicom(file))


def _shape(source: Source) -> tuple[int, int, int]:
    """Slices, rows, columns."""
    file = source.files[0]
    held = layout(file)
    alone = split_address(file)[1] is not None
    return (len(source.files) if source.series else 1 if alone else held.slices, *held.shape)


def _series(source: Source) -> Series:
    """A single file as a series of one."""
    return source.series or series_of(source.files[0])


def require_equal(path: Path, labels: NDArray[np.uint8], source: Source, card: Card) -> None:
    """Raise `UserError` where the mask in this place is not what the student makes of the source."""
    if not np.array_equal(read_written(path, source, card), labels):
        raise UserError(f"{path} is not this student's mask of {source.files[0]}; {_WAY_OUT}")


def read_written(path: Path, source: Source, card: Card) -> NDArray[np.uint8]:
    """The class indices (N, H, W) that an earlier run wrote.

    Raises:
        UserError: unreadable, another size than the source, or the values are not this student's classes.
    """
    if path.suffix == ".dcm":
        labels: NDArray[np.integer] = read_seg(path, _series(source))
    else:
        labels = read_mask(path)[None] if path.suffix == ".png" else read_mask_volume(path)
    if labels.max() >= len(card.classes):
        classes = f"{len(card.classes)} classes, but the value {labels.max()} is in it"
        raise UserError(f"{path} is not from this student ({classes}); {_WAY_OUT}")
    if labels.shape != _shape(source):
        sizes = " and ".join("x".join(map(str, shape)) for shape in (labels.shape, _shape(source)))
        raise UserError(f"{path} is not a mask of {source.files[0]} (sizes {sizes}); {_WAY_OUT}")
    return labels.astype(np.uint8)
