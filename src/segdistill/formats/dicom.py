"""DICOM files, single- and multi-frame, to 8-bit images and label values.

Only the elements that pixels and geometry need are read, so that nothing about the patient is decoded, returned or
quoted in a message. Colour profiles are not applied.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..types import UserError
from .dicom_frames import check_frames
from .dicom_voi import has_voi, windowed
from .guard import check_voxels, extra, reading, reason, require_file
from .levels import percentile_window, to_levels, whole

SIZE = ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "SOPClassUID")
_PIXELS = (
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PlanarConfiguration"),
    *("PixelData", "FloatPixelData", "DoubleFloatPixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
)
_VALUES = (
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
)
_PALETTE = tuple(
    f"{segmented}{colour}PaletteColorLookupTable{part}"
    for colour in ("Red", "Green", "Blue")
    for segmented, part in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
)
GEOMETRY = (
    *("PixelSpacing", "SpacingBetweenSlices", "SliceThickness", "ImagePositionPatient", "ImageOrientationPatient"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
_FRAMES = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_WITH_TEXT = {"US", "IVUS", "ES", "SC"}  # modalities whose images often have text in the pixels
_SECONDARY = "1.2.840.10008.5.1.4.1.1.7"  # secondary capture and its multi-frame variants
_SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
_READ = {"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"}
_DEFLATED = "1.2.840.10008.1.2.1.99"


class Header(NamedTuple):
    """What is known before a pixel is decoded."""

    frames: int
    rows: int
    columns: int
    spacing: tuple[float, ...] | None  # mm: (slices, rows, columns), or (rows, columns), or unknown


class Values(NamedTuple):
    """Pixels after rescale: colour as 8 bits, grey as numbers with what is needed to window them."""

    pixels: NDArray[Any]  # (N, H, W) numbers or (N, H, W, 3) uint8
    windowed: NDArray[np.uint8] | None  # (N, H, W) by the file's own window, None where it has none
    inverted: bool  # MONOCHROME1: small is bright


def is_dicom(path: Path) -> bool:
    """Whether the file has DICOM's mark, whatever its name."""
    try:
        if not path.is_file():  # a pipe would keep us waiting
            return False
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_header(path: Path) -> Header:
    """Frames, size and spacing, without the pixels.

    Spacing comes from PixelSpacing or the (shared or first frame's) pixel measures; between frames from
    SpacingBetweenSlices alone, as a slice's thickness is not its distance to the next.

    Raises:
        UserError: damaged, another kind of file, no image, a segmentation object, too many pixels.
    """
    data = read_elements(path, (*SIZE, *GEOMETRY))
    return header_of(data, path)


def read_volume(path: Path, window: tuple[float, float] | None = None) -> NDArray[np.uint8]:
    """Images (N, H, W), or (N, H, W, 3) for colour, one per frame.

    Grey: modality LUT or rescale, then the given window, else the file's first VOI LUT or window, else the 0.5..99.5
    percentile of the whole file, to 0..255; MONOCHROME1 is inverted. YBR and palettes become RGB; colour of more than
    8 bits keeps the highest 8 of those that it uses.

    Raises:
        UserError: as `read_header`; pixels that no installed library decodes.
    """
    return to_images([read_values(path)], path, window)[0]


def has_window(path: Path) -> bool:
    """Whether a file of one frame says how it is to be shown."""
    data = read_elements(path, (*_VALUES, *_FRAMES))
    with reading(path, "DICOM", quote=False):
        return has_voi(_tables(data, 0))


def to_images(files: list[Values], path: Path, window: tuple[float, float] | None = None) -> list[NDArray[np.uint8]]:
    """8-bit images of each file: by `window`, else by its own if every one has one, else by one percentile window."""
    if all(one.pixels.ndim == 4 for one in files):
        return [one.pixels for one in files]
    if any(one.pixels.ndim == 4 for one in files):
        raise UserError(f"{path}: colour and grey images in one series; give them separately")
    own = [one.windowed for one in files if one.windowed is not None]
    if window or len(own) < len(files):
        window = window or percentile_window(np.concatenate([one.pixels.ravel() for one in files]), path)
        own = [to_levels(one.pixels, *window) for one in files]
    return [255 - levels if one.inverted else levels for one, levels in zip(files, own, strict=True)]


