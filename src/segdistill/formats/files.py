"""One path, one 2-D image: which reader opens it, and `FILE#k` for slice k of a file that holds several.

`images/brain_001.nii.gz#12` is the thirteenth slice; `a#1.png` is a plain file, as only a volume's suffix before the
last # makes an address. A volume is decoded once for all its slices and the last few are kept.
"""

from __future__ import annotations

import math
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..types import UserError
from . import dicom, hdf5, nifti
from .dicom_window import series_window
from .images import (
    IMAGE_SUFFIXES,
    Decoded,
    decode_raster,
    decode_raster_mask,
    raster_size,
    read_raster,
    read_raster_mask,
)

VOLUME_SUFFIXES = frozenset({".nii", ".nii.gz", ".h5", ".hdf5", ".dcm", ".dicom", ".ima"})  # compare in lower case
KEPT, KEPT_BYTES = 8, 512 * 2**20  # decoded volumes
_TOLERANCE = 1e-3  # of each number of two affines, mm
_ADDRESS = re.compile(r"(.+)#([0-9]{1,9})", re.ASCII | re.DOTALL)
_Key = tuple[str, str, int, int]


class Layout(NamedTuple):
    """What a file holds. An image file holds one slice."""

    slices: int
    shape: tuple[int, int]  # rows, columns
    spacing: tuple[float, ...] | None  # mm: (slices, rows, columns), or (rows, columns), or unknown


def split_address(path: Path) -> tuple[Path, int | None]:
    """The file on disk and the slice: (FILE, k) of FILE#k where FILE has a volume's suffix, else (path, None)."""
    found = _ADDRESS.fullmatch(path.name)
    if found and _volume_suffix(found[1]):
        return path.with_name(found[1]), int(found[2])
    return path, None


def is_volume(path: Path) -> bool:
    """Whether the suffix (the address taken off) is a volume's; such a file may hold one slice or many."""
    return bool(_volume_suffix(split_address(path)[0].name))


def holds_dicom(path: Path) -> bool:
    """Whether a file (the address taken off) is read as DICOM: by its suffix, or by its content where it has none."""
    return _kind(path) == "dicom"


def stem_of(path: Path) -> str:
    """The file's name without address and without the suffix of a kind that is read; `.nii.gz` is one suffix."""
    name = split_address(path)[0].name
    suffix = _volume_suffix(name) or (path.suffix if path.suffix.lower() in IMAGE_SUFFIXES else "")
    return name[: len(name) - len(suffix)]


def read_image(path: Path) -> NDArray[np.uint8]:
    """A plain image, slice FILE#k, or the only slice of a file: 8-bit RGB (H, W, 3), grey repeated.

    Raises:
        UserError: unreadable (see `read_raster`, `nifti`, `hdf5`, `dicom`), several slices and no k, no such slice.
    """
    if _kind(path) == "raster":
        return read_raster(path)
    image = _slice(path, _decoded_image)
    return image.copy() if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)


def read_mask(path: Path) -> NDArray[np.integer[Any]]:
    """The raw values (H, W) of a mask; addressed as `read_image`, and int32 only for colours (see `is_packed`).

    Raises:
        UserError: as `read_image`; fractional values.
    """
    return read_raster_mask(path) if _kind(path) == "raster" else _slice(path, _decoded_mask).copy()


def decode_image(path: Path) -> Decoded:
    """`read_image` with the EXIF orientation of a plain image; UserError as there."""
    return decode_raster(path) if _kind(path) == "raster" else Decoded(read_image(path))


def decode_mask(path: Path) -> Decoded:
    """`read_mask` with EXIF orientation and palette of a plain image; UserError as there."""
    return decode_raster_mask(path) if _kind(path) == "raster" else Decoded(read_mask(path))


def read_volume(path: Path) -> NDArray[np.uint8]:
    """All slices of a file as images, (N, H, W) or (N, H, W, 3); the address is ignored. A plain image is N = 1."""
    return read_raster(path)[None] if _kind(path) == "raster" else _decoded_image(split_address(path)[0]).copy()


def read_mask_volume(path: Path) -> NDArray[np.integer[Any]]:
    """All slices of a file of masks, (N, H, W); the address is ignored. A plain image is N = 1."""
    return read_raster_mask(path)[None] if _kind(path) == "raster" else _decoded_mask(split_address(path)[0]).copy()


def layout(path: Path) -> Layout:
    """Slices, size and spacing of the whole file, from its header; the address is ignored. HDF5: of `image`."""
    return _layout(path, hdf5.IMAGE)


def voxel_size(path: Path) -> float | None:
    """mm3 of a voxel of a volume; mm2 of a pixel of an image or of slice FILE#k; None where the header does not say.

    Of a multi-frame DICOM file by SpacingBetweenSlices; `series_of` knows where its frames lie.
    """
    file, number = split_address(path)
    if _kind(path) == "nifti":
        steps = nifti.read_header(file).placed[:3, :3].T
        return abs(float(np.linalg.det(steps))) if number is None else float(np.linalg.norm(np.cross(*steps[1:])))
    held = layout(path)
    spacing = held.spacing if held.spacing is None or number is None else held.spacing[-2:]
    flat = number is not None or held.slices == 1
    return math.prod(spacing) if spacing and (flat or len(spacing) == 3) else None


