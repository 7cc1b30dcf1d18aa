"""PNG, JPEG, TIFF and BMP files to arrays and back.

Files come from strangers, so: the kind is taken from the content and only these four are decoded, the pixel count is
checked in the header before a pixel is decoded, and whatever is wrong with a file is one `UserError` that names it.
Not here: stacks (a TIFF of several pages is refused), colour management (ICC profiles are not applied), DICOM meaning.
"""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from ..types import UserError
from .costly import check_parts, check_scans
from .guard import reason, require_file
from .levels import percentile_window, to_levels

JPEG_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif"})  # compare in lower case, as the others
IMAGE_SUFFIXES = JPEG_SUFFIXES | {".png", ".tif", ".tiff", ".bmp"}
MAX_PIXELS = 200_000_000
_PHOTOMETRIC = 262  # TIFF's tag; 0: white is zero

# Pillow's own readers instead of Image.open: its pixel limit (89 million: a warning, 179 million: an error) and the
# filter for that warning are global to the process, and neither is ours to change.
_READERS: tuple[tuple[bytes, type[ImageFile]], ...] = (
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"\xff\xd8\xff", JpegImageFile),
    (b"II*\0", TiffImageFile),
    (b"MM\0*", TiffImageFile),
    (b"II+\0", TiffImageFile),  # BigTIFF
    (b"MM\0+", TiffImageFile),
    (b"BM", BmpImageFile),
)


class Decoded(NamedTuple):
    """Pixels, and what of their file they do not show."""

    pixels: NDArray[Any]
    orientation: int = 1  # EXIF's, by which the pixels were turned upright; 1: not at all
    palette: tuple[int, ...] = ()  # of a palette image read by index: its colours 0xRRGGBB


def read_raster(path: Path) -> NDArray[np.uint8]:
    """Decode an image to 8-bit RGB, (H, W, 3), turned upright by its EXIF orientation.

    Grey is repeated, alpha dropped (not composited), palette and CMYK converted. Grey of more than 8 bits (integer or
    float) is taken as is where all its values fit 0..255 (and a float image goes beyond 1); otherwise its own 0.5..99.5
    percentile, or the whole range where these coincide, is mapped linearly to 0..255. The same rule for every image:
    no window or rescale of DICOM. A TIFF whose white is zero is inverted. Colour of 16 bits per channel keeps its high
    byte.

    Raises:
        UserError: missing, a folder, empty, damaged, another kind of file, a stack, more than MAX_PIXELS.
    """
    return decode_raster(path).pixels


def decode_raster(path: Path) -> Decoded:
    """`read_raster` with the orientation; UserError as there."""
    with _opened(path) as image:
        pixels, orientation = _upright_rgb(image, path)
        return Decoded(pixels, orientation)


