"""Data sets as folders: images/ beside masks/, once or per split."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..formats import IMAGE_SUFFIXES, is_volume, stem_of
from ..types import UserError
from .rows import Row

_SPLIT_FOLDERS = {"labeled": "train", "unlabeled": "train", "train": "train", "val": "val", "test": "test"}
_IMAGE_FOLDERS = ("images", "image", "imagesTr")  # the last: Medical Segmentation Decathlon
_MASK_FOLDERS = ("masks", "mask", "labels", "labelsTr")
_MASK_ENDINGS = ("", "_mask", "_segmentation", "_Mask", "_Segmentation")
_NOT_READ = frozenset(
    {".gif", ".webp", ".jp2", ".heic", ".avif", ".tga", ".ppm", ".pgm", ".mha", ".mhd", ".nrrd", ".npy"}
)
LAYOUTS = (
    "expected manifest.csv, or images/ and masks/, or labeled/ unlabeled/ val/ test/ each with image/ and mask/, "
    "or train_slices.list, or a CSV file with an image column"
)


def rows_of_folders(data: Path) -> list[Row]:
    """One row per image file; none where there is no such folder.

    Raises:
        UserError: images without a mask folder, masks without an image, two files of one name.
    """
    pairs = [(data, "", True)] if _subfolder(data, _IMAGE_FOLDERS) else []
    pairs += [
        (data / folder, split, folder != "unlabeled")
        for folder, split in _SPLIT_FOLDERS.items()
        if (data / folder).is_dir() and _subfolder(data / folder, _IMAGE_FOLDERS)
    ]
    if len(pairs) > 1 and pairs[0][0] == data:
        raise UserError(f"{data}: both images/ and {pairs[1][0].name}/; keep one layout, or list the files in a CSV")
    return [row for folder, split, use_masks in pairs for row in _from_pair(folder, split, use_masks)]


def _from_pair(folder: Path, split: str, use_masks: bool) -> list[Row]:
    images = _images_below(_subfolder(folder, _IMAGE_FOLDERS))
    mask_folder = _subfolder(folder, _MASK_FOLDERS)
    if use_masks and mask_folder is None:
        raise UserError(f"{folder}: images but no masks/ beside them; {LAYOUTS}")
    masks = _images_below(mask_folder) if use_masks else {}
    rows = []
    for stem, image in images.items():
        endings = (end for end in _MASK_ENDINGS if stem + end in masks and (not end or stem + end not in images))
        ending = next(endings, None)
        mask = None if ending is None else masks.pop(stem + ending)
        rows.append(Row(image, mask, split))
    if masks:
        names = ", ".join(path.name for path in list(masks.values())[:3])
        raise UserError(
            f"{folder}: {len(masks)} of the masks have no image of the same name ({names}); rename or remove them"
        )
    return rows


def _subfolder(folder: Path, names: Sequence[str]) -> Path | None:
    found = [name for name in names if (folder / name).is_dir()]
    if len(found) > 1:
        raise UserError(f"{folder}: both {found[0]}/ and {found[1]}/; keep one, or list the files in a CSV")
    return folder / found[0] if found else None


def _images_below(folder: Path | None) -> dict[str, Path]:
    """Relative path without suffix -> image file, in the order of the names on every system.

    Two systems' spellings of an accent are one name. Files that hold no image may lie beside.
    """
    found: dict[str, Path] = {}
    others: set[str] = set()
    unread = 0
    for relative in sorted(_walk(str(folder), "", ()) if folder else ()):
        file = Path(relative)
        stem = unicodedata.normalize("NFC", file.with_name(stem_of(file)).as_posix())
        if not is_volume(file) and file.suffix.lower() not in IMAGE_SUFFIXES:
            others.add(file.suffix.lower() or "no suffix")
            unread += file.suffix.lower() in _NOT_READ
        elif stem in found:
            raise UserError(f"{folder}: {found[stem].name} and {file.name} have one name; remove one")
        else:
            found[stem] = Path(f"{folder}/{relative}")
    if others and not found:
        raise UserError(f"{folder}: only files with {', '.join(sorted(others))[:100]}; convert them to PNG")
    if unread:
        kinds = ", ".join(sorted(others & _NOT_READ))
        raise UserError(
            f"{folder}: {unread} of the files are images in a format that is not read ({kinds}); convert them to PNG, "
            "or move them out"
        )
    return found


def _walk(folder: str, prefix: str, above: tuple[str, ...]) -> Iterator[str]:
    """Relative paths, with /, of all files below a folder that are not hidden."""
    here = os.path.realpath(folder)
    if here in above:  # a link to a folder above it
        return
    try:
        with os.scandir(folder) as entries:
            listing = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror}); check that it may be opened") from error
    for name, is_folder in listing:
        if not name.isascii():
            try:
                name.encode()
            except UnicodeEncodeError as error:
                raise UserError(f"{folder}: the file name {name!a} is not valid text; rename it") from error
        if is_folder:
            yield from _walk(os.path.join(folder, name), f"{prefix}{name}/", (*above, here))
        elif name != "Thumbs.db":
            yield prefix + name
