"""NIfTI volumes as stacks of slices and label volumes back, without loss of geometry.

Voxel axes are permuted and flipped, never resampled, so that slices lie across the coarsest axis and look as on a
DICOM viewer: rows run to posterior (axial) or inferior, columns to the patient's left (axial, coronal) or posterior.
Not here: time series, colour, Analyze and .hdr/.img pairs.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..types import UserError
from .guard import check_voxels, extra, reading, require_file
from .images import replacing
from .levels import percentile_window, to_levels, whole

# Where slices, rows and columns run to, for slices across the left-right, anterior-posterior and foot-head axis.
_CODES = (("L", "I", "P"), ("P", "I", "L"), ("S", "P", "L"))
_MILLIMETRES = {"meter": 1000.0, "mm": 1.0, "micron": 0.001, "unknown": 1.0}
_SAME = 1e-3  # spacings this close (relatively) are equally coarse
_GEOMETRY = (
    *("xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)


class Header(NamedTuple):
    """The geometry of a file on disk and how it is turned into slices."""

    shape: tuple[int, ...]  # as stored
    affine: NDArray[np.float64]  # voxel to RAS, in the header's unit
    turn: NDArray[np.float64]  # nibabel's orientation transform: stored axes to (slices, rows, columns)
    sides: tuple[int, int, int]  # slices, rows, columns
    spacing: tuple[float, float, float]  # of these, mm
    placed: NDArray[np.float64]  # (4, 4): (slice, row, column) to RAS, mm; sheared where a gantry was tilted


def read_header(path: Path) -> Header:
    """Shape, affine, slicing and spacing, from the header alone.

    Raises:
        UserError: damaged, another kind of file, 4-D, colour or complex, no usable affine, too many voxels.
    """
    return _header(_load(path), path)


def read_volume(path: Path) -> NDArray[np.uint8]:
    """Intensities (N, H, W): the volume's own 0.5..99.5 percentile to 0..255, one window for all slices.

    scl_slope and scl_inter are applied. Where the percentiles coincide the whole range is taken.

    Raises:
        UserError: as `read_header`; values that are not finite.
    """
    values = _values(path)
    return to_levels(values, *percentile_window(values, path))


def read_mask_volume(path: Path) -> NDArray[np.integer[Any]]:
    """Label values (N, H, W), whole numbers.

    Raises:
        UserError: as `read_header`; fractional values.
    """
    return whole(_values(path), path)


def write_labels_like(path: Path, labels: NDArray[np.uint8], reference: Path) -> None:
    """Write labels (N, H, W), sliced as `read_volume` slices `reference`, with the reference's shape and geometry.

    Affine, q-form and s-form with their codes, zooms and units are copied bit for bit; nothing else of the header, as
    descriptions and extensions may name the patient. `.nii` or `.nii.gz` by `path`; equal labels give equal bytes.

    Raises:
        ValueError: labels of another shape than the reference's slices.
        UserError: the reference cannot be read, another suffix, or the file cannot be written.
    """
    nibabel = extra("nibabel", path)
    source = _load(reference)
    header = _header(source, reference)
    if labels.shape != header.sides:
        raise ValueError(f"labels of {labels.shape} for a volume of {header.sides} slices, rows, columns")
    back = nibabel.orientations.ornt_transform([[0, 1], [1, 1], [2, 1]], header.turn)
    voxels = nibabel.orientations.apply_orientation(labels, back).reshape(header.shape)
    save(path, voxels, _clean(source, voxels))


def save(path: Path, voxels: NDArray[np.uint8], header: Any) -> None:
    """Write stored voxels under a nibabel header, atomically; gzip without time or name."""
    nibabel = extra("nibabel", path)
    name = path.name.lower()
    if not name.endswith((".nii", ".nii.gz")):
        raise UserError(f"{path}: a NIfTI file is named .nii or .nii.gz")
    kind = nibabel.Nifti2Image if isinstance(header, nibabel.Nifti2Header) else nibabel.Nifti1Image
    content = kind(voxels, None, header).to_bytes()
    with replacing(path) as file:
        file.write(gzip.compress(content, compresslevel=6, mtime=0) if name.endswith(".gz") else content)


def _load(path: Path) -> Any:
    nibabel = extra("nibabel", path)
    require_file(path, "a NIfTI file")
    with reading(path, "NIfTI"):
        image = nibabel.load(path, mmap=False)  # a mapped file cannot be replaced on Windows
    if not isinstance(image, nibabel.Nifti1Image):
        raise UserError(f"{path}: its content is {type(image).__name__}; convert it to NIfTI (.nii.gz)")
    return image


def _header(image: Any, path: Path) -> Header:
    with reading(path, "NIfTI"):
        shape, kind = tuple(int(side) for side in image.shape), image.get_data_dtype()
    if len(shape) < 2 or any(side != 1 for side in shape[3:]):
        raise UserError(f"{path}: an array of {'x'.join(map(str, shape))}; save each 3-D frame as its own NIfTI file")
    if kind.kind not in "iufb":
        raise UserError(f"{path}: its voxels are {kind}, not single numbers; save one grey channel")
    check_voxels(path, shape)
    with reading(path, "NIfTI"):
        affine = np.asarray(image.affine, np.float64)
        unit = _MILLIMETRES[image.header.get_xyzt_units()[0]]
    lengths = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) <= 1e-6 * lengths.prod():
        raise UserError(f"{path}: its affine is not invertible; correct the header (q-form, s-form, pixdim)")
    return _sliced(shape, affine, unit)


def _sliced(shape: tuple[int, ...], affine: NDArray[np.float64], unit: float) -> Header:
    from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

    stored = io_orientation(affine)  # row: stored axis; value: which of the patient's axes, and its direction
    sides = (*shape[:3], 1)[:3]
    spacing = np.linalg.norm(affine[:3, :3], axis=0) * unit
    patient = {int(axis): (sides[i], float(spacing[i])) for i, (axis, _) in enumerate(stored)}
    turn = ornt_transform(stored, axcodes2ornt(_CODES[_slice_axis(patient)]))
    order = np.argsort(turn[:, 0])
    slices, rows, columns = (sides[i] for i in order)
    between, down, across = (float(spacing[i]) for i in order)
    placed = np.diag([unit, unit, unit, 1.0]) @ affine @ inv_ornt_aff(turn, sides)
    return Header(shape, affine, turn, (slices, rows, columns), (between, down, across), placed)


def _slice_axis(patient: dict[int, tuple[int, float]]) -> int:
    """Of the patient's axes 0..2 the one with a single voxel, else the coarsest; among equals the last."""
    single = [axis for axis, (side, _) in patient.items() if side == 1]
    if len(single) == 1:
        return single[0]
    coarsest = max(spacing for _, spacing in patient.values())
    return max(axis for axis, (_, spacing) in patient.items() if spacing >= coarsest * (1 - _SAME))


def _values(path: Path) -> NDArray[Any]:
    """Scaled voxels (N, H, W), in the stored type where there is no scaling."""
    image = _load(path)
    header = _header(image, path)
    with reading(path, "NIfTI"):
        from nibabel.orientations import apply_orientation

        voxels = np.asanyarray(image.dataobj).reshape((*header.shape[:3], 1)[:3])
        turned: NDArray[Any] = apply_orientation(voxels, header.turn)
    return turned


def _clean(source: Any, voxels: NDArray[np.uint8]) -> Any:
    """A new header with nothing but the geometry of the source's."""
    header = source.header_class()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(voxels.shape)
    header["pixdim"] = source.header["pixdim"]
    for field in _GEOMETRY:
        header[field] = source.header[field]
    return header
