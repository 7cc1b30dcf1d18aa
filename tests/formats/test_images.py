"""Every kind of file that people have, and every way in which one is broken. Oracle: the arrays that were written."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from segdistill.formats import MAX_PIXELS, images, layout, read_image, read_mask, replacing, write_image, write_labels
from segdistill.formats.images import is_packed
from segdistill.types import UserError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (5, 7), dtype=np.uint8)


def png(width: int, height: int, bits: int, colour_type: int, rows: bytes) -> bytes:
    """A PNG by hand, for kinds that Pillow does not write and for headers that lie."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def png16(values: np.ndarray, colour_type: int) -> bytes:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(values.shape[1], values.shape[0], 16, colour_type, rows)


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def fails(call: Callable[[], object], path: Path) -> str:
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


# --- images ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_lossless_rgb_and_grey(tmp_path: Path, suffix: str) -> None:
    np.testing.assert_array_equal(read_image(save(tmp_path / f"a{suffix}", Image.fromarray(RGB))), RGB)
    grey = read_image(save(tmp_path / f"b{suffix}", Image.fromarray(GREY)))
    np.testing.assert_array_equal(grey, np.stack([GREY] * 3, axis=-1))
    assert grey.flags.writeable


def test_jpeg_is_close(tmp_path: Path) -> None:
    smooth = np.broadcast_to(np.linspace(0, 255, 64)[None, :, None], (32, 64, 3)).astype(np.uint8)
    image = read_image(save(tmp_path / "a.JPG", Image.fromarray(smooth), format="JPEG", quality=95))
    assert np.abs(image.astype(int) - smooth).max() <= 4


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_alpha_is_dropped_not_composited(tmp_path: Path, suffix: str) -> None:
    rgba = Image.fromarray(np.dstack([RGB, ALPHA]))
    np.testing.assert_array_equal(read_image(save(tmp_path / f"a{suffix}", rgba)), RGB)
    la = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)])
    np.testing.assert_array_equal(read_image(save(tmp_path / f"b{suffix}", la))[..., 1], GREY)


def test_palette_with_transparency(tmp_path: Path) -> None:
    indices = (GREY % 3).astype(np.uint8)
    palette = np.array([[10, 20, 30], [200, 0, 0], [0, 0, 250]], np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(palette.ravel().tolist())
    path = save(tmp_path / "a.png", image, transparency=b"\x00\x80\xff")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read_image(path), palette[indices])
    np.testing.assert_array_equal(read_mask(path), indices)


def test_one_bit(tmp_path: Path) -> None:
    bits = GREY > 127
    for suffix in (".png", ".tif", ".bmp"):
        path = save(tmp_path / f"a{suffix}", Image.fromarray(bits))
        np.testing.assert_array_equal(read_image(path)[..., 0], bits * 255)
        np.testing.assert_array_equal(read_mask(path), bits)


def test_cmyk(tmp_path: Path) -> None:
    cmyk = Image.fromarray(np.full((4, 4, 4), (0, 255, 255, 0), np.uint8), mode="CMYK")
    assert read_image(save(tmp_path / "a.tif", cmyk))[0, 0].tolist() == [255, 0, 0]
    assert np.abs(read_image(save(tmp_path / "a.jpg", cmyk))[0, 0].astype(int) - [255, 0, 0]).max() <= 4


