"""Of which files, student and options each mask was made, so that a later run keeps its own masks and no others.

`predicted.jsonl` gets a line before a mask is written and one when all its files are, so that a run that was stopped
knows its own. Lines are only ever added: several processes may predict into one folder. Where a mask is another file
than was written, somebody has changed it, and it is theirs.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ..formats import split_address
from ..types import UserError
from .sources import Source
from .stages import Extras, targets_of

PREDICTED = "predicted.jsonl"
BEGUN, DONE = "begun", "done"
CLOSED = b'{"state": "closed"}\n'  # a run has noted all its masks, and writes the tables


class Made(NamedTuple):
    """A line."""

    mask: str  # path in the folder
    source: str  # the first file
    files: str  # hash of all files' paths, sizes and times
    student: str  # of `Predictor.identity`
    tile: str  # "tile" or ""
    extras: str  # what is written beside the mask, in words
    state: str = BEGUN
    written: str = ""  # size and time of the mask: as written, or of the one that is about to be replaced
    areas: str = ""  # its lines of areas.csv
    route: str = ""  # its line of routing.csv

    def alike(self, other: Made) -> bool:
        """Whether both are the same result, whatever is written of it."""
        return self[:5] == other[:5]

    def holds(self, wanted: Made) -> bool:
        """Whether what was written is all that is wanted."""
        return self.state == DONE and self.alike(wanted) and {*wanted.extras.split()} <= {*self.extras.split()}


class Ledger:
    """What earlier runs noted of the sources of this one, and what it notes."""

    def __init__(self, out: Path, student: str, extras: Extras, sources: Sequence[Source], *, overwrite: bool) -> None:
        self.out, self.path, self.student = out, out / PREDICTED, student
        self.noted = _read(self.path)
        made = {source.name.as_posix(): _made(out, student, extras, source) for source in sources}
        self.wanted = {name: one for name, one in made.items() if one}
        self.unreadable = {os.path.abspath(one.files[0]) for one in sources if one.name.as_posix() not in self.wanted}
        self.kept, self.unknown, self.changed = frozenset[str](), frozenset[str](), frozenset[str]()  # names of sources
        if not overwrite:
            self.changed = frozenset(name for name, one in self.wanted.items() if self._is_changed(one))
            self.kept = frozenset(name for name, one in self.wanted.items() if self._is_done(one)) - self.changed
            self.unknown = frozenset(name for name, one in self.wanted.items() if self._is_unknown(one)) | self.changed

    def _is_done(self, wanted: Made) -> bool:
        noted = self.noted.get(wanted.mask)
        return noted is not None and noted.holds(wanted)

    def _is_unknown(self, wanted: Made) -> bool:
        return wanted.mask not in self.noted and (self.out / wanted.mask).exists()

    def _is_changed(self, wanted: Made) -> bool:
        """Since it was written. Of earlier versions' lines, which do not say what was, nothing is."""
        noted = self.noted.get(wanted.mask)
        return noted is not None and noted.written != "" and _stamp(self.out / wanted.mask) not in ("", noted.written)

    def begun(self, sources: Sequence[Source]) -> Iterator[tuple[int, Source]]:
        """The sources, numbered; as one is taken, a line says that its mask is about to be this run's."""
        for number, source in enumerate(sources):
            name = source.name.as_posix()
            if name in self.wanted and name not in self.kept | self.unknown:
                made = self.wanted[name]
                _note(self.path, made._replace(written=_stamp(self.out / made.mask)))
            yield number, source

    def done(self, source: Source, areas: str, route: str, *, written: bool) -> None:
        """Note that its files are there, `written` now or earlier, and its lines of the tables.

        What an equal result left beside the mask is of this one too.
        """
        made = self.wanted.get(source.name.as_posix())
        if made is None:
            return
        before = self.noted.get(made.mask)
        extras = {*made.extras.split(), *(before.extras.split() if before and before.alike(made) else ())}
        stamp = "" if written or before is None else before.written
        made = made._replace(extras=" ".join(sorted(extras)), state=DONE, areas=areas, route=route)
        made = made._replace(written=stamp or _stamp(self.out / made.mask))
        if written or made != before:
            _note(self.path, made)

    def write_tables(self, write: Callable[[list[Made]], None]) -> None:
        """Call `write` with what was made by other runs of this student and is there as it was written.

        Of several runs that end at once, each notes that it is about to write; who finds such a line after its own
        writing writes again. So the last to write knew the masks of all.
        """
        _append(self.path, CLOSED)
        seen = 0
        while (closed := self.path.read_bytes().count(CLOSED)) != seen:
            seen = closed
            write(self._others())

    def _others(self) -> list[Made]:
        own = {one.mask for one in self.wanted.values()}
        foreign = (
            one for one in _read(self.path).values() if one.mask not in own and one.source not in self.unreadable
        )
        made = (one for one in foreign if one.state == DONE and one.student == self.student and one.areas)
        return [one for one in made if one.written == _stamp(self.out / one.mask)]


def _made(out: Path, student: str, extras: Extras, source: Source) -> Made | None:
    """None for a source that cannot be read, which fails in its turn."""
    try:
        mask = targets_of(out, source, extras).mask.relative_to(out).as_posix()
        states = [(os.path.abspath(file), split_address(file)[0].stat()) for file in source.files]
    except (UserError, OSError):
        return None
    text = json.dumps([(path, state.st_size, state.st_mtime_ns) for path, state in states])
    files = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    beside = " ".join(sorted(name for name in ("probabilities", "overlays") if getattr(extras, name)))
    return Made(mask, states[0][0], files, student, "tile" * extras.tile, beside)


def _stamp(path: Path) -> str:
    """Of a file, "" where there is none."""
    with suppress(OSError):
        state = path.stat()
        return f"{state.st_size} {state.st_mtime_ns}"
    return ""


def _read(path: Path) -> dict[str, Made]:
    """The last whole line of each mask."""
    found = {}
    for line in path.read_bytes().splitlines() if path.exists() else []:
        with suppress(ValueError, TypeError, RecursionError):  # of a run that was killed, or damaged
            made = Made(**json.loads(line))
            if all(isinstance(value, str) for value in made):
                found[made.mask] = made
    return found


def _note(path: Path, made: Made) -> None:
    _append(path, json.dumps(made._asdict()).encode() + b"\n")


def _append(path: Path, line: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else b"\n" + line  # after half a line
            file.write(line)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}); choose another folder") from error
