"""DICOM pixels. Oracles: the arrays that were stored, the standard's window formula, pydicom's own examples of code."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from helpers import fails
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import (
    MPEG2MPML,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)
from volumes import CT, SECRET, dataset, save_dicom, sequence

from segdistill.formats import check_pair, layout, read_image, read_mask, read_mask_volume, read_volume
from segdistill.formats.dicom import burned_in

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 8)).astype(np.uint8)
DEEP = RNG.integers(-900, 1500, (6, 8)).astype(np.int16)
RGB = RNG.integers(0, 256, (6, 8, 3)).astype(np.uint8)


def linear(values: np.ndarray, centre: float, width: float) -> np.ndarray:
    """PS3.3 C.11.2.1.2.1 with an output of 0..255."""
    inside = ((values - (centre - 0.5)) / (width - 1) + 0.5) * 255
    below, above = values <= centre - 0.5 - (width - 1) / 2, values > centre - 0.5 + (width - 1) / 2
    return np.rint(np.where(below, 0, np.where(above, 255, inside)))


def test_rescale_then_the_first_window(tmp_path: Path) -> None:
    elements = {"RescaleSlope": 2, "RescaleIntercept": -100, "SOPClassUID": CT}
    path = save_dicom(tmp_path / "a.dcm", DEEP, WindowCenter=[40, 500], WindowWidth=[400, 9], **elements)
    expected = linear(DEEP * 2.0 - 100, 40, 400)
    np.testing.assert_array_equal(read_image(path)[..., 0], expected)
    path = save_dicom(tmp_path / "b.dcm", DEEP, WindowCenter=40, WindowWidth=400, VOILUTFunction="SIGMOID", **elements)
    sigmoid = 255 / (1 + np.exp(-4 * (DEEP * 2.0 - 100 - 40) / 400))
    assert np.abs(read_image(path)[..., 1] - sigmoid).max() <= 0.5 + 1e-6
    inverse = {"WindowCenter": 40, "WindowWidth": 400, "PhotometricInterpretation": "MONOCHROME1"}
    np.testing.assert_array_equal(
        read_image(save_dicom(tmp_path / "c.dcm", DEEP, **elements, **inverse))[..., 0], 255 - expected
    )


@pytest.mark.parametrize("slope", [1, -1, -2.5])
@pytest.mark.parametrize("signed", [False, True])
def test_a_window_of_values_that_a_negative_slope_turns(tmp_path: Path, slope: float, signed: bool) -> None:
    """What is above the window after rescale is white, whatever the stored value."""
    stored = DEEP if signed else (DEEP + 900).astype(np.uint16)
    values = stored * float(slope) + 300
    rescaled = {"RescaleSlope": slope, "RescaleIntercept": 300, "WindowCenter": 40, "WindowWidth": 900}
    expected = {
        "LINEAR": linear(values, 40, 900),
        "LINEAR_EXACT": np.clip((values - 40) / 900 + 0.5, 0, 1) * 255,
        "SIGMOID": 255 / (1 + np.exp(-4 * (values - 40) / 900)),
    }
    for name, levels in expected.items():
        path = save_dicom(tmp_path / f"{name}.dcm", stored, VOILUTFunction=name, **rescaled)
        assert np.abs(read_image(path)[..., 0] - levels).max() <= (1 if name == "LINEAR" else 0.5 + 1e-6)


def test_a_window_of_width_one_is_a_step(tmp_path: Path) -> None:
    path = save_dicom(tmp_path / "a.dcm", np.array([[98, 99, 100, 101]], np.uint16), WindowCenter=100, WindowWidth=1)
    assert read_image(path)[0, :, 0].tolist() == [0, 0, 255, 255]


@pytest.mark.parametrize(
    "extra", [{}, {"WindowCenter": 3, "WindowWidth": 0}, {"WindowCenter": None, "WindowWidth": None}]
)
def test_without_a_window_the_files_own_percentiles(tmp_path: Path, extra: dict) -> None:
    frames = RNG.normal(100, 300, (3, 20, 20)).astype(np.int16)
    low, high = np.percentile(frames.astype(float), (0.5, 99.5))
    expected = np.rint(np.clip((frames - low) / (high - low) * 255, 0, 255))
    assert np.abs(read_volume(save_dicom(tmp_path / "a.dcm", frames, **extra)) - expected).max() <= 1


def test_modality_and_voi_tables(tmp_path: Path) -> None:
    stored = (GREY % 4).astype(np.uint8)
    modality = sequence(
        LUTDescriptor=[4, 0, 16], ModalityLUTType="US", LUTData=np.array([10, 20, 30, 40], np.uint16).tobytes()
    )
    voi = sequence(LUTDescriptor=[31, 10, 16], LUTData=np.arange(1000, 1310, 10).astype(np.uint16).tobytes())
    path = save_dicom(tmp_path / "a.dcm", stored, ModalityLUTSequence=modality, VOILUTSequence=voi, WindowCenter=1)
    np.testing.assert_array_equal(read_image(path)[..., 0], stored * 85)  # the table's ends are black and white
    np.testing.assert_array_equal(read_mask(path), (stored + 1) * 10)


@pytest.mark.parametrize("first", [0, 1, 700, -1024])
@pytest.mark.parametrize("depth", [8, 12, 16])
@pytest.mark.parametrize("descriptor", ["US", "SS"])
def test_a_voi_table_of_any_first_value_and_depth(tmp_path: Path, first: int, depth: int, descriptor: str) -> None:
    """A table that rises linearly is a ramp of its entries: value v becomes (v - first) / 4095 of white."""
    values = np.array([[-1024, -1, 0, 1, 2, 700, 1023, 2000], [3071, 3072, 4094, 4095, 4096, 4795, 4796, 5000]])
    entries = np.rint(np.linspace(0, 2**depth - 1, 4096)).astype(np.uint16)
    item = sequence(LUTDescriptor=[4096, first % 2**16 if descriptor == "US" else first, depth])
    item[0]["LUTDescriptor"].VR = descriptor
    item[0].add_new("LUTData", "OW", entries.tobytes())
    signed = {"RescaleSlope": 1, "RescaleIntercept": -1024, "VOILUTSequence": item}
    path = save_dicom(tmp_path / "a.dcm", (values + 1024).astype(np.uint16), **signed)
    expected = np.rint(entries[np.clip(values - first, 0, 4095)] / (2.0**depth - 1) * 255)
    np.testing.assert_array_equal(read_image(path)[..., 0], expected)


def test_a_voi_table_of_unsigned_values_and_one_that_falls(tmp_path: Path) -> None:
    stored = np.array([[0, 39_999, 40_000, 40_001, 40_003, 65_535]], np.uint16)
    voi = sequence(LUTDescriptor=[4, 40_000, 16], LUTData=np.array([300, 200, 100, 0], np.uint16).tobytes())
    path = save_dicom(tmp_path / "a.dcm", stored, VOILUTSequence=voi)
    assert read_image(path)[0, :, 0].tolist() == [255, 255, 255, 170, 0, 0]
    short = sequence(LUTDescriptor=[5, 0, 16], LUTData=bytes(8))
    fails(lambda: read_image(save_dicom(tmp_path / "b.dcm", stored, VOILUTSequence=short)), "b.dcm")


def test_each_frame_of_an_enhanced_file_has_its_own_tables(tmp_path: Path) -> None:
    frames = RNG.integers(0, 2000, (2, 6, 8)).astype(np.uint16)
    items = [
        sequence(
            PixelValueTransformationSequence=sequence(RescaleSlope=slope, RescaleIntercept=0, RescaleType="US"),
            FrameVOILUTSequence=sequence(WindowCenter=500, WindowWidth=800),
        )[0]
        for slope in (1, 2)
    ]
    shared = sequence(PixelMeasuresSequence=sequence(PixelSpacing=[0.5, 0.25], SpacingBetweenSlices=4))
    path = save_dicom(
        tmp_path / "a.dcm",
        frames,
        PerFrameFunctionalGroupsSequence=pydicom.Sequence(items),
        SharedFunctionalGroupsSequence=shared,
    )
    for k in range(2):
        np.testing.assert_array_equal(read_image(Path(f"{path}#{k}"))[..., 0], linear(frames[k] * (k + 1.0), 500, 800))
    assert layout(path) == (2, (6, 8), (4.0, 0.5, 0.25))
    np.testing.assert_array_equal(read_mask_volume(path)[1], frames[1].astype(int) * 2)


def test_spacing_is_what_the_header_says_and_no_more(tmp_path: Path) -> None:
    assert layout(save_dicom(tmp_path / "a.dcm", GREY)).spacing is None
    assert layout(save_dicom(tmp_path / "b.dcm", GREY, PixelSpacing=[0.5, 2])).spacing == (0.5, 2.0)
    cine = np.stack([GREY] * 3)
    assert layout(save_dicom(tmp_path / "c.dcm", cine, PixelSpacing=[1, 2], SliceThickness=5)).spacing == (1.0, 2.0)
    assert layout(save_dicom(tmp_path / "d.dcm", cine, PixelSpacing=[1, 2], SpacingBetweenSlices=5)) == (
        3,
        (6, 8),
        (5.0, 1.0, 2.0),
    )
    check_pair(tmp_path / "c.dcm", tmp_path / "d.dcm")
    fails(lambda: check_pair(tmp_path / "a.dcm", tmp_path / "d.dcm"), "3x6x8", "1x6x8")


@pytest.mark.parametrize("planar", [0, 1])
def test_colour(tmp_path: Path, planar: int) -> None:
    stored = RGB if planar == 0 else RGB.transpose(2, 0, 1)
    colour = {"SamplesPerPixel": 3, "PlanarConfiguration": planar, "Rows": 6, "Columns": 8}
    data = dataset(RGB, PhotometricInterpretation="RGB", **colour)
    data.PixelData = stored.tobytes()
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(read_image(tmp_path / "a.dcm"), RGB)
    fails(lambda: read_mask(tmp_path / "a.dcm"), "colour")
    y, cb, cr = stored if planar else np.moveaxis(stored, -1, 0)
    y, cb, cr = (part.astype(float) for part in (y, cb, cr))
    expected = np.stack(
        [y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128)]
    )
    data.PhotometricInterpretation = "YBR_FULL"
    data.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    assert np.abs(read_image(tmp_path / "b.dcm") - np.clip(expected, 0, 255).transpose(1, 2, 0)).max() <= 1.5


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_colour_in_two_bytes_keeps_the_highest_of_its_stored_bits(tmp_path: Path, bits: int) -> None:
    stored = RNG.integers(0, 2**bits, (6, 8, 3)).astype(np.uint16)
    colour = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PhotometricInterpretation": "RGB"}
    path = save_dicom(tmp_path / "a.dcm", stored, BitsStored=bits, HighBit=bits - 1, **colour)
    np.testing.assert_array_equal(read_image(path), stored // 2 ** (bits - 8))


@pytest.mark.parametrize(("bits", "scale"), [(8, 1), (16, 256), (16, 1)])
def test_palette(tmp_path: Path, bits: int, scale: int) -> None:
    stored = (GREY % 4).astype(np.uint8)
    table = np.array([[0, 10, 20], [255, 0, 0], [0, 250, 0], [1, 2, 3]])
    data = dataset(stored, PhotometricInterpretation="PALETTE COLOR")
    for channel, name in enumerate(("Red", "Green", "Blue")):
        values = table[:, channel].astype(np.uint8) if bits == 8 else (table[:, channel] * scale).astype(np.uint16)
        setattr(data, f"{name}PaletteColorLookupTableDescriptor", [4, 0, bits])
        setattr(data, f"{name}PaletteColorLookupTableData", values.tobytes())
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(read_image(tmp_path / "a.dcm"), table[stored])


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_compressed(tmp_path: Path, syntax: pydicom.uid.UID, kind: type) -> None:
    ramp = np.add.outer(np.arange(32), np.arange(40)) * (np.iinfo(kind).max // 100)
    stored = np.stack([ramp, ramp[::-1]]).astype(kind)
    data = dataset(stored)
    data.compress(syntax)
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(read_mask_volume(tmp_path / "a.dcm"), stored)
    assert read_image(Path(f"{tmp_path / 'a.dcm'}#1")).shape == (32, 40, 3)


def test_jpeg_2000(tmp_path: Path) -> None:
    stored = np.stack([GREY, GREY[::-1]])
    frames = []
    for frame in stored:  # pydicom has no encoder for it, Pillow has
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "JPEG2000", no_jp2=True, num_resolutions=1)
        frames.append(buffer.getvalue())
    data = dataset(stored)
    data.PixelData = encapsulate(frames)
    data["PixelData"].VR = "OB"
    data.file_meta.TransferSyntaxUID = JPEG2000Lossless
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(read_mask_volume(tmp_path / "a.dcm"), stored)


@pytest.mark.parametrize("colour", [False, True])
def test_jpeg_baseline(tmp_path: Path, colour: bool) -> None:
    smooth = np.linspace(0, 255, 16 * 16).reshape(16, 16).astype(np.uint8)
    picture = np.dstack([smooth, smooth.T, smooth]) if colour else smooth
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=95)
    kind = (
        {"SamplesPerPixel": 3, "PhotometricInterpretation": "YBR_FULL_422", "PlanarConfiguration": 0} if colour else {}
    )
    data = dataset(picture, WindowCenter=128, WindowWidth=256, **kind)
    data.PixelData = encapsulate([buffer.getvalue()])
    data["PixelData"].VR = "OB"
    data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    shown = read_image(tmp_path / "a.dcm").astype(int)
    assert np.abs(shown - (picture if colour else picture[..., None])).mean() < 6


def test_what_cannot_be_decoded_names_the_syntax(tmp_path: Path) -> None:
    data = dataset(GREY)
    data.PixelData = encapsulate([b"no video"])
    data["PixelData"].VR = "OB"
    data.file_meta.TransferSyntaxUID = MPEG2MPML
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    fails(lambda: read_image(tmp_path / "a.dcm"), "MPEG2", "segdistill[medical]")
    data.file_meta.TransferSyntaxUID = JPEGLSLossless
    data.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    fails(lambda: read_image(tmp_path / "b.dcm"), "b.dcm")
    data = dataset(GREY)
    data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    data.save_as(tmp_path / "c.dcm", enforce_file_format=True)
    fails(lambda: read_image(tmp_path / "c.dcm"), "deflated")


def test_damaged_and_foreign_files_are_one_line(tmp_path: Path) -> None:
    whole = save_dicom(tmp_path / "whole.dcm", RNG.integers(0, 255, (64, 64)).astype(np.uint8)).read_bytes()
    for name, content in {
        "cut.dcm": whole[:-2000],
        "head.dcm": whole[:400],
        "mark.dcm": whole[:132],
        "text.dcm": b"<html>quota exceeded</html>" * 20,
        "empty.ima": b"",
        "junk.dicom": whole[:132] + RNG.bytes(3000),
        "middle.dcm": whole[:700] + RNG.bytes(300) + whole[1000:],
    }.items():
        (tmp_path / name).write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fails(lambda name=name: read_image(tmp_path / name), str(tmp_path / name))
    fails(lambda: read_image(tmp_path / "no.dcm"), "does not exist")
    bomb = dataset(GREY, NumberOfFrames=2**31 - 1)
    bomb.Rows = bomb.Columns = 65535
    bomb.save_as(tmp_path / "bomb.dcm", enforce_file_format=True)
    fails(lambda: layout(tmp_path / "bomb.dcm"), "2147483647x65535x65535", "crop")
    fails(lambda: read_image(tmp_path / "bomb.dcm"), "bomb.dcm")
    text = dataset(GREY)
    del text.PixelData, text.Rows, text.Columns
    text.save_as(tmp_path / "report.dcm", enforce_file_format=True)
    fails(lambda: read_image(tmp_path / "report.dcm"), "without an image")
    fails(lambda: read_image(save_dicom(tmp_path / "s.dcm", GREY, SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4")), "NIfTI")
    empty = dataset(GREY)
    del empty.PixelData
    empty.save_as(tmp_path / "nopix.dcm", enforce_file_format=True)
    fails(lambda: read_image(tmp_path / "nopix.dcm"), "without pixels")


def test_nothing_of_the_patient_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bad = dataset(GREY)
    bad.add_new("PatientBirthDate", "DA", "19700101")
    bad["PatientBirthDate"]._value = SECRET
    bad.add_new("WindowCenter", "LO", SECRET)
    bad.add_new("WindowWidth", "LO", SECRET)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bad.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fails(lambda: read_image(tmp_path / "a.dcm"), "a.dcm")
        layout(tmp_path / "a.dcm")
        burned_in(tmp_path / "a.dcm")
    said = "".join(str(one.message) for one in caught) + "".join(capfd.readouterr())
    assert "19700101" not in said
    assert "Secret" not in said


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({"BurnedInAnnotation": "YES"}, True),
        ({"BurnedInAnnotation": "NO", "Modality": "US"}, False),
        ({"Modality": "US"}, True),
        ({"Modality": "ES"}, True),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.2", "Modality": "OT"}, True),
        ({"Modality": "CT"}, False),
        ({"Modality": None}, False),
    ],
)
def test_burned_in(tmp_path: Path, elements: dict, expected: bool) -> None:
    assert burned_in(save_dicom(tmp_path / "a.dcm", GREY, **elements)) is expected
