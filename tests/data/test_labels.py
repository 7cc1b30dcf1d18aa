"""Mask values to classes: what is unambiguous is mapped and shown, what is not stops with the way out."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from segdistill.data.labels import LabelMapping, MaskValues, build_mapping, colours, scan_values
from segdistill.data.manifest import load_manifest
from segdistill.formats import read_mask
from segdistill.types import UserError

SHARED = Path(__file__).parents[3] / "shared" / "data"


def found(*values: int, **more: object) -> MaskValues:
    return MaskValues(tuple(sorted(values)), (3,) * len(values), 4, **more)  # type: ignore[arg-type]


def pairs(mapping: LabelMapping) -> dict[int, int]:
    return dict(zip(mapping.found.values, mapping.indices, strict=True))


def write(path: Path, values: object, **options: object) -> Path:
    Image.fromarray(np.asarray(values, np.uint8)).save(path, **options)
    return path


def rgb(*colour_rows: tuple[int, int, int]) -> np.ndarray:
    return np.array([colour_rows], np.uint8)


# --- scanning -------------------------------------------------------------------------------------------------------


def test_scan_counts_masks_not_pixels(tmp_path: Path) -> None:
    masks = [
        write(tmp_path / "a.png", [[0, 255, 255]]),
        write(tmp_path / "b ü.png", [[0, 0]]),
        write(tmp_path / "c.png", [[255]]),
    ]
    seen: list[tuple[int, int]] = []
    values = scan_values(masks, 2, lambda done, total: seen.append((done, total)))
    assert values == MaskValues((0, 255), (2, 2), 3)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert build_mapping(values, ["background", "polyp"]).describe() == (
        "0 -> 0 background (present in 2 of 3 masks)\n255 -> 1 polyp (present in 2 of 3 masks)"
    )


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "jpe", "jfif"])
def test_every_spelling_of_jpeg_has_values_that_are_not_exact(tmp_path, suffix):
    assert scan_values([write(tmp_path / f"a.{suffix}", np.zeros((8, 8)))], 1).jpeg


def test_scan_stops_early_and_names_the_mask(tmp_path: Path) -> None:
    masks = [write(tmp_path / "fine.png", [[0, 1]]), write(tmp_path / "grey.png", [list(range(0, 256, 3))])]
    masks += [tmp_path / f"never-written-{i}.png" for i in range(1000)]
    with pytest.raises(UserError, match=r"grey\.png.*more than 32.*--threshold 127"):
        scan_values(masks, 1)
    one_each = [write(tmp_path / f"{i}.png", [[i]]) for i in range(33)]
    assert len(scan_values(one_each[:32], 2).values) == 32
    with pytest.raises(UserError, match=r"32\.png"):
        scan_values(one_each, 2)


def test_the_way_out_of_full_masks_works(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", [[255, 255]])
    mapping = build_mapping(scan_values([path], threshold=0), ["background", "polyp"])
    assert mapping.apply(read_mask(path)).tolist() == [[1, 1]]


def test_so_many_values_may_be_classes_as_have_names(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", [list(range(41))])
    names = ["background", *(f"c{i}" for i in range(1, 41))]
    assert build_mapping(scan_values([path], named=41), names).indices == tuple(range(41))
    with pytest.raises(UserError, match="more than 40 different"):
        scan_values([path], named=40)


NUMBERED, EITHER = r"; pass --threshold 0 to make all above 0 foreground$", r"--threshold 0 if .*--threshold 127 if "


@pytest.mark.parametrize(
    ("values", "way_out"),
    [
        (range(257), NUMBERED),  # above 127 there is only the second half of the objects
        (range(100), NUMBERED),
        (range(1000, 1100), NUMBERED),
        (range(256), EITHER),
        (range(0, 256, 5), r"; pass --threshold 127 "),
    ],
)
def test_the_way_out_of_many_values_fits_them(tmp_path: Path, values: range, way_out: str) -> None:
    Image.fromarray(np.array([values], np.uint16 if max(values) > 255 else np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=way_out):
        scan_values([tmp_path / "a.png"])


@pytest.mark.parametrize(("resample", "size"), [("BILINEAR", 80), ("BOX", 20), ("BICUBIC", 60)])
def test_smoothly_resized_masks_are_no_classes(tmp_path: Path, resample: str, size: int) -> None:
    disk = Image.fromarray(((np.hypot(*np.mgrid[-20:20, -20:20]) < 12) * 255).astype(np.uint8))
    disk.resize((size, size), Image.Resampling[resample]).save(tmp_path / "a.png")
    found = scan_values([tmp_path / "a.png"], named=300)
    for classes in (None, ["background", "polyp"]):
        with pytest.raises(UserError, match="--threshold 127"):
            build_mapping(found, classes)


def test_one_class_in_two_encodings_stops(tmp_path: Path) -> None:
    bits = np.array([[0, 1]])
    write(tmp_path / "a.png", bits * 255)
    Image.fromarray((bits * 65535).astype(np.uint16)).save(tmp_path / "b.png")
    with pytest.raises(UserError, match=r"8 and of 16 bits.*--threshold 127"):
        build_mapping(scan_values([tmp_path / "a.png", tmp_path / "b.png"]))
    red = write(tmp_path / "c.png", rgb((0, 0, 0), (255, 0, 0)))
    masks = [tmp_path / "a.png", red]
    with pytest.raises(UserError, match=r"#ff0000 and white.*--threshold 0"):
        build_mapping(scan_values(masks))
    assert build_mapping(scan_values(masks), ["background", "red", "white"]).indices == (0, 1, 2)
    green = write(tmp_path / "e.png", rgb((0, 0, 0), (0, 128, 0)))
    assert build_mapping(scan_values([red, green])).indices == (0, 1, 2)
    both = write(tmp_path / "d.png", rgb((255, 0, 0), (255, 255, 255)))
    mapping = build_mapping(scan_values([*masks, both]))
    assert mapping.indices == (0, 1, 2)
    assert "white_apart" not in mapping.to_json()


def test_threshold_scan_takes_any_values(tmp_path: Path) -> None:
    masks = [write(tmp_path / "a.png", [list(range(256))]), write(tmp_path / "b.png", rgb((9, 9, 9), (0, 200, 30)))]
    masks.append(write(tmp_path / "c.png", [[0, 127]]))
    mapping = build_mapping(scan_values(masks, 2, threshold=127))
    assert mapping.apply(read_mask(masks[0]))[0].tolist() == [0] * 128 + [1] * 128
    assert mapping.apply(read_mask(masks[1])).tolist() == [[0, 1]]  # of colours, the largest channel
    assert mapping.describe() == (
        "at most 127 -> 0 background (present in 3 of 3 masks)\nabove 127 -> 1 foreground (present in 2 of 3 masks)"
    )


def test_grey_masks_among_colours_are_colours(tmp_path: Path) -> None:
    """White in a file without other colours must not become the blue whose packed number is 255."""
    masks = [
        write(tmp_path / "colour.png", rgb((0, 0, 0), (255, 255, 255), (255, 0, 0))),
        write(tmp_path / "blue.png", rgb((0, 0, 0), (0, 0, 255))),
        write(tmp_path / "grey.png", rgb((0, 0, 0), (255, 255, 255))),
    ]
    values = scan_values(masks, 2)
    assert values == MaskValues((0, 0x0000FF, 0xFF0000, 0xFFFFFF), (3, 1, 1, 2), 3, packed_rgb=True)
    mapping = build_mapping(values)
    applied = [mapping.apply(read_mask(mask))[0].tolist() for mask in masks]
    assert applied == [[0, 3, 2], [0, 1], [0, 3]]
    assert "#ff0000 -> 2 class_2 (present in 1 of 3 masks)" in mapping.describe()


def test_sixteen_bit_masks(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[0, 1000], [2000, 0]], np.uint16)).save(path)
    mapping = build_mapping(scan_values([path]))
    assert mapping.apply(read_mask(path)).tolist() == [[0, 1], [2, 0]]
    colour = write(tmp_path / "b.png", rgb((1, 2, 3)))
    for masks in ([path, colour], [colour, path]):
        with pytest.raises(UserError, match=rf"{masks[1].name}: masks in colour and masks with grey values above 255"):
            scan_values(masks)


def test_jpeg_masks(tmp_path: Path) -> None:
    disk = np.hypot(*np.mgrid[-20:20, -20:20]) < 12
    noisy = [write(tmp_path / "a.jpg", disk * 255, quality=95)]
    with pytest.raises(UserError, match="--threshold 127"):
        build_mapping(scan_values(noisy))
    flat = [write(tmp_path / "b.jpg", np.zeros((8, 8))), write(tmp_path / "c.jpg", np.full((8, 8), 255))]
    assert pairs(build_mapping(scan_values(flat))) == {0: 0, 255: 1}  # exact after all
    mapping = build_mapping(scan_values(noisy, threshold=127))
    np.testing.assert_array_equal(mapping.apply(read_mask(noisy[0])), disk)


def test_no_masks() -> None:
    with pytest.raises(UserError, match="no masks"):
        scan_values([])


def palette(path: Path, values: object, *colours: int) -> Path:
    """A palette PNG of these indices, which stand for the colours 0xRRGGBB."""
    image = Image.fromarray(np.asarray(values, np.uint8))
    image.putpalette([channel for colour in colours for channel in colour.to_bytes(3, "big")])
    image.save(path)
    return path


CLASHING = {
    "adaptive": (
        lambda a: palette(a, [[0, 1, 2]], 0, 0xFF0000, 0x008000),
        lambda b: palette(b, [[0, 2, 1]], 0, 0x008000, 0xFF0000),
        r"index 1 is #ff0000 .*#008000",
    ),
    "two entries swapped": (
        lambda a: palette(a, [[0, 1]], 0, 0xFFFFFF),
        lambda b: palette(b, [[1, 0]], 0xFFFFFF, 0),
        r"index 0 is #000000 .*#ffffff",
    ),
    "RGB and P": (
        lambda a: write(a, rgb((0, 0, 0), (255, 0, 0))),
        lambda b: palette(b, [[0, 1]], 0, 0xFF0000),
        "beside masks in colour",
    ),
}


@pytest.mark.parametrize("threshold", [None, 0])
@pytest.mark.parametrize("name", CLASHING)
def test_palettes_that_contradict_each_other_stop(tmp_path: Path, name: str, threshold: int | None) -> None:
    first, second, message = CLASHING[name]
    masks = [first(tmp_path / "a.png"), second(tmp_path / "b.png")]
    for order in (masks, masks[::-1]):
        with pytest.raises(UserError, match=rf"{order[0].name} and .*{order[1].name}: .*(palette|colour).*; .*RGB"):
            scan_values(order, 1, threshold=threshold)
    with pytest.raises(UserError, match=message):
        scan_values(masks, 1, threshold=threshold)


def test_one_palette_is_read_by_index_as_before(tmp_path: Path) -> None:
    """Entries that no pixel uses may differ; an index that is its own grey is a colour like any other."""
    masks = [palette(tmp_path / "a.png", [[0, 1]], 0, 0xFF0000), palette(tmp_path / "b.png", [[0, 2]], 0, 7, 0x00FF00)]
    assert scan_values(masks, 2) == MaskValues((0, 1, 2), (2, 1, 1), 2)
    grey = palette(tmp_path / "c.png", [[0, 255]], *(value * 0x010101 for value in range(256)))
    colour = write(tmp_path / "d.png", rgb((0, 0, 0), (255, 0, 0)))
    assert scan_values([grey, colour], 2).values == (0, 0xFF0000, 0xFFFFFF)


# --- rules ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "classes", "expected"),
    [
        ((0, 255), None, {0: 0, 255: 1}),
        ((0, 1), None, {0: 0, 1: 1}),
        ((1, 2), None, {1: 0, 2: 1}),
        ((38, 75), None, {38: 0, 75: 1}),
        ((0, 1, 2, 3), None, {0: 0, 1: 1, 2: 2, 3: 3}),
        ((0, 85, 170, 255), None, {0: 0, 85: 1, 170: 2, 255: 3}),
        ((0, 127, 255), None, {0: 0, 127: 1, 255: 2}),
        ((0, 51, 102, 153, 204, 255), None, {51 * i: i for i in range(6)}),
        ((0, 64, 128, 191, 255), "background,a,b,c,d", {0: 0, 64: 1, 128: 2, 191: 3, 255: 4}),
        ((0, 2, 7), None, {0: 0, 2: 1, 7: 2}),
        ((0, 1000, 40000), None, {0: 0, 1000: 1, 40000: 2}),
        (tuple(range(32)), None, {i: i for i in range(32)}),
        ((0, 255), "background,polyp", {0: 0, 255: 1}),
        ((0,), "background,polyp", {0: 0}),
        ((0, 2), "background,a,b", {0: 0, 2: 2}),  # a is rare: b keeps its index
        ((1, 2), "background,a,b", {1: 1, 2: 2}),
        ((0, 4, 9), "background,a,b", {0: 0, 4: 1, 9: 2}),
        ((0, 1, 255), "background,a,void", {0: 0, 1: 1, 255: 2}),  # ambiguous, but all are named
    ],
)
def test_values_to_indices(values: tuple[int, ...], classes: str | None, expected: dict[int, int]) -> None:
    mapping = build_mapping(found(*values), classes.split(",") if classes else None)
    assert pairs(mapping) == expected
    names = classes.split(",") if classes else ["background", *(f"class_{i}" for i in range(1, len(values)))]
    assert list(mapping.classes) == (["background", "foreground"] if not classes and len(values) == 2 else names)


def test_a_class_no_mask_holds_is_shown() -> None:
    text = build_mapping(found(0, 2), ["background", "a", "b"]).describe()
    assert text.splitlines()[-1] == "nothing -> 1 a (in no mask)"


@pytest.mark.parametrize(
    ("values", "classes", "message"),
    [
        (found(0, 1, 2, 253, 254, 255), None, "--threshold 127"),
        (found(0, 254, 255), None, "--threshold 127"),
        (found(0, 3, 255), None, "--threshold 127"),
        (found(0, 3, 250, 255), "background,polyp", "--threshold 127"),
        (found(0, 100, 255, jpeg=True), None, "JPEG.*--threshold 127"),
        (found(0, 64, 128, 191, 255), None, "resized.*--threshold 127.*--classes"),  # means over 2 x 2 pixels
        (found(0, 64, 128, 192, 255), None, "resized.*--threshold 127.*--classes"),  # Pillow's
        (found(0, 16, 48, 255), None, "resized.*--threshold 127"),
        (found(0, 255, 65535), None, "8 and of 16 bits"),
        (found(0, 1, 255), None, "ambiguous.*--classes.*--threshold 0"),
        (found(0, 1, 2, 255), "background,a,b", "ambiguous"),
        (found(0), None, "no foreground"),
        (found(255), None, "--classes background,polyp --threshold 0$"),
        (found(0, 255), "foreground,Background", "give Background,foreground"),
        (found(255), "background,polyp", "1 mask values"),
        (found(0, 255), "background,a,b", r"3 class names \(background, a, b\) for 2 mask values \(0, 255\)"),
        (found(0, 1, 2), "background,a", r"2 class names \(background, a\) for 3 mask values \(0, 1, 2\)"),
        (found(0, 1, 2), "background,a", "or pass --threshold 0 "),
        (found(0, 128, 255), "background,a", "or pass --threshold 127 "),
        (found(0, 1), "background,a,a", "'a' is given twice"),
        (found(0, 1), "background", "at least|1 to 254 more"),
        (found(0, 1), "background, ", "1 to 254 more"),
        (found(-1, 0), None, "renumber"),
        (found(0, 1 << 24), None, "renumber"),
        (found(0xFF0000, 0xFFFFFF, packed_rgb=True), None, "#ff0000, #ffffff: none is black"),
        (found(0, threshold=127), None, "at most 127.*no foreground"),
        (found(0, 1, threshold=127), "background,a,b", "3 class names"),
    ],
)
def test_ambiguous_values_stop(values: MaskValues, classes: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build_mapping(values, classes.split(",") if classes else None)
    assert "\n" not in str(caught.value)


def test_unseen_values_stop() -> None:
    binary = build_mapping(found(0, 255))
    with pytest.raises(UserError, match=r"mask value 128 .*0, 255"):
        binary.apply(np.array([[0, 128]], np.uint8))
    for value in (256, 70000, -1, 1 << 30):
        with pytest.raises(UserError, match=f"mask value {value} "):
            binary.apply(np.array([[0, value]], np.int64))
    with pytest.raises(UserError, match="in colour"):
        binary.apply(np.array([[0, 255]], np.int32))
    packed = build_mapping(found(0, 0xFF0000, packed_rgb=True))
    with pytest.raises(UserError, match=r"#00ff00 .*#000000, #ff0000"):
        packed.apply(np.array([[0, 0x00FF00]], np.int32))


# --- round trips ----------------------------------------------------------------------------------------------------


@settings(derandomize=True, deadline=None, max_examples=80)
@given(st.sets(st.integers(0, 0xFFFFFF), min_size=2, max_size=32), st.booleans(), st.integers(0, 2**32 - 1))
def test_apply_is_the_table_written_out_and_json_keeps_it(values: set[int], packed: bool, seed: int) -> None:
    names = ["background", *(f"c{i}" for i in range(1, len(values)))]
    mapping = build_mapping(found(*values, packed_rgb=packed), names)
    raw = np.random.default_rng(seed).choice(sorted(values), (6, 5)).astype(np.int32 if packed else np.int64)
    labels = mapping.apply(raw)
    assert labels.dtype == np.uint8
    assert labels.tolist() == [[pairs(mapping)[value] for value in row] for row in raw.tolist()]
    np.testing.assert_array_equal(np.array(sorted(values))[labels], raw)  # nothing was merged
    saved = json.loads(json.dumps(mapping.to_json()))
    assert LabelMapping.from_json(saved) == mapping


@pytest.mark.parametrize(
    "change",
    [
        {"values": [0, "x"]},
        {"indices": [0]},
        {"indices": [0, 7]},
        {"values": [-1, 255]},
        {"values": None},
        {"classes": []},
        {"more": 1},
    ],
)
def test_damaged_json(change: dict[str, object]) -> None:
    saved = build_mapping(found(0, 255)).to_json()
    with pytest.raises(UserError, match="damaged"):
        LabelMapping.from_json(saved | change)
    for key in ("values", "indices", "classes", "masks"):
        with pytest.raises(UserError, match="damaged"):
            LabelMapping.from_json({k: v for k, v in saved.items() if k != key})


def test_colours_are_distinct_from_the_first_on() -> None:
    many = colours(255)
    assert many[0] == (0, 0, 0)
    assert len(set(many)) == 255
    assert colours(4) == many[:4]
    assert all(0 <= channel <= 255 for colour in many for channel in colour)
    nearest = min(sum(abs(a - b) for a, b in zip(p, q, strict=True)) for p, q in itertools.combinations(many[:12], 2))
    assert nearest > 60


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real images lie beside the checkout")
@pytest.mark.parametrize(("name", "values"), [("busi", (0, 255)), ("drive", (0, 255)), ("acdc", (0, 1, 2, 3))])
def test_real_masks(name: str, values: tuple[int, ...]) -> None:
    masks = [row.mask for row in load_manifest(SHARED / name).rows if row.mask is not None][:150]
    scanned = scan_values(masks, 2)
    assert scanned.values == values
    assert int(build_mapping(scanned).apply(read_mask(masks[0])).max()) < len(values)
