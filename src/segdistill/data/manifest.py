"""Which images there are, with what is known of each: from a folder or a CSV file to rows.

Accepted, in this order:

- a folder with `manifest.csv`, or a CSV file: header `image,mask,split,patient,modality,volume,slice,spacing`, of which
  only `image` is required; paths are relative to the CSV file; an empty mask is an unlabelled image; split is train,
  val (valid, validation), test or empty; spacing is in mm, as 0.7x0.7 or "0.7 0.7" (rows, columns), or three numbers
  (slices, rows, columns);
- a folder with `images/` (or `image/`) and `masks/` (or `mask/`, `labels/`);
- a folder with some of `labeled/ unlabeled/ train/ val/ test/`, each with such a pair (the layout of KnowSAM); labeled,
  unlabeled and train are training rows, masks in unlabeled/ are not used;
- a folder with train_slices.list (ssl4mis.py).

In a pair a mask has its image's name, in the same subfolder; the suffix may differ, and where no mask has the plain
name, `_mask` or `_segmentation` may follow it. No mask: an unlabelled image. Hidden files and files that are no images
are passed over. A NIfTI, HDF5 or DICOM file of many slices stands for all of them (volumes.py); its mask is a file of
as many, or a CSV file pairs single slices, as FILE#12.
"""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from ..formats import split_address
from ..types import UserError
from .folders import LAYOUTS, rows_of_folders
from .rows import Manifest, Row, with_patients
from .ssl4mis import rows_of_lists
from .volumes import expand

COLUMNS = ("image", "mask", "split", "patient", "modality", "volume", "slice", "spacing")
SPLITS = {"": "", "train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def load_manifest(data: Path) -> Manifest:
    """Read a data set in any of the layouts above; the order of rows is the CSV's, or by name, on every system.

    Raises:
        UserError: no such layout, no images, a missing file, unreadable CSV; with the line number where there is one.
    """
    if not data.exists():
        raise UserError(f"{data}: no such file or folder; {LAYOUTS}")
    if data.is_file():
        if data.suffix.lower() != ".csv":
            raise UserError(f"{data}: not a folder and not a CSV file; {LAYOUTS}")
        return _from_csv(data, data.stem)
    name = data.resolve().name or "data"
    if (data / "manifest.csv").is_file():
        return _from_csv(data / "manifest.csv", name)
    rows = rows_of_lists(data) or rows_of_folders(data)
    if not rows:
        raise UserError(f"{data}: no images found; {LAYOUTS}")
    return Manifest(name, data, tuple(expand(rows, data)))


def read_rows(path: Path, root: Path, columns: Sequence[str] = COLUMNS) -> Iterator[tuple[int, Row]]:
    """Rows of a CSV file with the number of the line each one ends on; paths start from `root`, and are not looked up.

    Raises:
        UserError: not UTF-8, not CSV, no or unknown or repeated columns, or a bad value.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, skipinitialspace=True, strict=True)
            header = [name.strip().lower() for name in next(reader, [])]
            _check_header(path, header, columns)
            for cells in reader:
                if "".join(cells).strip():
                    where = f"{path}, line {reader.line_num}"
                    if len(cells) > len(header):
                        raise UserError(
                            f"{where}: {len(cells)} values for {len(header)} columns; quote what holds a comma"
                        )
                    yield reader.line_num, _parse(dict(zip(header, cells, strict=False)), root, where)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason}); save it as CSV UTF-8, comma separated") from error
    except csv.Error as error:
        raise UserError(
            f"{path}, line {reader.line_num}: not readable as CSV ({error}); save it as CSV UTF-8"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); check that it may be opened") from error


def _from_csv(path: Path, name: str) -> Manifest:
    root = path.parent
    exists = _lookup()
    first_line: dict[str, int] = {}
    rows = []
    for line, row in read_rows(path, root):
        for file in (row.image, row.mask):
            if file is not None and not exists(str(split_address(file)[0])):
                hint = "; write / between folders" if "\\" in str(file) and os.sep == "/" else ""
                raise UserError(f"{path}, line {line}: no file {file}; paths are relative to {root}{hint}")
        key = os.path.normcase(os.path.normpath(row.image))
        if key in first_line:
            raise UserError(
                f"{path}, line {line}: {row.image} is already on line {first_line[key]}; remove one of them"
            )
        first_line[key] = line
        rows.append(row)
    if not rows:
        raise UserError(f"{path}: no rows below the header; list one image per line")
    return Manifest(name, root, tuple(with_patients(expand(rows, root))))


def _check_header(path: Path, header: list[str], columns: Sequence[str]) -> None:
    unknown = [name for name in header if name not in columns]
    if unknown:
        raise UserError(
            f"{path}: unknown column {', '.join(map(repr, unknown))[:200]}; known are {', '.join(columns)}, "
            "separated by commas"
        )
    if len(set(header)) < len(header):
        raise UserError(f"{path}: a column occurs twice in {', '.join(header)}; keep one")
    if "image" not in header:
        raise UserError(f"{path}: no image column; the first line must name the columns, as {', '.join(columns[:5])}")


def _parse(cells: dict[str, str], root: Path, where: str) -> Row:
    paths = [root / text if (text := cells.get(key, "")).strip() else None for key in ("image", "mask", "hidden")]
    if paths[0] is None:
        raise UserError(f"{where}: no image is named; give its path, or remove the line")
    split, position = cells.get("split", "").strip(), cells.get("slice", "").strip()
    if split.lower() not in SPLITS:
        raise UserError(f"{where}: split {split[:50]!r}; allowed are train, val, test or nothing")
    if position and not re.fullmatch(r"[+-]?[0-9]{1,9}", position):
        raise UserError(f"{where}: slice {position[:50]!r}; give a whole number or nothing")
    spacing = _parse_spacing(cells.get("spacing", ""))
    if spacing == ():
        raise UserError(f"{where}: spacing {cells['spacing'][:50]!r}; give two or three mm above 0, as 0.7x0.7")
    return Row(
        image=paths[0],
        mask=paths[1],
        split=SPLITS[split.lower()],
        patient=cells.get("patient", "").strip(),
        modality=cells.get("modality", "").strip(),
        volume=cells.get("volume", "").strip(),
        slice=int(position) if position else None,
        spacing=spacing,
        hidden=paths[2],
    )


@lru_cache  # the same few in every row
def _parse_spacing(text: str) -> tuple[float, ...] | None:
    """Two or three positive numbers; None where nothing is given, () where something else is."""
    if not text.strip():
        return None
    try:
        spacing = tuple(float(number) for number in text.lower().replace("x", " ").split())
    except ValueError:
        return ()
    return spacing if len(spacing) in (2, 3) and all(0 < number < math.inf for number in spacing) else ()


def _lookup() -> Callable[[str], bool]:
    """A test for files that lists each folder once: 200,000 single questions take minutes on a network drive."""
    listed: dict[str, set[str]] = {}

    def exists(path: str) -> bool:
        folder, name = os.path.split(path)
        if folder not in listed:
            try:
                with os.scandir(folder or ".") as entries:
                    listed[folder] = {entry.name for entry in entries if entry.is_file()}
            except (OSError, ValueError):  # no such folder, or not a possible name for one
                listed[folder] = set()
        # Asked singly only where the listing lacks the name: file systems that ignore case or compose accents.
        return name in listed[folder] or os.path.isfile(path)

    return exists
