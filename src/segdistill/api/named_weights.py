"""The weights that a method's settings name, by hash: a run that goes on with others would be of no setting at all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..types import UserError
from .runs import read_json

SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
ENTRY = "weights"  # of run.json


def named_weights(config: Any) -> dict[str, str]:
    """Setting -> SHA-256 of the weights at the path that it names; of several files, of their hashes by name."""
    values = ((name, Path(value)) for name, value in asdict(config).items() if isinstance(value, str))
    hashes = {name: [_sha256(file) for file in _files(path)] for name, path in values if path.is_absolute()}
    return {name: _joined(found) for name, found in hashes.items() if found}


def require_same_weights(run: Path, config: Any) -> None:
    """UserError where other weights lie now where the run found its teacher's when it began.

    Those that are gone are left to who loads them; an older run has no hashes.
    """
    before, now = read_json(run / "run.json").get(ENTRY, {}), named_weights(config)
    for name in before.keys() & now.keys():
        if before[name] != now[name]:
            raise UserError(
                f"{getattr(config, name)}: other weights ({name}, sha256 {now[name][:12]}...) than those that {run} "
                f"began with ({before[name][:12]}...); put them back, or start a new run"
            )


def _files(path: Path) -> Iterator[Path]:
    """The files of weights at a path; of a run, its student's."""
    if path.is_file():
        yield path
    elif path.is_dir():
        inside = path / "student" if (path / "student" / "student.safetensors").is_file() else path
        yield from sorted(file for file in inside.iterdir() if file.suffix in SUFFIXES and file.is_file())


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _joined(hashes: list[str]) -> str:
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
