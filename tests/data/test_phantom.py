from __future__ import annotations

import csv
import hashlib
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from segdistill.data.phantom import write_phantom
from segdistill.data.scenes import SCENES
from segdistill.types import UserError

SMALL = {"labelled": 10, "unlabelled": 4, "val": 3, "test": 7, "size": 64}


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "manifest.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("phantom") / "a set, größer"
    write_phantom(path, **SMALL)
    return path


def test_manifest_counts_and_columns(folder: Path) -> None:
    rows = rows_of(folder)
    assert list(rows[0]) == ["image", "mask", "split", "patient", "modality"]
    assert Counter(row["split"] for row in rows) == {"train": 14, "val": 3, "test": 7}
    unlabelled = [row for row in rows if not row["mask"]]
    assert len(unlabelled) == 4
    assert {row["split"] for row in unlabelled} == {"train"}
    assert {row["modality"] for row in rows} == set(SCENES)


def test_exactly_the_listed_files_exist(folder: Path) -> None:
    listed = {row[kind] for row in rows_of(folder) for kind in ("image", "mask")} - {""}
    assert len(listed) == 24 + 20
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}
    assert found == listed


def test_a_patient_has_one_split_and_one_modality(folder: Path) -> None:
    groups = defaultdict(set)
    sizes: Counter[str] = Counter()
    for row in rows_of(folder):
        groups[row["patient"]].add((row["split"], row["modality"], bool(row["mask"])))
        sizes[row["patient"]] += 1
    assert all(len(kinds) == 1 for kinds in groups.values())
    assert max(sizes.values()) == 3


def test_images_are_rgb_and_masks_hold_0_and_1(folder: Path) -> None:
    for row in rows_of(folder):
        with Image.open(folder / row["image"]) as image:
            assert (image.size, image.mode) == ((64, 64), "RGB")
            assert np.asarray(image).std() > 10
        if row["mask"]:
            with Image.open(folder / row["mask"]) as mask:
                values = np.asarray(mask)
            assert values.shape == (64, 64)
            assert set(np.unique(values)) == {0, 1}
            assert 0.01 < values.mean() < 0.4


def test_same_arguments_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_phantom(tmp_path, **SMALL)
    assert digests(tmp_path) == digests(folder)
    write_phantom(tmp_path, **SMALL)  # again over what is there
    assert digests(tmp_path) == digests(folder)


def test_another_seed_gives_other_images_under_the_same_names(folder: Path, tmp_path: Path) -> None:
    write_phantom(tmp_path, **SMALL, seed=1)
    here, there = digests(folder), digests(tmp_path)
    assert here.keys() == there.keys()
    assert {name for name in here if here[name] == there[name]} == {"manifest.csv"}


def test_an_image_does_not_depend_on_the_counts(folder: Path, tmp_path: Path) -> None:
    write_phantom(tmp_path, **(SMALL | {"labelled": 1, "unlabelled": 0, "val": 1, "test": 2}))
    here, there = digests(folder), digests(tmp_path)
    images = [name for name in there if name != "manifest.csv"]
    assert len(images) == 8
    assert all(here[name] == there[name] for name in images)


@pytest.mark.parametrize("modality", SCENES)
def test_scene(modality: str) -> None:
    """All images of a patient differ, and any size gives the same scene: foreground share within a quarter."""
    for patient in range(3):
        shares = {}
        for size in (32, 128):
            image, mask = SCENES[modality](np.random.default_rng(patient), np.random.default_rng(7), size)
            assert image.shape == (size, size, 3)
            assert image.min() >= 0
            assert image.max() <= 1
            shares[size] = mask.mean()
            assert 0.01 < shares[size] < 0.4
        other, _ = SCENES[modality](np.random.default_rng(patient), np.random.default_rng(8), 128)
        assert not np.array_equal(image, other)


def test_images_of_a_patient_are_alike() -> None:
    """Mean hues (colour over brightness) vary less within patients than between them."""

    def hue(modality: str, patient: int, image: int) -> np.ndarray:
        scene = SCENES[modality](np.random.default_rng([5, patient]), np.random.default_rng([5, patient, image]), 48)
        colour = scene[0].mean((0, 1))
        return colour / colour.sum()

    for modality in ("endoscopy", "microscopy"):
        hues = np.array([[hue(modality, patient, image) for image in range(3)] for patient in range(8)])
        assert hues.std(axis=1).mean() < 0.5 * hues.mean(axis=1).std(axis=0).mean(), modality


def test_brightness_alone_does_not_find_the_foreground() -> None:
    """The best threshold on grey, either side, chosen per image with the mask in hand, stays a poor segmentation."""
    for modality, scene in SCENES.items():
        best = []
        for patient in range(4):
            image, mask = scene(np.random.default_rng([9, patient]), np.random.default_rng(patient), 96)
            grey = ndimage.gaussian_filter(image.mean(2), 1)
            dices = [
                2 * (mask & side).sum() / (mask.sum() + side.sum())
                for level in np.quantile(grey, np.linspace(0.02, 0.98, 25))
                for side in (grey < level, grey > level)
            ]
            best.append(max(dices))
        assert np.mean(best) < 0.85, modality


def test_unusable_arguments(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 32"):
        write_phantom(tmp_path, size=16)
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be made a folder"):
        write_phantom(tmp_path / "file", **SMALL)
