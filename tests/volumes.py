"""Small medical files for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

MR, CT = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.2"
SECRET = "Secret^Patient"


def save_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None, **fields: object) -> Path:
    image = nibabel.Nifti1Image(voxels, np.eye(4) if affine is None else affine)
    for name, value in fields.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


def dataset(pixels: np.ndarray, **elements: Any) -> FileDataset:
    """(H, W) or (N, H, W) grey, or (H, W, 3) colour where SamplesPerPixel is 3; any element by keyword."""
    colour = elements.get("SamplesPerPixel", 1) == 3
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = elements.get("SOPClassUID", MR)
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.PatientName, data.PatientID, data.PatientBirthDate, data.PatientSex = SECRET, "SecretID", "19700101", "O"
    data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = "1.2.3", "1.2.3.4", "1.2.3.5"
    data.StudyDate, data.StudyTime, data.StudyID, data.AccessionNumber = "20200101", "120000", "1", "A1"
    data.ReferringPhysicianName, data.Manufacturer, data.Modality = "", "Maker", "MR"
    data.SeriesNumber, data.InstanceNumber, data.PositionReferenceIndicator = 1, 1, ""
    sides = pixels.shape[:2] if colour else pixels.shape[-2:]
    data.Rows, data.Columns = int(sides[0]), int(sides[1])
    if pixels.ndim == 3 and not colour:
        data.NumberOfFrames = len(pixels)
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    bits = pixels.dtype.itemsize * 8
    data.BitsAllocated, data.BitsStored, data.HighBit = bits, bits, bits - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    content = pixels.tobytes()
    data.add_new("PixelData", "OB" if bits == 8 else "OW", content + b"\0" * (len(content) % 2))
    for name, value in elements.items():
        setattr(data, name, value)
    return data


def save_dicom(path: Path, pixels: np.ndarray, **elements: Any) -> Path:
    dataset(pixels, **elements).save_as(path, enforce_file_format=True)
    return path


def save_series(folder: Path, volume: np.ndarray, *, step: tuple[float, float, float] = (0, 0, 3), **elements: Any):
    """One file per slice of (N, H, W), named and numbered in a shuffled order; the files in slice order."""
    names = np.random.default_rng(len(volume)).permutation(len(volume))
    origin = np.array([-10.0, 20.0, 30.0])
    return [
        save_dicom(
            folder / f"i{names[k]:03}.dcm",
            one,
            **{
                "PixelSpacing": [0.5, 0.7],
                "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
                "ImagePositionPatient": [float(x) for x in origin + k * np.asarray(step)],
                "InstanceNumber": int(names[k]) + 1,
                "SliceThickness": 2.5,
                **elements,
            },
        )
        for k, one in enumerate(volume)
    ]


def sequence(**elements: Any) -> pydicom.Sequence:
    item = pydicom.Dataset()
    for name, value in elements.items():
        setattr(item, name, value)
    return pydicom.Sequence([item])
