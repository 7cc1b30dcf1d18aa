"""One file in, arrays out, and back; all size and safety limits. Imports no torch."""

from __future__ import annotations

from .images import IMAGE_SUFFIXES, MAX_PIXELS, read_image, read_mask, replacing, write_image, write_labels
from .resize import padded_shape, resize_image, resize_labels

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "padded_shape",
    "read_image",
    "read_mask",
    "replacing",
    "resize_image",
    "resize_labels",
    "write_image",
    "write_labels",
]
