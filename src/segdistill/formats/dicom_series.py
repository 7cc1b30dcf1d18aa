"""DICOM files that form a volume: found by their headers, ordered in space, and label volumes back as NIfTI.

A series here is a stack of parallel, evenly spaced images. Files are ordered by position along the slice normal, never
by InstanceNumber, which scanners fill in any order. UIDs stay inside: a short hash stands for a series.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..types import UserError
from . import dicom, nifti
from .guard import check_voxels, extra, reading

_EVEN = 0.01  # how far a slice may lie from its place, as a share of the distance between slices
_PARALLEL = 1e-3  # of direction cosines
_COINCIDE = 1e-3  # mm
_PLANE = ("SeriesInstanceUID", *dicom.SIZE, *dicom.GEOMETRY)


class Series(NamedTuple):
    """A volume: several single-frame files in slice order, or one file with all its frames."""

    files: tuple[Path, ...]
    spacing: tuple[float, float, float]  # mm between slices (planes: a tilted gantry's step is longer), rows, columns
    uid_hash: str  # 16 hexadecimal digits of UID, size, orientation, spacing: a localizer's planes have one UID


class Found(NamedTuple):
    """What DICOM files are, each list in the order in which its first files appear."""

    series: list[Series]
    alone: list[Path]
    broken: list[tuple[tuple[Path, ...], UserError]]  # files that cannot be read, then series that are none


class _Planes(NamedTuple):
    """Where the frames of one file lie, in DICOM's LPS mm."""

    uid: str
    shape: tuple[int, int]  # rows, columns
    positions: NDArray[np.float64]  # (N, 3), centres of the first pixels
    orientation: NDArray[np.float64]  # (2, 3): towards the next column, towards the next row
    spacing: tuple[float, float]  # between rows, between columns
    thickness: float  # for a single slice, which has no distance to a next one

    @property
    def normal(self) -> NDArray[np.float64]:
        return np.cross(self.orientation[0], self.orientation[1])

    def matches(self, other: _Planes) -> bool:
        return (
            (self.uid, self.shape) == (other.uid, other.shape)
            and np.allclose(self.orientation, other.orientation, rtol=0, atol=_PARALLEL)
            and np.allclose(self.spacing, other.spacing, rtol=1e-3)
        )


def find_series(files: Iterable[Path]) -> tuple[list[Series], list[Path]]:
    """Group DICOM files into (series, files that stand alone), both in the order in which they first appear.

    Single-frame files of one SeriesInstanceUID, orientation, size and pixel spacing are a series where there are at
    least two; files with several frames or without a position stand alone.

    Raises:
        UserError: an unreadable file; two files at one position, or uneven gaps (over 1 %).
    """
    found = sort_out(files)
    for _, error in found.broken:
        raise error
    return found.series, found.alone


def sort_out(files: Iterable[Path]) -> Found:
    """As `find_series`; where that would raise, the file or the series is put aside."""
    placed, found = [], Found([], [], [])
    for path in files:
        try:
            placed.append((path, _planes(path)))
        except UserError as error:
            found.broken.append(((path,), error))
    groups = _grouped(placed)
    for group in groups:
        try:
            found.series.append(_ordered(group))
        except UserError as error:
            found.broken.append((tuple(path for path, _ in group), error))
    grouped = {path for group in groups for path, _ in group}
    found.alone.extend(path for path, _ in placed if path not in grouped)
    return found


def series_of(path: Path) -> Series:
    """One file, of one frame or several in slice order, as a series: for writing labels with its geometry.

    The distance of a single slice to its neighbour is SpacingBetweenSlices, else SliceThickness, else 1 mm.

    Raises:
        UserError: no position in the patient (ultrasound, endoscopy, X-ray), or frames that are not evenly spaced.
    """
    planes = _planes(path)
    if planes is None:
        last = dicom.read_header(path).frames - 1
        way_out = f"give its frames, FILE.dcm#0 to FILE.dcm#{last}" if last else "leave --dicom-seg out"
        raise UserError(
            f"{path}: has no position in the patient, so its labels have no geometry; for PNG masks {way_out}"
        )
    return Series((path,), (_between(planes, path), *planes.spacing), _hash(planes))


