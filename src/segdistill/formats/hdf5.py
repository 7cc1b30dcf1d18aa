"""HDF5 files in SSL4MIS's layout: datasets `image` and `label`, one slice (H, W) or several (N, H, W).

Not here: other names, colour, spacing (the layout has none). Nothing outside the file is opened: links to other files,
external storage and virtual datasets are refused.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..types import UserError
from .guard import check_voxels, extra, reading, require_file
from .images import replacing
from .levels import percentile_window, to_levels, whole

IMAGE, LABEL = "image", "label"
_UNIT = 1e-6  # how far from [0, 1] a rescaled image may lie


def read_shape(path: Path, name: str) -> tuple[int, int, int]:
    """Slices, rows, columns of dataset `name`, without reading it.

    Raises:
        UserError: damaged, another kind of file, no such dataset, not 2-D or 3-D numbers, too many voxels.
    """
    with _dataset(path, name) as data:
        return _sides(data)


def read_volume(path: Path) -> NDArray[np.uint8]:
    """Dataset `image` as (N, H, W), 8 bits.

    uint8 is taken as is. Floats that all lie in [0, 1] are multiplied by 255 and rounded: the layout's files are
    normalised by volume, so a slice is not stretched on its own. Anything else: the file's 0.5..99.5 percentile window.

    Raises:
        UserError: as `read_shape`; values that are not finite.
    """
    with _dataset(path, IMAGE) as data:
        values = np.asarray(data[()]).reshape(_sides(data))
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind == "f" and values.min() >= -_UNIT and values.max() <= 1 + _UNIT:
        return to_levels(values, 0.0, 1.0)
    return to_levels(values, *percentile_window(values, path))


def read_mask_volume(path: Path) -> NDArray[np.integer[Any]]:
    """Dataset `label` as (N, H, W), whole numbers.

    Raises:
        UserError: as `read_shape`; fractional values.
    """
    with _dataset(path, LABEL) as data:
        values = np.asarray(data[()]).reshape(_sides(data))
    return whole(values, path)


def write_label_volume(path: Path, labels: NDArray[np.uint8], reference: Path | None = None) -> None:
    """Write labels (N, H, W) as dataset `label`, compressed; as (H, W) where `image` of the reference is.

    Raises:
        ValueError: labels of another size than the reference's image.
        UserError: the reference cannot be read, or the file cannot be written.
    """
    h5py = extra("h5py", path)
    if reference:
        with _dataset(reference, IMAGE) as image:
            shape = image.shape
        labels = labels.reshape(shape)
    content = io.BytesIO()  # a file that fails, on a full disk, ends the process inside libhdf5
    with h5py.File(content, "w") as file:
        file.create_dataset(LABEL, data=labels, compression="gzip", track_times=False)
    with replacing(path) as target:
        target.write(content.getbuffer())


def _sides(data: Any) -> tuple[int, int, int]:
    slices, rows, columns = (1, *data.shape)[-3:]
    return int(slices), int(rows), int(columns)


@contextmanager
def _dataset(path: Path, name: str) -> Iterator[Any]:
    h5py = extra("h5py", path)
    require_file(path, "an HDF5 file")
    with reading(path, "HDF5"), h5py.File(path, "r", locking="best-effort") as file:
        if name not in file:
            held = ", ".join(sorted(map(str, file))[:10]) or "nothing"
            raise UserError(f'{path}: has no dataset "{name}" (it holds: {held}); rename it, SSL4MIS uses image, label')
        inside = isinstance(file.get(name, getlink=True), h5py.HardLink) and isinstance(file[name], h5py.Dataset)
        if not inside or file[name].is_virtual or file[name].external:
            raise UserError(f'{path}: "{name}" is a group or lies in another file; copy its data into this one')
        data = file[name]
        if len(data.shape or ()) not in (2, 3) or data.dtype.kind not in "iufb":
            raise UserError(
                f'{path}: "{name}" is {data.dtype} of shape {data.shape}; needed are numbers as (rows, columns) or '
                "(slices, rows, columns)"
            )
        check_voxels(path, data.shape)
        yield data
