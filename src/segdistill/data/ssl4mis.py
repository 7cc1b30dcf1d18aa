"""The layout of SSL4MIS (Luo et al., github.com/HiLab-git/SSL4MIS), which KnowSAM reads too, as rows.

`train_slices.list` names slices, data/slices/NAME.h5; `val.list` and `test.list` name volumes, data/NAME.h5. Each file
holds the datasets `image` and `label`. Names are patient003_frame01[_slice_5]. The order of slices is their number's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ..types import UserError
from .rows import Row

_LISTS = {"train_slices.list": "train", "val.list": "val", "test.list": "test"}
_NAME = re.compile(r"(?P<volume>(?P<patient>.+?)(?:_frame\d+)?)(?:_slice_(?P<slice>\d+))?")


def rows_of_lists(root: Path) -> list[Row]:
    """One row per name in the lists; none where there is no list.

    Raises:
        UserError: a list that is not text, or a name without its file.
    """
    return [row for name, split in _LISTS.items() if (root / name).is_file() for row in _rows(root, name, split)]


def _rows(root: Path, listed: str, split: str) -> Iterator[Row]:
    folder = root / "data" / "slices" if listed == "train_slices.list" else root / "data"
    try:
        lines = (root / listed).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{root / listed}: cannot be read as text ({error}); write one name a line") from None
    for number, line in enumerate(lines, 1):
        name = line.split(",")[0].strip()
        if not name:
            continue
        file = folder / f"{name}.h5"
        if not file.is_file():
            raise UserError(f"{root / listed}, line {number}: no file {file}; correct the name, or remove the line")
        match = _NAME.fullmatch(name)
        assert match  # any name matches
        position = None if match["slice"] is None else int(match["slice"])
        yield Row(file, file, split, patient=match["patient"], volume=match["volume"], slice=position)