def read_mask_volume(path: Path) -> NDArray[np.integer[Any]]:
    """Label values (N, H, W): stored values after rescale, no window, no inversion.

    Raises:
        UserError: as `read_volume`; colour, fractional values.
    """
    pixels = read_values(path).pixels
    if pixels.ndim == 4:
        raise UserError(f"{path}: a mask in colour; save class numbers in one grey channel")
    return whole(pixels, path)


def burned_in(path: Path) -> bool:
    """Whether text may stand in the pixels: BurnedInAnnotation is YES, or absent in a kind of image that often has it.

    These kinds are ultrasound, endoscopy and secondary captures. The attribute is the maker's word, not a look at the
    pixels.
    """
    names = ("BurnedInAnnotation", "Modality", "SOPClassUID")
    data = read_elements(path, names)
    with reading(path, "DICOM", quote=False):
        said, modality, kind = (str(data.get(name) or "").strip() for name in names)
    if said.upper() in ("YES", "NO"):
        return said.upper() == "YES"
    return modality in _WITH_TEXT or kind.startswith(_SECONDARY)


def read_elements(path: Path, names: tuple[str, ...], *, pixels: bool = False) -> Any:
    """A pydicom Dataset with these elements alone.

    Raises:
        UserError: damaged, or another kind of file.
    """
    pydicom = extra("pydicom", path)
    # Its warnings quote values, of the patient too
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    require_file(path, "a DICOM file")
    if not is_dicom(path):
        raise UserError(f"{path}: its content is not DICOM (no DICM mark); copy it again, or convert it")
    with reading(path, "DICOM", quote=False):
        meta = pydicom.filereader.read_file_meta_info(path)
        if meta.get("TransferSyntaxUID") == _DEFLATED:  # unpacked as a whole, to any size, before a header is seen
            raise UserError(f"{path}: a deflated DICOM file; save it without (dcmconv +te)")
        return pydicom.dcmread(path, specific_tags=list(names), stop_before_pixels=not pixels)


def read_values(path: Path) -> Values:
    """Decode and rescale all frames; see `read_volume`."""
    read_header(path)  # the limits, before the pixels
    data = read_elements(path, (*SIZE, *_PIXELS, *_VALUES, *_PALETTE, *_FRAMES), pixels=True)
    header = header_of(data, path)
    pixels = _decode(data, path)
    with reading(path, "DICOM", quote=False):
        kind = str(data.PhotometricInterpretation)
        stored = int(data.get("BitsStored") or 8)
        if kind == "PALETTE COLOR":
            from pydicom.pixels.processing import apply_color_lut

            pixels, stored = apply_color_lut(pixels, data), _palette_bits(data)
        grey = kind.startswith("MONOCHROME")
        pixels = pixels.reshape((header.frames, header.rows, header.columns) + (() if grey else (-1,)))
        if not grey:
            return Values(_eight_bits(pixels, stored), None, False)
        return _grey(pixels, data, kind == "MONOCHROME1")


def header_of(data: Any, path: Path) -> Header:
    """`read_header` of elements already read."""
    with reading(path, "DICOM", quote=False):
        if data.get("SOPClassUID") in _SEGMENTATIONS:
            raise UserError(f"{path}: a DICOM segmentation object, whose frames are no images; convert it to NIfTI")
        if not data.get("Rows") or not data.get("Columns") or not data.get("PhotometricInterpretation"):
            raise UserError(f"{path}: a DICOM file without an image; give the files that hold one")
        frames, rows, columns = int(data.get("NumberOfFrames") or 1), int(data.Rows), int(data.Columns)
        check_voxels(path, (frames, rows, columns, int(data.get("SamplesPerPixel") or 1)))
        return Header(frames, rows, columns, _spacing(data, frames))