def test_sixteen_bits_with_small_values_are_taken_as_they_are(tmp_path: Path) -> None:
    for name, image in (
        ("a.png", Image.fromarray(GREY.astype(np.uint16))),
        ("b.tif", Image.fromarray(GREY.astype(np.int32))),
        ("c.tif", Image.fromarray(GREY.astype(np.float32))),
    ):
        np.testing.assert_array_equal(read_image(save(tmp_path / name, image))[..., 2], GREY)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_larger_values_are_windowed_by_their_own_percentiles(tmp_path: Path, dtype: type) -> None:
    values = RNG.integers(100, 4096, (40, 50)).astype(dtype)
    values[0, 0] = 60000  # one hot pixel must not darken the rest
    image = read_image(save(tmp_path / "a.tif", Image.fromarray(values)))[..., 0]
    low, high = np.percentile(values, (0.5, 99.5))
    expected = np.clip((values.astype(float) - low) / (high - low), 0, 1) * 255
    assert np.abs(image - expected).max() <= 0.5 + 1e-6
    assert image.max() == 255
    assert image.min() == 0


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_a_tiff_whose_white_is_zero_is_inverted(tmp_path: Path, dtype: type, compression: str | None) -> None:
    """Of 8 bits Pillow inverts it, when it reads and when it writes; of more it never does."""
    for name, values in (("as-is", GREY.astype(dtype)), ("wide", GREY.astype(dtype) * 20)):
        read = []
        for white in (0, 1):
            path = tmp_path / f"{name}{white}.tif"
            save(path, Image.fromarray(values), tiffinfo={262: white}, compression=compression)
            read.append(read_image(path)[..., 1])
        np.testing.assert_array_equal(read[0], 255 - read[1])
        assert len(np.unique(read[0])) > 20


def test_sixteen_bit_grey_with_alpha_is_windowed_as_grey_alone(tmp_path: Path) -> None:
    grey = RNG.integers(100, 3000, (40, 50))
    (tmp_path / "a.png").write_bytes(png16(np.dstack([grey, RNG.integers(0, 65536, grey.shape)]), 4))
    (tmp_path / "b.png").write_bytes(png16(grey, 0))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), read_image(tmp_path / "b.png"))
    (tmp_path / "c.png").write_bytes(png16(np.dstack([GREY, ALPHA]), 4))
    np.testing.assert_array_equal(read_image(tmp_path / "c.png")[..., 0], GREY)


def test_unusual_ranges(tmp_path: Path) -> None:
    unit = np.linspace(0, 1, 400, dtype=np.float32).reshape(20, 20)  # as is, it would be black
    image = read_image(save(tmp_path / "unit.tif", Image.fromarray(unit)))[..., 0]
    assert (image.min(), image.max()) == (0, 255)
    spot = np.zeros((100, 100), np.uint16)  # its percentiles coincide
    spot[3, 4], spot[5, 6] = 5000, 1000
    image = read_image(save(tmp_path / "spot.png", Image.fromarray(spot)))[..., 0]
    assert (image[3, 4], image[5, 6]) == (255, 51)
    assert image.sum() == 255 + 51
    assert read_image(save(tmp_path / "flat.png", Image.fromarray(np.full((4, 4), 999, np.uint16)))).max() == 0


def test_sixteen_bit_colour_keeps_the_high_byte(tmp_path: Path) -> None:
    values = RNG.integers(0, 65536, (3, 4, 3))
    path = tmp_path / "a.png"
    path.write_bytes(png16(values, 2))
    np.testing.assert_array_equal(read_image(path), values >> 8)
    assert "16 bits per channel" in fails(lambda: read_mask(path), path)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, format_: str, orientation: int) -> None:
    upright = np.kron(np.array([[0, 80, 160], [240, 40, 120]], np.uint8), np.ones((16, 16), np.uint8))
    stored = {  # what a camera stores so that the orientation turns it upright (EXIF 2.3, tag 0x0112)
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.img", Image.fromarray(np.ascontiguousarray(stored)), format=format_, exif=exif)
    assert layout(path).shape == upright.shape
    for decoded in (read_image(path)[..., 0], read_mask(path)):
        assert decoded.shape == upright.shape
        assert np.abs(decoded.astype(int) - upright).max() <= 3


def test_content_decides_not_the_suffix(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.jpg", Image.fromarray(RGB), format="PNG")), RGB)


def test_names_with_spaces_and_other_alphabets(tmp_path: Path) -> None:
    folder = tmp_path / "Bilder für Ärzte 図"
    folder.mkdir()
    write_image(folder / "поли п 1.png", RGB)
    np.testing.assert_array_equal(read_image(folder / "поли п 1.png"), RGB)
    assert "поли п 2.png" in fails(lambda: read_image(folder / "поли п 2.png"), folder)


# --- masks ----------------------------------------------------------------------------------------------------------


def test_grey_masks_keep_their_values(tmp_path: Path) -> None:
    for name, image in (
        ("l.png", Image.fromarray(GREY)),
        ("rgb.png", Image.fromarray(np.dstack([GREY] * 3))),
        ("rgba.png", Image.fromarray(np.dstack([GREY] * 3 + [ALPHA]))),
        ("la.png", Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)])),
    ):
        mask = read_mask(save(tmp_path / name, image))
        np.testing.assert_array_equal(mask, GREY)
        assert not is_packed(mask)


