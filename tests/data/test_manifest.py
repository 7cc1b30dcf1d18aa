"""Folders and CSV files as people have them, tidy or not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from segdistill.data.manifest import load_manifest
from segdistill.data.rows import Manifest, Row
from segdistill.types import UserError

SHARED = Path(__file__).parents[3] / "shared" / "data"


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def csv_file(root: Path, text: str | bytes, name: str = "list.csv") -> Path:
    touch(root, "images/a.png", "images/b ü.png", "masks/a.png")
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return root / name


def names(manifest: Manifest) -> list[tuple[str, str | None, str]]:
    def relative(path: Path | None) -> str | None:
        return path and path.relative_to(manifest.root).as_posix()

    return [(relative(row.image) or "", relative(row.mask), row.split) for row in manifest.rows]


# --- folders --------------------------------------------------------------------------------------------------------


def test_images_and_masks(tmp_path: Path) -> None:
    root = touch(
        tmp_path / "mein Ordner ü", "images/b.JPG", "images/a.png", "images/ö c.tif", "masks/b.png", "masks/ö c.bmp"
    )
    manifest = load_manifest(root)
    assert manifest.name == "mein Ordner ü"
    assert manifest.root == root
    assert names(manifest) == [
        ("images/a.png", None, ""),
        ("images/b.JPG", "masks/b.png", ""),
        ("images/ö c.tif", "masks/ö c.bmp", ""),
    ]


@pytest.mark.parametrize(("images", "masks"), [("image", "mask"), ("images", "labels"), ("image", "masks")])
def test_other_folder_names(tmp_path: Path, images: str, masks: str) -> None:
    touch(tmp_path, f"{images}/a.png", f"{masks}/a.png")
    assert names(load_manifest(tmp_path)) == [(f"{images}/a.png", f"{masks}/a.png", "")]


def test_subfolders_and_litter(tmp_path: Path) -> None:
    litter = ("images/.DS_Store", "images/._a.png", "images/Thumbs.db", "images/notes.txt", "images/.cache/a.png")
    touch(tmp_path, "images/p10/a.png", "images/p2/a.png", "images/a.png", "masks/p2/a.png", "masks/._x.png", *litter)
    assert names(load_manifest(tmp_path)) == [
        ("images/a.png", None, ""),
        ("images/p10/a.png", None, ""),
        ("images/p2/a.png", "masks/p2/a.png", ""),
    ]


def test_an_accent_is_one_name_however_it_is_spelt(tmp_path: Path) -> None:
    """One code point, or a letter and its accent, as a Mac writes into a ZIP."""
    touch(tmp_path, "images/M\u00fcller.png", "masks/Mu\u0308ller.png")
    assert names(load_manifest(tmp_path)) == [("images/M\u00fcller.png", "masks/Mu\u0308ller.png", "")]


def test_jpeg_by_any_name(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.jfif", "images/b.JPE", "masks/a.png")
    assert len(load_manifest(tmp_path).rows) == 2


def test_mask_endings(tmp_path: Path) -> None:
    touch(tmp_path, *(f"images/{name}.png" for name in ("a", "b", "c", "c_mask", "d.x")))
    touch(tmp_path, *(f"masks/{name}.png" for name in ("a_mask", "b_Segmentation", "c_mask", "d.x")))
    assert [mask for _, mask, _ in names(load_manifest(tmp_path))] == [
        "masks/a_mask.png",
        "masks/b_Segmentation.png",
        None,  # c_mask belongs to the image of that very name
        "masks/c_mask.png",
        "masks/d.x.png",
    ]


def test_knowsam_layout(tmp_path: Path) -> None:
    touch(tmp_path, "labeled/image/1.png", "labeled/mask/1.png", "unlabeled/image/2.png", "unlabeled/mask/2.png")
    touch(tmp_path, "val/image/3.png", "val/mask/3.png", "test/image/4.png", "test/mask/4.png")
    assert names(load_manifest(tmp_path)) == [
        ("labeled/image/1.png", "labeled/mask/1.png", "train"),
        ("unlabeled/image/2.png", None, "train"),
        ("val/image/3.png", "val/mask/3.png", "val"),
        ("test/image/4.png", "test/mask/4.png", "test"),
    ]


def test_train_val_test_folders(tmp_path: Path) -> None:
    touch(tmp_path, "train/images/1.png", "train/masks/1.png", "test/images/1.png", "test/masks/1.png")
    assert [split for *_, split in names(load_manifest(tmp_path))] == ["train", "test"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), "no images found; expected manifest.csv, or images/ and masks/"),
        (("photos/a.png",), "no images found"),
        (("images/readme.txt", "masks/a.png"), "only files with .txt"),
        (("images/a.png", "masks/a.gif"), "only files with .gif; convert"),
        (("images/a.png", "images/b.png", "masks/a.png", "masks/b.GIF"), r"1 of the files .* not read \(.gif\)"),
        (("images/a.png", "images/b.webp", "masks/a.png"), r"1 of the files .* not read \(.webp\)"),
        (("images/a.png",), "no masks/ beside them"),
        (("images/a.png", "masks/b.png"), r"1 of the masks have no image of the same name \(b.png\)"),
        (("images/a.png", "images/a.jpg", "masks/a.png"), "have one name"),
        (("images/a.png", "masks/a.png", "masks/a.bmp"), "have one name"),
        (("images/a.png", "image/a.png", "masks/a.png"), "both images/ and image/"),
        (("images/a.png", "masks/a.png", "labels/a.png"), "both masks/ and labels/"),
        (("images/a.png", "masks/a.png", "val/images/a.png"), "both images/ and val/"),
    ],
)
def test_unusable_folders(tmp_path: Path, files: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_manifest(touch(tmp_path / "data", *files) if files else tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_and_other_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        load_manifest(tmp_path / "gone")
    with pytest.raises(UserError, match="not a folder and not a CSV"):
        load_manifest(touch(tmp_path, "a.png") / "a.png")


# --- CSV ------------------------------------------------------------------------------------------------------------


def test_all_columns(tmp_path: Path) -> None:
    text = (
        "image,mask,split,patient,modality,volume,slice,spacing\n"
        "images/a.png,masks/a.png,train,P 1,mri,v,-3,0.7x0.8\n"
        'images/b ü.png,,Validation, P2 ,,,,"1 .5 2e0"\n'
    )
    manifest = load_manifest(csv_file(tmp_path, text))
    assert manifest == Manifest(
        "list",
        tmp_path,
        (
            Row(tmp_path / "images/a.png", tmp_path / "masks/a.png", "train", "P 1", "mri", "v", -3, (0.7, 0.8)),
            Row(tmp_path / "images/b ü.png", None, "val", "P2", spacing=(1.0, 0.5, 2.0)),
        ),
    )


def test_manifest_csv_in_a_folder_wins(tmp_path: Path) -> None:
    csv_file(tmp_path / "set", "image\nimages/a.png\n", "manifest.csv")
    manifest = load_manifest(tmp_path / "set")
    assert manifest.name == "set"
    assert names(manifest) == [("images/a.png", None, "")]


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbfimage,mask\nimages/a.png,masks/a.png\n",
        b"image,mask\r\nimages/a.png,masks/a.png\r\n\r\n\r\n",
        b"image,mask\rimages/a.png,masks/a.png",
        b'"image", "mask"\n\n"images/a.png", "masks/a.png"\n , \n',
        b"Mask,IMAGE\nmasks/a.png,images/a.png\n",
        b"image,mask,patient\nimages/a.png,masks/a.png\n",
        b"image,mask\n./images/../images/a.png,masks/a.png\n",
    ],
)
def test_dialects(tmp_path: Path, text: bytes) -> None:
    (row,) = load_manifest(csv_file(tmp_path, text)).rows
    assert row.image.samefile(tmp_path / "images/a.png")
    assert row.mask == tmp_path / "masks/a.png"


def test_paths_outside_are_the_users_own(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/x.png", "elsewhere/y.png")
    text = f"image\n../elsewhere/x.png\n{tmp_path / 'elsewhere' / 'y.png'}\n"
    rows = load_manifest(csv_file(tmp_path / "set", text)).rows
    assert [row.image.name for row in rows] == ["x.png", "y.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no image column"),
        ("mask\nmasks/a.png\n", "no image column"),
        ("image,mask\n", "no rows"),
        ("image,mask,age,sex\nimages/a.png,,1,f\n", "unknown column 'age', 'sex'; known are image, mask"),
        ("image;mask\nimages/a.png;masks/a.png\n", "unknown column 'image;mask'.*separated by commas"),
        ("image,image\nimages/a.png,images/a.png\n", "occurs twice"),
        ("image\nimages/a.png\nimages/none.png\n", "line 3: no file .*none.png"),
        ("image,mask\n\nimages/a.png,masks/none.png\n", "line 3: no file .*none.png"),
        ("image\nimages\n", "line 2: no file"),
        ("image\nimages/a.png/b.png\n", "line 2: no file"),
        ("image\nimages/a.png\nimages/../images/a.png\n", "line 3: .* is already on line 2"),
        ("image,mask\n,masks/a.png\n", "line 2: no image is named"),
        ("image,split\nimages/a.png,training\n", "line 2: split 'training'"),
        ("image,slice\nimages/a.png,1.5\n", "line 2: slice '1.5'"),
        ("image,spacing\nimages/a.png,0.7\n", "line 2: spacing '0.7'"),
        ("image,spacing\nimages/a.png,0x1\n", "line 2: spacing"),
        ("image,spacing\nimages/a.png,nanx1\n", "line 2: spacing"),
        ("image,spacing\nimages/a.png,infx1\n", "line 2: spacing"),
        ("image\nimages/a.png,masks/a.png\n", "line 2: 2 values for 1 columns"),
        ('image\n"images/a.png\n', "not readable as CSV"),
        ("image\nimages/a\0.png\n", "line 2"),
        (f"image\n{'x' * 5000}.png\n", "line 2: no file"),
        (f"image\n{'x' * 200_000}.png\n", "not readable as CSV"),
        ("image\nimages/ä.png\n".encode("latin-1"), "not UTF-8"),
        ("image\nimages/a.png\n".encode("utf-16"), "not UTF-8"),
    ],
)
def test_unusable_csv(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_manifest(csv_file(tmp_path, text))
    assert "\n" not in str(caught.value)
    assert "list.csv" in str(caught.value)


@pytest.mark.skipif(os.sep == "\\", reason="there it is a separator")
def test_windows_paths_elsewhere_get_a_hint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="write / between folders"):
        load_manifest(csv_file(tmp_path, "image\nimages\\a.png\n"))


CELLS = st.text(max_size=12) | st.sampled_from(
    ["images/a.png", "masks/a.png", "train", "1", "0.5x0.5", '"', ",", "\n", ""]
)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.binary(max_size=200) | st.lists(st.lists(CELLS, max_size=9), max_size=5), st.booleans())
@example([["images/a.png\n"]], True)
def test_any_text_gives_rows_or_a_user_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes | list[list[str]], header: bool
) -> None:
    if not isinstance(content, bytes):
        lines = "\n".join(",".join(line) for line in content)
        content = (("image,mask,split,slice,spacing\n" if header else "") + lines).encode("utf-8", "surrogatepass")
    path = csv_file(tmp_path_factory.getbasetemp() / "any", content)
    try:
        message, manifest = "", load_manifest(path)
    except UserError as error:
        message, manifest = str(error), None
    assert "\n" not in message
    assert message or manifest
    if manifest:
        assert all(row.image.is_file() for row in manifest.rows)


def test_large_csv_asks_for_each_folder_not_for_each_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, *(f"images/{i}.png" for i in range(300)), *(f"masks/{i}.png" for i in range(300)))
    lines = "".join(f"images/{i}.png,masks/{i}.png\n" for i in range(300))
    path = csv_file(tmp_path, "image,mask\n" + lines)
    monkeypatch.setattr(os.path, "isfile", lambda _: pytest.fail("asked for one file"))
    assert len(load_manifest(path).rows) == 300


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real images lie beside the checkout")
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("kvasir_seg", (600, 100, 100)),
        ("isic2018", (500, 100, 100)),
        ("cxr_lung", (300, 60, 60)),
        ("tg3k_thyroid", (70, 20, 20)),
        ("busi", (46, 14, 14)),
        ("drive", (16, 4, 20)),
        ("dsb2018", (400, 60, 60)),
        ("acdc", (1122, 190, 210)),
    ],
)
def test_real_sets(name: str, sizes: tuple[int, int, int]) -> None:
    manifest = load_manifest(SHARED / name)
    assert manifest.name == name
    counts = [sum(row.split == split for row in manifest.rows) for split in ("train", "val", "test")]
    assert tuple(counts) == sizes
    assert all(row.mask and row.mask.is_file() for row in manifest.rows[:20])
