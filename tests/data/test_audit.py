"""Planted faults are found, each under its name; clean data give none. Pictures are generated, copies Pillow's."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import disk
from PIL import Image
from scipy.ndimage import gaussian_filter

from segdistill.data.audit import LEAKS, audit, judge
from segdistill.data.hashing import SIDE, near_pairs, thumbnail
from segdistill.data.inspection import Seen, inspect
from segdistill.data.manifest import Row, load_manifest


def picture(rng, size=96):
    """Structure at several scales, as real images have."""
    grey = sum(s * 25 * gaussian_filter(rng.normal(size=(size, size)), s) for s in (1, 2, 4, 8, 16))
    return np.repeat((128 + grey).clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def write(folder, count=16, size=96):
    """images/ + masks/ of a disk each, and their rows, patients and splits known."""
    rng = np.random.default_rng(7)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    rows = []
    for i in range(count):
        image, mask = folder / "images" / f"{i:02d}.png", folder / "masks" / f"{i:02d}.png"
        Image.fromarray(picture(rng, size)).save(image)
        Image.fromarray(disk((size, size), rng.uniform(30, 60, 2), 15, 255)).save(mask)
        rows.append(Row(image, mask, "train" if i < count - 4 else "test", patient=f"p{i}"))
    return rows


@pytest.fixture
def rows(tmp_path):
    return write(tmp_path / "größe 1")


def codes(result):
    return {finding.code: finding for finding in result.findings}


def test_clean_data(rows):
    result = audit(rows, threads=1)
    assert result.findings == ()
    assert result.facts["images"] == result.facts["with mask"] == 16
    assert result.facts["splits"]["test"] == {"images": 4, "with mask": 4, "patients": 4}
    assert result.facts["sizes"]["commonest"] == (96, 96)
    share = np.mean([np.asarray(Image.open(row.mask)) == 255 for row in rows])
    background, foreground = result.facts["classes"]
    assert foreground == {"name": "foreground", "pixels": pytest.approx(share), "masks": 1.0}
    assert background["pixels"] == pytest.approx(1 - share)


COPIES = {
    "copies-across-splits": lambda image, path: image.save(path.with_suffix(".bmp")),
    "near-copies-across-splits": lambda image, path: image.save(path.with_suffix(".jpg"), quality=60),
    "near-copies-across-splits, half the size": lambda image, path: image.resize((48, 48)).save(
        path.with_suffix(".tif")
    ),
    "near-copies-across-splits, twice the size": lambda image, path: image.resize((192, 192)).save(
        path.with_suffix(".jpg")
    ),
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_across_splits(rows, name):
    target = rows[-1].image.with_name("copy.png")
    COPIES[name](Image.open(rows[3].image), target)
    copy = next(rows[-1].image.parent.glob("copy.*"))
    result = audit([*rows, Row(copy, None, "test", patient="other")], threads=1, root=rows[0].image.parents[1])
    assert set(codes(result)) == {name.partition(",")[0]}
    finding = result.leaks[0]
    assert finding.severity == "error"
    assert set(finding.rows) == {3, 16}
    assert "images/03.png (train)" in finding.files[0]
    assert f"images/{copy.name} (test)" in finding.files[0]
    within = audit([*rows, Row(copy, None, "train", patient="other")], threads=1)
    assert [finding.severity for finding in within.findings] == ["warning"]
    unsplit = audit([replace(row, split="") for row in [*rows, Row(copy, None, "")]], threads=1)
    assert [finding.severity for finding in unsplit.findings] == ["warning"]
    assert "may part them" in unsplit.findings[0].way_out


def test_splits_are_judged_again_without_reading(rows, tmp_path):
    shutil.copy(rows[0].image, rows[0].image.with_name("again.png"))
    rows = [replace(row, split="") for row in [*rows, Row(rows[0].image.with_name("again.png"), None)]]
    seen = inspect(rows, threads=1)
    shutil.rmtree(rows[0].image.parents[1])
    assert set(codes(judge(rows, seen))) == {"copies"}
    rows = [replace(row, split="test" if i == 16 else "train") for i, row in enumerate(rows)]
    assert {finding.code for finding in judge(rows, seen).leaks} == {"copies-across-splits"} <= LEAKS


def test_the_frames_of_a_scene_are_not_all_listed(monkeypatch):
    """Those across splits are, however many others come before them."""
    monkeypatch.setattr("segdistill.data.hashing.LISTED", 100)
    monkeypatch.setattr("segdistill.data.findings.LISTED", 100)
    rng = np.random.default_rng(3)
    scene = thumbnail(picture(rng))
    frames = [(scene + rng.integers(0, 3, scene.shape)).astype(np.uint8) for _ in range(60)]
    others = [thumbnail(picture(rng)) for _ in range(60)]
    rows = [Row(Path(f"{i}.png"), None, "train" if i < 119 else "test") for i in range(120)]
    seen = [Seen(digest=bytes([i]), picture=one) for i, one in enumerate([*frames[:59], *others, frames[59]])]
    found = codes(judge(rows, seen))
    assert found["near-copies"].what == "images that are nearly equal: at least 100 pairs"
    assert found["near-copies"].more == 95
    assert "59 pairs" in found["near-copies-across-splits"].what
    monkeypatch.setattr("segdistill.data.findings.KEPT_PAIRS", 10)
    assert len(codes(judge(rows, seen))["near-copies"].rows) == 20


def test_patients_that_differ_only_in_case_or_blanks(rows):
    rows = [replace(row, patient={"p3": "P15", "p4": "p14 "}.get(row.patient, row.patient)) for row in rows]
    (finding,) = audit(rows, threads=1).findings
    assert (finding.severity, finding.code) == ("warning", "patients-alike")
    assert finding.files == ("P15 = p15", "p14  = p14")
    assert finding.rows == (3, 15, 4, 14)


def test_frames_of_one_patient_are_alike_and_may_be(rows):
    frame = rows[0].image.with_name("frame.jpg")
    Image.open(rows[0].image).save(frame, quality=90)
    assert audit([*rows, Row(frame, None, "train", patient="p0")], threads=1).findings == ()
    result = audit([*rows, Row(frame, None, "test", patient="p0")], threads=1)
    assert set(codes(result)) == {"near-copies-across-splits", "patients-across-splits"}
    assert codes(result)["patients-across-splits"].files == ("p0 (test, train)",)


def test_volumes_stand_in_for_patients(rows):
    torn = [replace(row, patient="", volume=f"v{i % 14}") for i, row in enumerate(rows)]
    assert codes(audit(torn, threads=1))["patients-across-splits"].what.endswith(": 2")


def test_files_of_slices_stand_in_for_volumes():
    folder = Path("set")  # never opened
    rows = [Row(folder / f"b{i // 3}.nii.gz#{i % 3}", None, "test" if i == 4 else "train") for i in range(9)]
    found = judge(rows, [Seen()] * 9, root=folder).leaks
    assert [finding.code for finding in found] == ["patients-across-splits"]
    assert found[0].files == ("b1.nii.gz (test, train)",)
    assert set(found[0].rows) == {3, 4}


def test_a_volume_that_is_scored_has_masks_without_gaps():
    """Of a training volume some slices may do."""
    rows = [
        Row(Path(f"{v}{k}.png"), None if k == 2 else Path("m"), split, volume=v, slice=k)
        for v, split in (("a", "train"), ("b", "test"))
        for k in range(5)
    ]
    found = [finding for finding in judge(rows, [Seen()] * 10, root=Path()).findings if finding.code == "broken-volume"]
    assert [finding.what for finding in found] == [
        "of those with a mask, volume b: its slices are 0, 1, 3, 4, but must follow one another"
    ]


def test_broken_files_are_findings(rows):
    rows[0].image.write_bytes(b"")
    rows[1].mask.write_bytes(rows[1].mask.read_bytes()[:50])
    Image.open(rows[2].mask).resize((50, 40), 0).save(rows[2].mask)
    rows[3].image.unlink()
    result = audit(rows, threads=2)
    assert codes(result)["unreadable"].rows == (0, 1, 3)
    assert codes(result)["size-mismatch"].rows == (2,)
    assert "50x40" in codes(result)["size-mismatch"].what
    assert {finding.severity for finding in result.findings} == {"error"}
    assert result.facts["images"] == 16


@pytest.mark.parametrize("orientation", [3, 6])
def test_images_turned_away_from_their_masks(rows, orientation):
    """The image says how it is to be turned, the mask, drawn on the pixels as stored, does not."""
    exif = Image.Exif()
    exif[0x112] = orientation
    suffixes = (".jpg", ".png", ".tif")
    turned = [replace(row, image=row.image.with_suffix(one)) for row, one in zip(rows, suffixes, strict=False)]
    for row, to in zip(rows, turned, strict=False):
        Image.open(row.image).save(to.image, exif=exif)
    finding = codes(audit(turned, threads=1))["turned"]
    assert (finding.severity, finding.rows) == ("warning", (0, 1, 2))
    assert "--sheet" in finding.way_out
    for row in turned:
        Image.open(row.mask).save(row.mask, exif=exif)
    assert audit(turned, threads=1).findings == ()


def test_swapped_sides_name_the_orientation(rows):
    exif = Image.Exif()
    exif[0x112] = 6
    Image.open(rows[0].image).crop((0, 0, 96, 60)).save(rows[0].image, exif=exif)
    Image.open(rows[0].mask).crop((0, 0, 96, 60)).save(rows[0].mask)
    finding = codes(audit(rows, threads=1))["size-mismatch"]
    assert "1 with sides swapped" in finding.what
    assert "exiftool -Orientation= " in finding.way_out
    assert "turned" not in codes(audit(rows, threads=1))


def test_masks_empty_full_and_grey(rows):
    Image.new("L", (96, 96)).save(rows[0].mask)
    Image.new("L", (96, 96), 255).save(rows[1].mask)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96)).astype(np.uint8)).save(rows[2].mask)
    result = audit(rows, threads=1)
    found = codes(result)
    assert {code: finding.rows for code, finding in found.items()} == {
        "ambiguous-masks": (2,), "empty-masks": (0,), "near-full-masks": (1,)
    }  # fmt: skip
    assert [finding.severity for finding in result.findings] == ["error", "warning", "warning"]
    assert "--threshold 127" in found["ambiguous-masks"].way_out
    assert "ambiguous-masks" not in codes(audit(rows, threshold=127, threads=1))


@pytest.mark.parametrize("threshold", [None, 0])
def test_palettes_that_contradict_each_other_are_found(rows, threshold):
    """Saved by convert("P", palette=ADAPTIVE): each file numbers its colours anew."""
    black, red, green = (0, 0, 0), (255, 0, 0), (0, 128, 0)
    for i, row in enumerate(rows):
        image = Image.fromarray((np.asarray(Image.open(row.mask)) > 0).astype(np.uint8))
        image.putpalette([*black, *(red if i < 9 else green)])
        image.save(row.mask)
    finding = codes(audit(rows, threads=1, threshold=threshold))["ambiguous-masks"]
    assert finding.rows == (0, 9)
    assert "#ff0000" in finding.what
    Image.fromarray(np.full((96, 96, 3), red, np.uint8)).save(rows[0].mask)
    assert "beside masks in colour" in codes(audit(rows[:9], threads=1, threshold=threshold))["ambiguous-masks"].what


@pytest.mark.parametrize("foreground", ["black", "white"])
def test_black_that_is_not_index_0_is_warned_of(rows, foreground):
    palette = [255, 255, 255, 0, 0, 0] if foreground == "black" else [0, 0, 0, 255, 255, 255]
    for row in rows:
        image = Image.fromarray((np.asarray(Image.open(row.mask)) > 0).astype(np.uint8))
        image.putpalette(palette)
        image.save(row.mask)
    found = codes(audit(rows, threads=1))
    assert ("black-elsewhere" in found) == (foreground == "black")
    if foreground == "black":
        assert found["black-elsewhere"].what.startswith("palette masks in which index 0 is #ffffff and index 1 black")


def test_classes_missing_in_a_split(rows):
    """A third class in two test masks alone; then one that no mask shows."""
    for row in rows[-2:]:
        pixels = np.array(Image.open(row.mask))
        pixels[:20, :20] = 128
        Image.fromarray(pixels).save(row.mask)
    found = codes(audit(rows, classes=["background", "cyst", "polyp"], threads=1))["missing-class"]
    assert (found.severity, found.rows) == ("warning", (14, 15))
    assert found.what == "class cyst is in no mask of the training split; these show it"
    for row in rows:
        Image.fromarray((np.asarray(Image.open(row.mask)) > 0).astype(np.uint8)).save(row.mask)
    found = codes(audit(rows, classes=["background", "polyp", "cyst"], threads=1))["missing-class"]
    assert (found.what, found.rows) == ("class cyst is in no mask", ())


def test_a_training_without_any_foreground(rows):
    Image.new("L", (96, 96)).save(rows[0].mask)
    budget = [rows[0], *(replace(row, mask=None, hidden=row.mask) for row in rows[1:12]), *rows[12:]]
    finding = codes(audit(budget, threads=1))["no-foreground"]
    assert (finding.severity, finding.rows) == ("error", (0,))
    assert "no-foreground" not in codes(audit(rows, threads=1))
    unsplit = [replace(row, split="") for row in rows]
    assert "no-foreground" in codes(audit(unsplit, classes=["background", "polyp"], threshold=255, threads=1))


def test_numbered_objects_keep_all_of_them(rows):
    """Above 127 there is only the second half of 256 nuclei."""
    numbers = np.arange(96 * 96).reshape(96, 96) % 257
    Image.fromarray(numbers.astype(np.uint16)).save(rows[3].mask)
    finding = codes(audit(rows, threads=1))["ambiguous-masks"]
    assert finding.rows == (3,)
    assert "--threshold 0 " in finding.way_out
    assert "127" not in finding.way_out
    for i, row in enumerate(rows):
        Image.fromarray((numbers % 20 + 2 * i).astype(np.uint8)).save(row.mask)
    assert codes(audit(rows, threads=1))["ambiguous-masks"].way_out.startswith("pass --threshold 0 ")
    assert "ambiguous-masks" not in codes(audit(rows, classes=[f"c{i}" for i in range(50)], threads=1))


def test_one_class_in_two_colours_is_found(rows):
    for row in rows[:8]:
        red = np.asarray(Image.open(row.mask))[..., None] * np.array([1, 0, 0], np.uint8)
        Image.fromarray(red).save(row.mask)
    assert "--threshold 0" in codes(audit(rows, threads=1))["ambiguous-masks"].way_out
    red[:4, :4] = 255
    Image.fromarray(red).save(rows[7].mask)
    assert "ambiguous-masks" not in codes(audit(rows, threads=1))


def test_a_jpeg_damaged_mask_is_named(rows):
    Image.open(rows[5].mask).save(rows[5].mask.with_suffix(".jpg"), quality=95)
    Image.open(rows[5].mask.with_suffix(".jpg")).save(rows[5].mask)
    assert len(np.unique(np.asarray(Image.open(rows[5].mask)))) > 2
    finding = codes(audit(rows, threads=1))["ambiguous-masks"]
    assert finding.rows == (5,)


def test_stray_values_are_named(rows):
    pixels = np.array(Image.open(rows[4].mask))
    pixels[0, :3] = 100
    Image.fromarray(pixels).save(rows[4].mask)
    finding = codes(audit(rows, threads=1))["stray-values"]
    assert finding.rows == (4,)
    assert "100" in finding.what


def test_names_that_collide(rows):
    twin = Row(rows[0].image.with_name("Größe.png"), None)
    other = Row(rows[0].image.with_name("gro\u0308\u00dfe.jpg"), None)  # decomposed, lower case
    rng = np.random.default_rng(99)
    for row in (twin, other):
        Image.fromarray(picture(rng)).save(row.image)
    assert codes(audit([*rows, twin, other], threads=1))["names-collide"].rows == (16, 17)


def test_at_most_five_files_are_named(rows):
    for row in rows[:8]:
        row.image.write_bytes(b"no image")
    finding = audit(rows, threads=1).errors[0]
    assert (len(finding.files), finding.more, len(finding.rows)) == (5, 3, 8)


def test_all_unreadable_is_still_an_audit(rows):
    for row in rows:
        row.image.write_bytes(b"no image")
        row.mask.write_bytes(b"no mask")
    result = audit(rows, threads=1)
    assert set(codes(result)) == {"unreadable"}
    assert result.facts["sizes"] is None
    assert result.facts["classes"] is None


def test_hidden_masks_are_looked_at(rows):
    Image.new("L", (96, 96)).save(rows[0].mask)
    hidden = [replace(row, mask=None, hidden=row.mask) for row in rows]
    assert codes(audit(hidden, threads=1))["empty-masks"].rows == (0,)


def thumbnails(count, shared, seed=0):
    """Pictures of their own on a strong structure that all share, as the edge of a fundus photograph."""
    rng = np.random.default_rng(seed)
    frame = np.where(disk((SIDE, SIDE), (32, 32), 28) > 0, 0, -90) if shared else 0
    own = [12 * gaussian_filter(rng.normal(size=(SIDE, SIDE)), 1.5) / 0.19 for _ in range(count)]
    return np.stack([(130 + frame + one).clip(0, 255).astype(np.uint8) for one in own])


@pytest.mark.parametrize("shared", [False, True])
def test_pairs_are_found_and_only_they(shared):
    made = thumbnails(60, shared)
    noise = np.random.default_rng(1).normal(0, 2, made.shape[1:])
    made[40] = (made[7] + noise).clip(0, 255)
    made[59] = (made[58] + noise).clip(0, 255)
    assert near_pairs(made) == [(7, 40), (58, 59)]
    assert near_pairs(made, ["a" if i in (7, 40) else "" for i in range(60)]) == [(58, 59)]


def test_few_and_blank_pictures():
    assert near_pairs(np.zeros((0, SIDE, SIDE), np.uint8)) == []
    assert near_pairs(np.zeros((30, SIDE, SIDE), np.uint8)) == []
    assert near_pairs(np.repeat(thumbnails(1, False), 2, axis=0)) == [(0, 1)]


@pytest.mark.shared
def test_real_sets(shared):
    def pairs(name):
        rows = load_manifest(shared / "data" / name).rows
        result = audit(rows, threads=1, root=shared / "data" / name)
        assert {finding.code for finding in result.errors} <= {"near-copies-across-splits"}
        return [file for finding in result.leaks for file in finding.files]

    assert pairs("drive") == []  # all of one shape: a plain hash pairs a quarter of them
    assert pairs("busi") == []
    assert any("0174.jpg (train) ~ images/0176.jpg (test)" in file for file in pairs("tg3k_thyroid"))  # video frames