def test_wide_masks_keep_their_values(tmp_path: Path) -> None:
    values = np.array([[0, 1000], [40000, 65535]])
    for name, dtype in (("a.png", np.uint16), ("b.tif", np.uint16), ("c.tif", np.int32), ("d.tif", np.float32)):
        mask = read_mask(save(tmp_path / name, Image.fromarray(values.astype(dtype))))
        np.testing.assert_array_equal(mask, values)
        assert not is_packed(mask)


def test_colour_masks_are_packed(tmp_path: Path) -> None:
    mask = read_mask(save(tmp_path / "a.png", Image.fromarray(RGB)))
    np.testing.assert_array_equal(mask, RGB.astype(int) @ [65536, 256, 1])
    assert is_packed(mask)
    blue = np.zeros((2, 2, 3), np.uint8)
    blue[0, 0, 2] = 255  # as a number it is 255; the type tells it from grey
    assert is_packed(read_mask(save(tmp_path / "b.png", Image.fromarray(blue))))


def test_fractional_masks_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", Image.fromarray(np.array([[0.0, 0.5]], np.float32)))
    assert "fractional" in fails(lambda: read_mask(path), path)


# --- what is broken -------------------------------------------------------------------------------------------------


def broken_files() -> dict[str, bytes]:
    def encode(format_: str, **options: object) -> bytes:
        buffer = io.BytesIO()
        noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(buffer, format_, **options)
        return buffer.getvalue()

    pages = io.BytesIO()
    Image.fromarray(GREY).save(pages, "TIFF", save_all=True, append_images=[Image.fromarray(GREY)])
    return {
        "empty.png": b"",
        "text.png": b"this is not an image",
        "folder-page.jpg": b"<html><body>quota exceeded</body></html>",
        "half.png": encode("PNG")[:2000],
        "half.jpg": encode("JPEG")[:2000],
        "half.tif": encode("TIFF")[:6000],
        "half-lzw.tif": encode("TIFF", compression="tiff_lzw")[:6000],
        "half.bmp": encode("BMP")[:6000],
        "signature.png": b"\x89PNG\r\n\x1a\n",
        "signature.jpg": b"\xff\xd8\xff",
        "signature.tif": b"II*\0",
        "signature.bmp": b"BM",
        "gif.png": encode("GIF"),
        "webp.jpg": encode("WEBP"),
        "pages.tif": pages.getvalue(),
        "no-size.png": png(0, 5, 8, 0, b""),
        "not-finite.tif": _tiff(np.array([[np.nan, 1000.0]], np.float32)),
    }


def _tiff(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "TIFF")
    return buffer.getvalue()


@pytest.mark.parametrize("name", sorted(broken_files()))
def test_broken_files_are_one_line_that_names_them(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(broken_files()[name])
    fails(lambda: read_image(path), path)
    fails(lambda: read_mask(path), path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert "does not exist" in fails(lambda: read_image(tmp_path / "no.png"), tmp_path / "no.png")
    assert "is a folder" in fails(lambda: read_image(tmp_path), tmp_path)


@pytest.mark.parametrize("size", [(30_000, 30_000), (100_000, 2_001), (2**31 - 1, 2**31 - 1)])
def test_bomb_is_refused_before_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(*size, 8, 2, b"\0" * 100))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("decoded"))
    assert f"{MAX_PIXELS:,}" in fails(lambda: read_image(path), path)