def read_series(series: Series) -> NDArray[np.uint8]:
    """Images (N, H, W), or (N, H, W, 3) for colour, in slice order.

    Each file by its own rescale and window; where any has none, one 0.5..99.5 percentile window over the whole series.

    Raises:
        UserError: as `dicom.read_volume`, or files of different sizes.
    """
    headers = [dicom.read_header(path) for path in series.files]
    first = headers[0]
    check_voxels(series.files[0], (sum(one.frames for one in headers), first.rows, first.columns))
    for path, header in zip(series.files, headers, strict=True):
        if header[1:3] != first[1:3]:
            raise UserError(
                f"{path}: {header.rows}x{header.columns}, others of its series {first.rows}x{first.columns}"
            )
    return np.concatenate(dicom.to_images([dicom.read_values(path) for path in series.files], series.files[0]))


def series_affine(series: Series) -> NDArray[np.float64]:
    """4x4 from voxel (column, row, slice) to RAS mm, the order of a NIfTI array; a tilted gantry gives a shear.

    Raises:
        UserError: a file changed or lost its geometry since.
    """
    planes = _together(series)
    affine = np.eye(4)
    affine[:3, 0] = planes.orientation[0] * planes.spacing[1]
    affine[:3, 1] = planes.orientation[1] * planes.spacing[0]
    affine[:3, 2] = _step(planes, series.files[0])
    affine[:3, 3] = planes.positions[0]
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # DICOM counts to left and posterior, NIfTI to right and anterior


def write_series_nifti(path: Path, labels: NDArray[np.uint8], series: Series) -> None:
    """Write labels (N, H, W) in slice order as NIfTI with the series' affine; nothing else comes from the files.

    Raises:
        ValueError: labels of another shape than the series.
        UserError: a source cannot be read, another suffix than .nii or .nii.gz, or the file cannot be written.
    """
    nibabel = extra("nibabel", path)
    check_shape(labels, series)
    affine = series_affine(series)
    voxels = np.ascontiguousarray(labels.transpose(2, 1, 0))
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(voxels.shape)
    header.set_zooms(np.linalg.norm(affine[:3, :3], axis=0))
    header.set_xyzt_units("mm")
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if np.allclose(axes.T @ axes, np.eye(3), atol=1e-4):  # a q-form cannot hold a shear
        header.set_qform(affine, code=1)
    header.set_sform(affine, code=1)
    nifti.save(path, voxels, header)


def check_shape(labels: NDArray[np.uint8], series: Series) -> None:
    """Raise `ValueError` where labels (N, H, W) are not of the series' shape."""
    planes = _together(series)
    shape = (len(planes.positions), *planes.shape)
    if labels.shape != shape:
        raise ValueError(f"labels of {labels.shape} for a series of {shape} slices, rows, columns")


def _planes(path: Path) -> _Planes | None:
    """The geometry of a file's frames; None where it has none."""
    data = dicom.read_elements(path, _PLANE)
    header = dicom.header_of(data, path)
    with reading(path, "DICOM", quote=False):
        placed: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
        spacing = header.spacing
        if spacing is None:
            return None
        for frame in range(header.frames):
            one = _frame(data, frame)
            if one is None or not np.allclose(one[1], (placed or [one])[0][1], atol=_PARALLEL):
                return None
            placed.append(one)
        measures = dicom.group("PixelMeasuresSequence", data, 0) or data
        thickness = measures.get("SpacingBetweenSlices") or measures.get("SliceThickness") or 1.0
        return _Planes(
            str(data.get("SeriesInstanceUID", "")),
            (header.rows, header.columns),
            np.stack([one[0] for one in placed]),
            placed[0][1],
            (spacing[-2], spacing[-1]),
            abs(float(thickness)),
        )