def _spacing(data: Any, frames: int) -> tuple[float, ...] | None:
    measures = group("PixelMeasuresSequence", data, 0)
    places = [data] if measures is None else [measures, data]
    inside = next((list(place.PixelSpacing) for place in places if place.get("PixelSpacing")), [])
    between = next((abs(float(place.SpacingBetweenSlices)) for place in places if place.get("SpacingBetweenSlices")), 0)
    if len(inside) != 2 or not all(float(side) > 0 for side in inside):
        return None
    rows, columns = float(inside[0]), float(inside[1])
    return (between, rows, columns) if frames > 1 and between else (rows, columns)


def group(name: str, data: Any, frame: int) -> Any | None:
    """The functional group `name` of a frame, its own or the shared one; None where there is neither."""
    own, shared = data.get("PerFrameFunctionalGroupsSequence") or [], data.get("SharedFunctionalGroupsSequence") or []
    for item in (*own[frame : frame + 1], *shared[:1]):
        if item.get(name):
            return item[name].value[0]
    return None


def _decode(data: Any, path: Path) -> NDArray[Any]:
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.pixels.utils import pixel_array
    from pydicom.uid import UID

    if not {"PixelData", "FloatPixelData", "DoubleFloatPixelData"} & set(data.dir()):
        raise UserError(f"{path}: a DICOM file without pixels; copy it again")
    with reading(path, "DICOM", quote=False):
        syntax = UID(str(data.file_meta.TransferSyntaxUID))  # in a damaged header of any type
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:  # e.g. video
        available = False
    if not available:
        raise UserError(
            f"{path}: its pixels are stored as {reason(ValueError(syntax.name))}, which no installed library decodes; "
            "pip install segdistill[medical], or decompress it (gdcmconv --raw)"
        )
    with reading(path, "DICOM", quote=False):
        check_frames(data, int(data.get("NumberOfFrames") or 1), path)
        pixels: NDArray[Any] = pixel_array(data)  # YBR comes back as RGB
    if data.PhotometricInterpretation not in _READ:
        raise UserError(f"{path}: colours stored in a way that is not read; convert it to RGB or MONOCHROME2")
    return pixels


def _eight_bits(colour: NDArray[Any], stored: int) -> NDArray[np.uint8]:
    """The highest 8 of the stored bits of each channel; a fourth channel is dropped."""
    kept = min(stored, 8 * colour.dtype.itemsize)  # a damaged header may claim more than there are
    return np.ascontiguousarray(colour[..., :3] >> max(0, kept - 8), dtype=np.uint8)


def _palette_bits(data: Any) -> int:
    """Of a palette's entries: 16, or 8 where they hold no more whatever they are stored in."""
    from pydicom.pixels.processing import apply_color_lut

    entries, first = (
        int(data.RedPaletteColorLookupTableDescriptor[0]),
        int(data.RedPaletteColorLookupTableDescriptor[1]),
    )
    palette = apply_color_lut(np.arange(first, first + (entries or 2**16)), data)
    return 16 if palette[:, :3].max() > 255 else 8


def _grey(pixels: NDArray[Any], data: Any, inverted: bool) -> Values:
    from pydicom.pixels.processing import apply_modality_lut

    numbers, levels = [], []
    for frame, stored in enumerate(pixels):
        tables = _tables(data, frame)
        number = apply_modality_lut(stored, tables)
        levels.append(windowed(number, tables))
        numbers.append(number.astype(np.float32) if number.dtype == np.float64 else number)
    own = [one for one in levels if one is not None]
    return Values(np.stack(numbers), np.stack(own) if len(own) == len(levels) else None, inverted)


def _tables(data: Any, frame: int) -> Any:
    """The elements that rescale and window a frame: the file's, or those of the frame's functional groups."""
    groups = [group(name, data, frame) for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence")]
    if not any(groups):
        return data
    tables = copy.copy(data)
    for one in groups:
        tables.update(one or {})
    return tables
