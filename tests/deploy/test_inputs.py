from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from volumes import save_nifti, save_series

from segdistill.deploy.inputs import find_images
from segdistill.deploy.sources import find_sources
from segdistill.types import UserError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def names(inputs, out=Path("nowhere")) -> dict[str, str]:
    """Output name -> name of the first file."""
    return {source.name.as_posix(): source.files[0].name for source in find_sources(inputs, out)}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "Bilder ä"
    touch(root, "a.png", "b.JPG", "sub/a.tif", "sub/deep/c.bmp", "notes.txt")
    touch(root, ".hidden.png", ".cache/x.png", "sub/.d.png")
    return root


def test_a_folder_is_searched_with_its_subfolders(tree):
    assert names([tree]) == {"a": "a.png", "b": "b.JPG", "sub/a": "a.tif", "sub/deep/c": "c.bmp"}


def test_files_and_patterns(tree):
    assert names([tree / "notes.txt"]) == {"notes": "notes.txt"}  # named, so tried: reading says what is wrong
    assert names([str(tree / "*")]) == names([tree])
    assert names([f"{tree}/*.png"]) == {"a": "a.png"}
    assert names([f"{tree}/**/*.tif"]) == {"sub/a": "a.tif"}
    assert names([tree / "sub", tree / "b.JPG"]) == {"a": "a.tif", "deep/c": "c.bmp", "b": "b.JPG"}


def test_a_relative_folder(tree, monkeypatch):
    monkeypatch.chdir(tree)
    assert names(["."]) == names([tree])
    assert names(["*.png"]) == {"a": "a.png"}
    assert names(["sub"]) == {"a": "a.tif", "deep/c": "c.bmp"}


def test_an_image_given_twice_is_taken_once(tree):
    assert names([tree / "a.png", tree, f"{tree}/*"]) == names([tree])


def test_a_file_whose_name_looks_like_a_pattern(tree):
    touch(tree, "scan[1].png")
    assert names([tree / "scan[1].png"]) == {"scan[1]": "scan[1].png"}


@pytest.mark.parametrize("given", ["missing", "missing/*.png", "empty", "notes/*"])
def test_an_input_without_an_image_is_named(tree, given):
    (tree / "empty").mkdir()
    touch(tree, "notes/a.txt")
    with pytest.raises(UserError, match="image") as error:
        find_images([tree / "a.png", str(tree / given)])
    assert given in str(error.value).replace(os.sep, "/")
    with pytest.raises(UserError, match="no image was given"):
        find_images([])


def test_a_slice_of_a_volume(tree):
    touch(tree, "vol.nii.gz")
    given = [f"{tree}/vol.nii.gz#2", f"{tree}/vol.nii.gz#11"]
    assert names(given) == {"vol#2": "vol.nii.gz#2", "vol#11": "vol.nii.gz#11"}
    with pytest.raises(UserError, match="does not exist"):
        find_images([f"{tree}/a.png#1"])


def test_equal_stems_keep_their_suffix(tree):
    touch(tree, "a.jpg", "B.png")
    found = names([tree])
    assert found["a.png"] == "a.png"
    assert found["a.jpg"] == "a.jpg"
    assert found["B.png"] == "B.png"  # b.JPG differs by case only
    assert found["b.JPG"] == "b.JPG"
    assert found["sub/a"] == "a.tif"


def test_output_names_never_collide_even_where_case_does_not_count(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    touch(one, "a.png", "a.jpg", "a.png.png", "x.png", "x_overlay.png")
    touch(two, "a.png", "A.jpg", "X.png")
    found = find_sources([one, two], tmp_path / "out")
    assert len(found) == 8
    keys = [source.name.as_posix().casefold() for source in found]
    files = keys + [key + "_overlay" for key in keys]
    assert len(files) == len(set(files))
    assert found == find_sources([one, two], tmp_path / "out")


def test_a_series_and_a_file_of_its_folders_name(tmp_path):
    (tmp_path / "case1").mkdir()
    volume = np.zeros((3, 6, 8), np.int16)
    (first, *_) = save_series(tmp_path / "case1", volume)
    assert names([tmp_path]) == {"case1": first.name}
    save_nifti(tmp_path / "Case1.nii.gz", volume)
    found = names([tmp_path])
    assert found["Case1.nii.gz"] == "Case1.nii.gz"
    (name,) = found.keys() - {"Case1.nii.gz"}
    assert name.startswith("case1/series-")


def test_the_planes_of_a_localizer_have_names_of_their_own(tmp_path):
    """One series UID, three orientations."""
    (tmp_path / "made").mkdir()
    (tmp_path / "scout").mkdir()
    planes = {(1, 0, 0, 0, 1, 0): (0, 0, 5), (1, 0, 0, 0, 0, -1): (0, 5, 0), (0, 1, 0, 0, 0, -1): (5, 0, 0)}
    for number, (orientation, step) in enumerate(planes.items()):
        volume = np.zeros((3, 6, 8), np.uint16)
        for file in save_series(tmp_path / "made", volume, step=step, ImageOrientationPatient=list(orientation)):
            file.rename(tmp_path / "scout" / f"{number}{file.name}")
    found = names([tmp_path / "scout"])
    assert [file[0] for file in found.values()] == ["0", "1", "2"]
    assert all(name.startswith("series-") for name in found)
    assert found == names([tmp_path / "scout"])


def test_results_inside_the_inputs_are_not_inputs(tree):
    touch(tree, "pred/a.png", "pred/sub/a.png", "predicted.png")
    before = names([tree], tree / "pred")
    assert before == {"a": "a.png", "b": "b.JPG", "sub/a": "a.tif", "sub/deep/c": "c.bmp", "predicted": "predicted.png"}
    assert names([str(tree / "*")], tree / "pred") == before


@pytest.mark.parametrize("given", [".", "sub", "sub/*.tif"])
def test_a_folder_inside_the_output_folder_is_refused(tree, given):
    with pytest.raises(UserError, match="lies in the output folder"):
        find_images([str(tree / given)], tree)
    assert names([tree / "a.png"], tree) == {"a": "a.png"}  # a named file is meant
