"""Label volumes as DICOM segmentation objects, by highdicom."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..types import UserError
from . import dicom
from .dicom_series import Series, check_shape
from .guard import extra, reading, require_file
from .images import replacing

_STRUCTURE = ("91723000", "SCT", "Anatomical structure")  # no code is known for a class that a user named


def write_series_seg(path: Path, labels: NDArray[np.uint8], series: Series, class_names: Sequence[str]) -> None:
    """Write labels (N, H, W) in slice order as a binary DICOM-SEG; `class_names` leave out background, class i at i-1.

    A segmentation object is part of the patient's record: unlike every other output it carries the patient and study
    of its sources, as the standard requires, copied by highdicom. Each class is an "anatomical structure" in codes,
    its name is the segment's label. Segmented automatically by "segdistill".

    Raises:
        ValueError: labels of another shape than the series, or a label without a name.
        UserError: a source lacks what the standard requires, or the file cannot be written.
    """
    extra("highdicom", path)
    check_shape(labels, series)
    if labels.max(initial=0) > len(class_names):
        raise ValueError(f"label {int(labels.max())} has no name: {len(class_names)} were given")
    source = series.files[0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's warnings quote values, here of the patient too
            segmentation = _segmentation(labels, series, class_names)
    except Exception as error:  # highdicom raises what the missing or odd element leads to
        missing = error.name if isinstance(error, AttributeError) and error.name else type(error).__name__
        raise UserError(f"{source}: lacks what a DICOM segmentation needs ({missing}); write NIfTI instead") from error
    with replacing(path) as file:
        segmentation.save_as(file)


def read_seg(path: Path, series: Series) -> NDArray[np.uint8]:
    """Labels (N, H, W) that `write_series_seg` wrote of this series, in slice order.

    Slices without labels are not in the file, so it does not say how many there were.

    Raises:
        UserError: unreadable, of another series, or segments that overlap.
    """
    highdicom = extra("highdicom", path)
    require_file(path, "a DICOM segmentation")
    with reading(path, "DICOM segmentation", quote=False), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        segmentation = highdicom.seg.segread(path)
        frames = dicom.read_header(series.files[0]).frames
        uids = [str(dicom.read_elements(file, ("SOPInstanceUID",)).SOPInstanceUID) for file in series.files]
        if not {uid for _, _, uid in segmentation.get_source_image_uids()} <= {*uids}:
            raise UserError(f"{path}: a segmentation of other images than {series.files[0]}; give it another name")
        one = frames > 1
        read = segmentation.get_pixels_by_source_frame if one else segmentation.get_pixels_by_source_instance
        labels: NDArray[np.uint8] = read(
            *((uids[0], range(1, frames + 1)) if one else (uids,)),
            combine_segments=True,
            ignore_spatial_locations=True,
            assert_missing_frames_are_empty=True,
            dtype=np.uint8,
        )
    return labels


def _segmentation(labels: NDArray[np.uint8], series: Series, class_names: Sequence[str]) -> Any:
    import highdicom
    import pydicom
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="segdistill", family=codes.DCM.ArtificialIntelligence, version=version("segdistill")
    )
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name[:64],
            segmented_property_category=Code(*_STRUCTURE),
            segmented_property_type=Code(*_STRUCTURE),
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, name in enumerate(class_names, 1)
    ]
    return highdicom.seg.Segmentation(
        source_images=[pydicom.dcmread(path, stop_before_pixels=True) for path in series.files],
        pixel_array=labels,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=highdicom.UID(),
        series_number=1,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="segdistill",
        manufacturer_model_name="segdistill",
        software_versions=version("segdistill"),
        device_serial_number="0",
        content_label="SEGDISTILL",
    )