def read_raster_bytes(content: bytes, name: str, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """`read_raster` of a file held in memory, which messages call `name`; nothing is written to disk.

    Raises:
        UserError: as `read_raster`; more than `max_pixels`, which are not decoded.
    """
    path = Path(name)
    if not content:
        raise UserError(f"{path}: the file is empty (0 bytes); copy it again")
    with _decoded(io.BytesIO(content), path, max_pixels) as image:
        return _upright_rgb(image, path)[0]


def read_raster_mask(path: Path) -> NDArray[np.integer[Any]]:
    """Decode a mask to its raw values, (H, W), turned upright by its EXIF orientation.

    A palette image gives its indices, a grey one its values (uint8, uint16, or int64 for 32 bits and whole floats), a
    1-bit one 0 and 1; alpha is dropped. Colour with equal channels is grey; any other colour is packed to 0xRRGGBB, and
    int32 is the type of packed colours alone (see `is_packed`). Grey of 2 or 4 bits arrives scaled to 0..255.

    Raises:
        UserError: as `read_raster`; also fractional values, and 16 bits per channel in colour (the low byte is lost).
    """
    return decode_raster_mask(path).pixels


def decode_raster_mask(path: Path) -> Decoded:
    """`read_raster_mask` with orientation and palette; UserError as there."""
    with _opened(path) as image:
        if ";16" in _raw_mode(image) and not image.mode.startswith("I"):
            raise UserError(f"{path}: a mask of 16 bits per channel in colour; save it with 8 bits or in grey")
        orientation = _make_upright(image, path)
        return Decoded(_raw_values(image, path), orientation, _palette(image))


def is_packed(mask: NDArray[np.integer[Any]]) -> bool:
    """True where `read_raster_mask` packed colours: 0x0000FF is then blue, not the grey value 255."""
    return mask.dtype == np.int32


def raster_size(path: Path) -> tuple[int, int]:
    """Height and width as `read_raster` gives them, from the header (a PNG without EXIF before its pixels is decoded).

    Raises:
        UserError: as `read_raster`, as far as the header tells.
    """
    with _opened(path) as image:
        width, height = _stored_size(image)
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        return (width, height) if turned else (height, width)


def write_labels(path: Path, labels: NDArray[np.uint8], colours: Sequence[tuple[int, int, int]]) -> None:
    """Write class indices (H, W) as a palette PNG: the stored values are the indices, `colours` only shows them.

    Raises:
        ValueError: an index without a colour.
        UserError: the file cannot be written.
    """
    content = png_of_labels(labels, colours)
    with replacing(path) as file:
        file.write(content)


def png_of_labels(labels: NDArray[np.uint8], colours: Sequence[tuple[int, int, int]]) -> bytes:
    """What `write_labels` writes.

    Raises:
        ValueError: an index without a colour.
    """
    if labels.size and int(labels.max()) >= len(colours):
        raise ValueError(f"class index {int(labels.max())} has no colour: {len(colours)} were given")
    image = Image.fromarray(np.ascontiguousarray(labels))
    image.putpalette([channel for colour in colours for channel in colour])
    return _png(image)


def write_image(path: Path, image: NDArray[np.uint8]) -> None:
    """Write (H, W, 3) RGB or (H, W) grey as PNG, whatever the suffix.

    Raises:
        UserError: the file cannot be written.
    """
    content = png_of_image(image)
    with replacing(path) as file:
        file.write(content)


def png_of_image(image: NDArray[np.uint8]) -> bytes:
    """What `write_image` writes."""
    return _png(Image.fromarray(np.ascontiguousarray(image)))


def jpeg_of_image(image: NDArray[np.uint8]) -> bytes:
    """(H, W, 3) as JPEG, to look at: no colour is halved, but no value is kept exactly either."""
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(content, format="JPEG", quality=90, subsampling=0)
    return content.getvalue()


def _png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, format="PNG")
    return content.getvalue()


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of `path` once complete; if anything fails, `path` stays as it was.

    Raises:
        UserError: the operating system refused (no such folder, no permission, full disk).
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")  # same folder: a rename cannot cross file systems
    try:
        with temporary.open("xb") as file:
            yield file
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UserError(f"{path}: cannot be written ({reason(error)}); check folder, permission, space") from error
        raise


@contextmanager
def _opened(path: Path) -> Iterator[ImageFile]:
    require_file(path, "an image file")
    try:
        file = path.open("rb")
    except OSError as error:
        raise _unreadable(path, error) from error
    with file, _decoded(file, path, MAX_PIXELS) as image:
        yield image


@contextmanager
def _decoded(file: IO[bytes], path: Path, max_pixels: int) -> Iterator[ImageFile]:
    """The image with its header read and checked; what fails until the end of the block becomes a UserError."""
    try:
        reader = _reader(file, path)
        if reader is TiffImageFile:
            check_parts(file, path)
            file.seek(0)
        with reader(file) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise UserError(f"{path}: {width}x{height} pixels; at most {max_pixels:,} are read: crop or shrink it")
            if isinstance(image, TiffImageFile) and getattr(image, "is_animated", False):
                raise UserError(f"{path}: a TIFF of several pages; save each page as its own image")
            yield image
    except UserError:
        raise
    except Exception as error:  # Pillow's readers raise a dozen kinds on damaged files, struct.error to KeyError
        raise _unreadable(path, error) from error


def _stored_size(image: ImageFile) -> tuple[int, int]:
    """Width and height before the EXIF orientation; of a TIFF Pillow's `size` is after it."""
    if isinstance(image, TiffImageFile):
        return int(image.tag_v2[ExifTags.Base.ImageWidth]), int(image.tag_v2[ExifTags.Base.ImageLength])
    return image.size