def check_pair(image: Path, mask: Path) -> None:
    """Compare an image and its mask by their headers.

    The slices of two NIfTI files must lie at one place, every number of their affines within 0.001 mm; how the voxels
    are stored may differ. An address counts as one slice, unless both are addresses: then their files are compared.

    Raises:
        UserError: another number of slices, another size, another affine; either is unreadable.
    """
    seen = (layout(image), _layout(mask, hdf5.LABEL))
    addressed = [split_address(path)[1] is not None for path in (image, mask)]
    counts = [1 if one and not all(addressed) else held.slices for one, held in zip(addressed, seen, strict=True)]
    ours, theirs = ((n, *held.shape) for n, held in zip(counts, seen, strict=True))
    if ours != theirs:
        raise UserError(
            f"{mask}: has {'x'.join(map(str, theirs))} (slices, rows, columns), its image {image.name} has "
            f"{'x'.join(map(str, ours))}; give the mask of that image, at its size"
        )
    if _kind(image) == _kind(mask) == "nifti" and addressed[0] == addressed[1]:
        first, second = (nifti.read_header(split_address(path)[0]) for path in (image, mask))
        apart = float(np.abs(first.placed - second.placed).max())
        if apart > _TOLERANCE:
            raise UserError(
                f"{mask}: its affine differs from that of its image {image.name} by {apart:.3g} mm; resample the mask "
                "to the image's grid"
            )


def _volume_suffix(name: str) -> str:
    """The volume suffix of a name, as written, or "". A bare ".nii" is a name without suffix."""
    for suffix in sorted(VOLUME_SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[-len(suffix) :]
    return ""


def _kind(path: Path) -> str:
    file = split_address(path)[0]
    suffix = _volume_suffix(file.name).lower()
    if suffix.startswith(".nii"):
        return "nifti"
    if suffix in (".h5", ".hdf5"):
        return "hdf5"
    if suffix or (file.suffix.lower() not in IMAGE_SUFFIXES and dicom.is_dicom(file)):
        return "dicom"
    return "raster"


def _layout(path: Path, dataset: str) -> Layout:
    file, kind = split_address(path)[0], _kind(path)
    if kind == "raster":
        return Layout(1, raster_size(file), None)
    if kind == "hdf5":
        slices, rows, columns = hdf5.read_shape(file, dataset)
        return Layout(slices, (rows, columns), None)
    if kind == "nifti":
        header = nifti.read_header(file)
        return Layout(header.sides[0], header.sides[1:], header.spacing)
    seen = dicom.read_header(file)
    return Layout(seen.frames, (seen.rows, seen.columns), seen.spacing)


def _slice(path: Path, decoded: Callable[[Path], NDArray[Any]]) -> NDArray[Any]:
    file, number = split_address(path)
    volume = decoded(file)
    if number is None and len(volume) > 1:
        raise UserError(f"{file}: holds {len(volume)} slices; name one, {file.name}#0 to {file.name}#{len(volume) - 1}")
    if (number or 0) >= len(volume):
        raise UserError(f"{path}: no such slice; {file.name} holds {len(volume)}, from #0 to #{len(volume) - 1}")
    one: NDArray[Any] = volume[number or 0]
    return one


def _decoded_image(file: Path) -> NDArray[np.uint8]:
    window = series_window(file)  # with which the file, unchanged, looks otherwise
    readers: dict[str, Callable[[Path], NDArray[np.uint8]]] = {
        "nifti": nifti.read_volume,
        "hdf5": hdf5.read_volume,
        "dicom": partial(dicom.read_volume, window=window),
    }
    image: NDArray[np.uint8] = _decoded.get(file, f"image {window}", readers[_kind(file)])
    return image


def _decoded_mask(file: Path) -> NDArray[np.integer[Any]]:
    readers = {"nifti": nifti.read_mask_volume, "hdf5": hdf5.read_mask_volume, "dicom": dicom.read_mask_volume}
    return _decoded.get(file, "mask", readers[_kind(file)])


class _Decoded:
    """The last decoded volumes: at most `KEPT`, and `KEPT_BYTES` unless the last two alone are larger."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._volumes: OrderedDict[_Key, Future[NDArray[Any]]] = OrderedDict()

    def get(self, file: Path, use: str, decode: Callable[[Path], NDArray[Any]]) -> NDArray[Any]:
        """The volume, decoded by the first thread that asks while others wait; a failure is not kept."""
        key = _key(file, use)
        with self._lock:
            future = self._volumes.get(key)
            mine = future is None
            future = future or self._volumes.setdefault(key, Future())
            self._volumes.move_to_end(key)
        if mine:
            try:
                future.set_result(decode(file))
            except BaseException as error:
                with self._lock:
                    self._volumes.pop(key, None)
                future.set_exception(error)
            self._forget()
        return future.result()

    def _forget(self) -> None:
        with self._lock:
            done = [(key, one) for key, one in self._volumes.items() if one.done() and not one.exception()]
            sizes = [one.result().nbytes for _, one in done]
            for number, (key, _) in enumerate(done[:-2]):  # an image and its mask, whatever their size
                if len(done) - number > KEPT or sum(sizes[number:]) > KEPT_BYTES:
                    del self._volumes[key]


def _key(file: Path, use: str) -> _Key:
    try:
        state = file.stat()
    except OSError:
        return str(file), use, -1, -1  # the reader says what is wrong
    return str(file), use, state.st_size, state.st_mtime_ns


_decoded = _Decoded()
