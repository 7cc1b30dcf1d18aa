"""One file in, arrays out, and back; all size and safety limits. Imports no torch."""

from __future__ import annotations

from .files import (
    VOLUME_SUFFIXES,
    Layout,
    check_pair,
    is_volume,
    layout,
    read_image,
    read_mask,
    read_mask_volume,
    read_volume,
    split_address,
    stem_of,
)
from .images import IMAGE_SUFFIXES, MAX_PIXELS, replacing, write_image, write_labels
from .resize import padded_shape, resize_image, resize_labels

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "VOLUME_SUFFIXES",
    "Layout",
    "check_pair",
    "is_volume",
    "layout",
    "padded_shape",
    "read_image",
    "read_mask",
    "read_mask_volume",
    "read_volume",
    "replacing",
    "resize_image",
    "resize_labels",
    "split_address",
    "stem_of",
    "write_image",
    "write_labels",
]