def _frame(data: Any, frame: int) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Position (3,) and orientation (2, 3) of a frame; None where missing or not two orthogonal unit vectors."""
    places = (dicom.group("PlanePositionSequence", data, frame), dicom.group("PlaneOrientationSequence", data, frame))
    several = int(data.get("NumberOfFrames") or 1) > 1  # then elements of the file as a whole place no frame
    position, orientation = (place if place or several else data for place in places)
    if not (position and orientation and position.get("ImagePositionPatient")):
        return None
    where = np.asarray(position.ImagePositionPatient, np.float64)
    along = np.asarray(orientation.get("ImageOrientationPatient") or [], np.float64)
    if where.shape != (3,) or along.shape != (6,) or not np.isfinite(where).all():
        return None
    along = along.reshape(2, 3)
    return (where, along) if np.allclose(along @ along.T, np.eye(2), atol=1e-2) else None


def _grouped(placed: Iterable[tuple[Path, _Planes | None]]) -> list[list[tuple[Path, _Planes]]]:
    """Files of one series together, where there are at least two of it."""
    groups: list[list[tuple[Path, _Planes]]] = []
    for path, planes in placed:
        if planes is None or len(planes.positions) > 1 or not planes.uid:
            continue
        group = next((group for group in groups if group[0][1].matches(planes)), None)
        if group is None:
            groups.append(group := [])
        group.append((path, planes))
    return [group for group in groups if len(group) > 1]


def _ordered(group: list[tuple[Path, _Planes]]) -> Series:
    normal = group[0][1].normal
    group = sorted(group, key=lambda item: float(item[1].positions[0] @ normal))
    files = tuple(path for path, _ in group)
    planes = _stacked([planes for _, planes in group])
    return Series(files, (_between(planes, files[0]), *planes.spacing), _hash(planes))


def _together(series: Series) -> _Planes:
    planes = []
    for path in series.files:
        one = _planes(path)
        if one is None:
            raise UserError(f"{path}: has no position in the patient any more; copy the series again")
        planes.append(one)
    return _stacked(planes)


def _stacked(planes: list[_Planes]) -> _Planes:
    return planes[0]._replace(positions=np.concatenate([one.positions for one in planes]))


def _step(planes: _Planes, path: Path) -> NDArray[np.float64]:
    """From one slice to the next, (3,) in LPS mm.

    Raises:
        UserError: positions that coincide or are not evenly spaced on a line.
    """
    positions, count = planes.positions, len(planes.positions)
    if count == 1:
        return planes.normal * planes.thickness
    gaps = np.diff(positions @ planes.normal)
    if np.abs(gaps).min() < _COINCIDE:
        raise UserError(
            f"{path}: two of its series' {count} slices lie at one position; give one phase or copy at a time"
        )
    step: NDArray[np.float64] = (positions[-1] - positions[0]) / (count - 1)
    even = positions[0] + np.arange(count)[:, None] * step
    if np.linalg.norm(positions - even, axis=1).max() > _EVEN * _length(step):
        raise UserError(
            f"{path}: its series' {count} slices are not evenly spaced ({np.abs(gaps).min():.3f} to "
            f"{np.abs(gaps).max():.3f} mm); add what is missing, or give the parts separately"
        )
    return step


def _between(planes: _Planes, path: Path) -> float:
    """The distance in mm between the planes of two slices: the product of the spacings is a voxel's volume."""
    return abs(float(_step(planes, path) @ planes.normal))


def _length(step: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(step))


def _hash(planes: _Planes) -> str:
    """Rounded as `matches` compares, so that what it tells apart differs; + 0.0 makes -0.0 a zero."""
    orientation = [f"{number:.3f}" for number in np.round(planes.orientation.ravel(), 3) + 0.0]
    spacing = [f"{side:.4g}" for side in planes.spacing]
    text = " ".join((planes.uid, *map(str, planes.shape), *orientation, *spacing))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