def test_limit_is_ours_and_the_processes_own_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's limit neither stops, nor warns at, what ours lets through; and we leave it where it is."""
    before = Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(images, "MAX_PIXELS", GREY.size)
    path = save(tmp_path / "a.png", Image.fromarray(GREY))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(path).shape == (5, 7, 3)
    assert Image.MAX_IMAGE_PIXELS == 10
    monkeypatch.setattr(images, "MAX_PIXELS", GREY.size - 1)
    fails(lambda: read_image(path), path)
    monkeypatch.undo()
    assert before == Image.MAX_IMAGE_PIXELS


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.sampled_from(["PNG", "JPEG", "TIFF", "BMP"]),
    st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_flipped_bytes_give_an_image_or_a_user_error(
    tmp_path_factory: pytest.TempPathFactory, format_: str, changes: list[tuple[float, int]]
) -> None:
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, format_)
    data = bytearray(buffer.getvalue())
    for where, value in changes:
        data[int(where * len(data))] = value
    path = tmp_path_factory.getbasetemp() / f"flipped.{format_}"
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for read in (read_image, read_mask):
            try:
                message, dimensions = "", read(path).ndim
            except UserError as error:
                message, dimensions = str(error), 0
            assert "\n" not in message
            assert dimensions or str(path) in message


# --- writing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 17, 255])
def test_label_file_holds_indices_and_shows_colours(tmp_path: Path, classes: int) -> None:
    labels = RNG.integers(0, classes, (9, 13), dtype=np.uint8)
    labels[0, 0] = classes - 1
    colours = [tuple(int(v) for v in colour) for colour in RNG.integers(0, 256, (classes, 3))]
    write_labels(tmp_path / "a.png", labels, colours)  # type: ignore[arg-type]
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), labels)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.array(colours)[labels])
    with pytest.raises(ValueError, match="no colour"):
        write_labels(tmp_path / "b.png", labels, colours[:-1])  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_write_image_any_layout_in_memory(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", RGB[::-1, ::2])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), RGB[::-1, ::2])
    write_image(tmp_path / "b.png", GREY)
    np.testing.assert_array_equal(read_mask(tmp_path / "b.png"), GREY)


@pytest.mark.parametrize("failure", [RuntimeError("stop"), KeyboardInterrupt()])
def test_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, failure: BaseException) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(type(failure)), replacing(path) as file:  # noqa: PT012
        file.write(b"half")
        raise failure
    assert path.read_text(encoding="utf-8") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_refused_write_is_a_user_error(tmp_path: Path) -> None:
    fails(lambda: write_image(tmp_path / "missing" / "a.png", RGB), tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "x").touch()
    fails(lambda: write_image(tmp_path / "taken", RGB), tmp_path / "taken")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["taken"]


def test_formats_import_no_torch() -> None:
    code = "import segdistill.formats, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- a file in memory -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff", "bmp"])
def test_bytes_are_read_as_the_file_is(tmp_path, kind):
    path = save(tmp_path / f"a.{kind}", Image.fromarray(RGB))
    np.testing.assert_array_equal(images.read_raster_bytes(path.read_bytes(), "upload"), read_image(path))


@pytest.mark.parametrize("content", [b"", b"GIF89a" + bytes(40), png(7, 5, 8, 2, b"\0" * 4), png(6, 5, 8, 2, b"")])
def test_bytes_that_are_no_image_are_one_line(content):
    with pytest.raises(UserError, match=r"^upload: ") as caught:
        images.read_raster_bytes(content, "upload")
    assert "\n" not in str(caught.value)


def test_bytes_beyond_the_limit_are_not_decoded(monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(UserError, match="upload: 7x5 pixels; at most 34 are read"):
        images.read_raster_bytes(png(7, 5, 8, 2, b""), "upload", max_pixels=34)


def test_png_bytes_are_what_is_written(tmp_path):
    labels, colours = GREY % 3, [(0, 0, 0), (9, 8, 7), (255, 0, 3)]
    write_labels(tmp_path / "labels.png", labels, colours)
    write_image(tmp_path / "image.png", RGB)
    assert images.png_of_labels(labels, colours) == (tmp_path / "labels.png").read_bytes()
    assert images.png_of_image(RGB) == (tmp_path / "image.png").read_bytes()
