"""One file in, arrays out, and back; all size and safety limits. Imports no torch."""

from __future__ import annotations

from .dicom_seg import read_seg, write_series_seg
from .dicom_series import Series, find_series, read_series, series_of, sort_out, write_series_nifti
from .dicom_window import DICOM_SUFFIXES, dicom_files, series_window
from .files import (
    VOLUME_SUFFIXES,
    Layout,
    check_pair,
    decode_image,
    decode_mask,
    holds_dicom,
    is_volume,
    layout,
    read_image,
    read_mask,
    read_mask_volume,
    read_volume,
    split_address,
    stem_of,
    voxel_size,
)
from .hdf5 import write_label_volume
from .images import (
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    jpeg_of_image,
    png_of_image,
    png_of_labels,
    read_raster_bytes,
    replacing,
    write_image,
    write_labels,
)
from .nifti import write_labels_like
from .resize import padded_shape, resize_image, resize_labels

__all__ = [
    "DICOM_SUFFIXES",
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "VOLUME_SUFFIXES",
    "Layout",
    "Series",
    "check_pair",
    "decode_image",
    "decode_mask",
    "dicom_files",
    "find_series",
    "holds_dicom",
    "is_volume",
    "jpeg_of_image",
    "layout",
    "padded_shape",
    "png_of_image",
    "png_of_labels",
    "read_image",
    "read_mask",
    "read_mask_volume",
    "read_raster_bytes",
    "read_seg",
    "read_series",
    "read_volume",
    "replacing",
    "resize_image",
    "resize_labels",
    "series_of",
    "series_window",
    "sort_out",
    "split_address",
    "stem_of",
    "voxel_size",
    "write_image",
    "write_label_volume",
    "write_labels",
    "write_labels_like",
    "write_series_nifti",
    "write_series_seg",
]