def _unreadable(path: Path, error: Exception) -> UserError:
    text = f"cannot be read ({reason(error)}); if it opens elsewhere save it as PNG, else copy it again"
    return UserError(f"{path}: {text}")


def _upright_rgb(image: ImageFile, path: Path) -> tuple[NDArray[np.uint8], int]:
    """The pixels (H, W, 3), and the orientation by which they were turned."""
    with_alpha = _raw_mode(image) == "LA;16B"
    if with_alpha:  # Pillow would keep the high bytes alone; as four channels it hands over all bytes
        image._mode, image.tile = "RGBA", [part._replace(args="RGBA") for part in image.tile]
    orientation = _make_upright(image, path)
    values = np.asarray(image)
    if with_alpha:
        levels = _to_8_bits(values[:, :, 0].astype(np.uint16) << 8 | values[:, :, 1], path)
    elif image.mode in ("I", "F") or image.mode.startswith("I;16"):
        levels = _to_8_bits(values, path)
    else:
        return np.array(_to_rgb(image)), orientation
    if isinstance(image, TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == 0:  # Pillow inverts 8 bits, and no more
        levels = 255 - levels
    return np.repeat(levels[:, :, None], 3, axis=2), orientation


def _raw_values(image: ImageFile, path: Path) -> NDArray[np.integer[Any]]:
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8)
    if image.mode in ("P", "L"):
        return np.array(image)
    if image.mode in ("PA", "LA"):
        return np.array(image)[:, :, 0]
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if image.mode in ("I", "F"):
        return _whole(np.asarray(image), path)
    return _pack(np.asarray(_to_rgb(image)))


def _palette(image: ImageFile) -> tuple[int, ...]:
    if image.mode not in ("P", "PA"):
        return ()
    channels = image.getpalette("RGB") or []
    return tuple(r << 16 | g << 8 | b for r, g, b in zip(channels[::3], channels[1::3], channels[2::3], strict=False))


def _reader(file: IO[bytes], path: Path) -> type[ImageFile]:
    head = file.read(8)
    file.seek(0)
    for signature, reader in _READERS:
        if head.startswith(signature):
            return reader
    raise UserError(f"{path}: its content is no PNG, JPEG, TIFF or BMP image; convert it to PNG")


def _raw_mode(image: ImageFile) -> str:
    """Pillow's name for the pixels as stored, e.g. "RGB;16B" where `image.mode` says "RGB"; before decoding only."""
    arguments = image.tile[0].args if image.tile else ""
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _make_upright(image: ImageFile, path: Path) -> int:
    """Decode and turn the image; the orientation by which that was done."""
    if isinstance(image, JpegImageFile) and image.fp:
        image.fp.seek(0)
        check_scans(image.fp.read(), path)
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)  # before Pillow turns a TIFF and forgets it
    image.load()  # first: a PNG may carry its EXIF block after the pixels
    ImageOps.exif_transpose(image, in_place=True)
    return orientation if orientation in range(2, 9) else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    image.info.pop("transparency", None)  # a palette entry or key colour that stands for alpha is dropped too
    if image.mode in ("RGBa", "La"):  # colours stored multiplied by alpha are restored first
        image = image.convert({"RGBa": "RGBA", "La": "LA"}[image.mode])
    return image.convert("RGB")


def _to_8_bits(values: NDArray[Any], path: Path) -> NDArray[np.uint8]:
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 255 and not (values.dtype.kind == "f" and high <= 1):
        return to_levels(values, 0.0, 255.0)
    return to_levels(values, *percentile_window(values.astype(np.float64), path))


def _whole(values: NDArray[Any], path: Path) -> NDArray[np.int64]:
    if not np.isfinite(values).all() or not np.array_equal(values, np.rint(values)):
        raise UserError(f"{path}: a mask with fractional values; save whole class numbers, or 0 and 255")
    whole: NDArray[np.int64] = values.astype(np.int64)
    return whole


def _pack(rgb: NDArray[np.uint8]) -> NDArray[np.integer[Any]]:
    red, green, blue = rgb[:, :, 0], rgb[:, :, 1], rgb[:, :, 2]
    if np.array_equal(red, green) and np.array_equal(red, blue):
        return red.copy()
    return (red.astype(np.int32) << 16) | (green.astype(np.int32) << 8) | blue
