"""Where the images of a report are."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

from ..formats import split_address


def link_to(image: Path, folder: Path) -> str:
    """URI of the file of an image (without the address of a slice), from a page in `folder`.

    Relative, so that it holds where folder and data move together and names no more of the machine than it must; a
    `file:` URI where no relative path leads there (another drive). Every character but letters, digits and _.-~/ is
    escaped, so that neither spaces nor # nor what is no UTF-8 breaks it.
    """
    path = split_address(image)[0].resolve()
    try:
        way = os.path.relpath(path, folder.resolve())
    except ValueError:
        return path.as_uri()
    return quote(os.fsencode(Path(way).as_posix()))
