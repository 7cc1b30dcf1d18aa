"""Which images are meant by files, folders and patterns, and names for their predictions that never collide."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ..formats import IMAGE_SUFFIXES, VOLUME_SUFFIXES, is_volume, split_address, stem_of
from ..types import UserError

_KNOWN = " ".join([*sorted(IMAGE_SUFFIXES), *sorted(VOLUME_SUFFIXES)])


def find_images(inputs: Sequence[str | Path], out: Path | None = None) -> list[tuple[Path, Path]]:
    """Images and volumes with their path relative to the folder that was searched; each once, in a fixed order.

    A folder is searched with all its subfolders, a pattern (`*`, `?`, `[...]`, `**`) may match files and folders;
    hidden files and what lies in `out` are left out. A file that is named is taken whatever its suffix, FILE#k as a
    slice of it.

    Raises:
        UserError: an input without an image, or a folder that lies in `out`, where its images would mix with results.
    """
    found: dict[str, tuple[Path, Path]] = {}
    for given in inputs:
        images = sorted(_images_of(given, out.resolve() if out else None), key=lambda pair: pair[1].as_posix())
        if not images:
            what = "has no image" if Path(given).exists() else "does not exist or matches no image"
            raise UserError(f"{given} {what}; give images ({_KNOWN}), folders or patterns")
        for source, relative in images:
            found.setdefault(os.path.abspath(source), (source, relative))  # not resolved: two links are two images
    if not found:
        raise UserError("no image was given; give images, folders or patterns")
    return list(found.values())


def _images_of(given: str | Path, out: Path | None) -> Iterator[tuple[Path, Path]]:
    """Images with their path relative to the folder that was searched."""
    path = Path(given)
    if path.is_file() or split_address(path)[0].is_file():
        yield path, Path(path.name)
        return
    parts = path.parts
    fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    base = path if path.is_dir() else Path(*parts[:fixed])
    if out and base.resolve().is_relative_to(out):
        raise UserError(
            f"{given} lies in the output folder {out}, where results would mix with images; choose another -o"
        )
    matches = [path] if path.is_dir() else sorted(map(Path, glob.glob(str(given), recursive=True)))
    for match in matches:
        for file in _files(match):
            relative = file.relative_to(base)
            hidden = any(part.startswith(".") for part in relative.parts)
            if not (hidden or (out and file.resolve().is_relative_to(out))):
                yield file, relative


def _files(path: Path) -> Iterable[Path]:
    files = path.rglob("*") if path.is_dir() else [path]
    return (file for file in files if (is_volume(file) or file.suffix.lower() in IMAGE_SUFFIXES) and file.is_file())


def distinct_names(choices: Sequence[tuple[Path, Path]]) -> list[Path]:
    """Of each (short, long) the short name, or the long one where others want the same short one.

    No two are equal even where case does not count, nor is one the `_overlay` of another.
    """
    wanted = Counter(_key(short) for short, _ in choices)
    taken: set[str] = set()
    result = []
    for short, long in choices:
        name = short if wanted[_key(short)] == 1 else long
        number = 1
        while taken & (keys := {_key(name), _key(name) + "_overlay"}):
            number += 1
            name = long.with_name(f"{long.name}-{number}")
        taken |= keys
        result.append(name)
    return result


def plain(path: Path) -> Path:
    """Without suffix; NAME#k of a slice."""
    number = split_address(path)[1]
    known = is_volume(path) or path.suffix.lower() in IMAGE_SUFFIXES
    return path.with_name(stem_of(path) + ("" if number is None else f"#{number}")) if known else path.with_suffix("")


def _key(path: Path) -> str:
    return path.as_posix().casefold()
