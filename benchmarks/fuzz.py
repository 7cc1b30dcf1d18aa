"""Broken files of every kind that is read, by the thousand: what becomes of each, in which time and memory.

    python benchmarks/fuzz.py [--count 700] [--seed 0] [--kinds png dicom ...] [--keep FOLDER]

Makes whole files of each kind (fuzz_kinds.py), breaks them `--count` times per kind (bytes flipped, cut off, spliced,
lengths edited; checksums made right again where they would hide the rest), and lets our reader have each in a process
of its own kind, with a limit on time and memory. Equal seeds give equal files. Counted are:

    read        an array, a student, a table came out
    refused     a UserError of one line
    traceback   any other exception: a fault
    said        a message or warning that quotes the patient of a DICOM file: a fault
    crash       the process died: a fault, of a library where we call none of our own
    hang        over --seconds
    memory      over --megabytes more than before

The exit code is 1 where there was any fault. Linux alone: memory is what /proc tells.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import multiprocessing
import os
import platform
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from fuzz_kinds import KINDS, SECRET, broken

from segdistill.types import UserError

FAULTS = ("traceback", "said", "crash", "hang", "memory")


class Outcome(NamedTuple):
    """Of one file."""

    name: str
    detail: str = ""
    seconds: float = 0.0
    megabytes: float = 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=700, help="files of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--megabytes", type=float, default=2000.0)
    parser.add_argument("--keep", type=Path, help="folder for the files at fault")
    given = parser.parse_args()
    if given.keep:
        given.keep.mkdir(parents=True, exist_ok=True)
    total: Counter[str] = Counter()
    start = time.perf_counter()
    print("| kind | files | read | refused | " + " | ".join(FAULTS) + " | slowest, s | most, MB |")
    print("|---" * (6 + len(FAULTS)) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for kind in given.kinds:
            seeds = KINDS[kind].seeds(Path(folder))
            outcomes = list(run_kind(kind, seeds, given, Path(folder)))
            counts = Counter(outcome.name for outcome in outcomes)
            total += counts
            numbers = [len(outcomes), *(counts[name] for name in ("read", "refused", *FAULTS))]
            slowest, most = max(one.seconds for one in outcomes), max(one.megabytes for one in outcomes)
            print(f"| {kind} | {' | '.join(map(str, numbers))} | {slowest:.2f} | {most:.0f} |", flush=True)
    numbers = [total.total(), *(total[name] for name in ("read", "refused", *FAULTS))]
    print(f"| all | {' | '.join(map(str, numbers))} | | |")
    machine = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    print(f"\n{' '.join(sys.argv)}; {machine}; {time.perf_counter() - start:.0f} s")
    return int(any(total[name] for name in FAULTS))


def run_kind(kind: str, seeds: list[bytes], given: argparse.Namespace, folder: Path):
    """The outcome of each file of a kind; a process that dies or hangs is replaced."""
    worker: Worker | None = None
    for number in range(given.count):
        worker = worker or Worker(kind, seeds, given, folder)
        outcome = worker.ask(number, given.seconds)
        if outcome.name in FAULTS:
            print(f"{kind} {number}: {outcome.name}: {outcome.detail}", file=sys.stderr, flush=True)
            if given.keep:
                content = broken(kind, seeds, given.seed, number)
                (given.keep / f"{kind}-{given.seed}-{number}-{outcome.name}").write_bytes(content)
        if outcome.name in ("crash", "hang"):
            worker = None
        yield outcome
    if worker:
        worker.end()


class Worker:
    """A process that reads files of one kind, one after the other."""

    def __init__(self, kind: str, seeds: list[bytes], given: argparse.Namespace, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        place = Path(tempfile.mkdtemp(dir=folder))
        self.process = context.Process(
            target=answer, args=(theirs, kind, seeds, given.seed, given.megabytes, place), daemon=True
        )
        self.process.start()
        theirs.close()
        if not self.connection.poll(120) or self.connection.recv() != "ready":
            raise RuntimeError(f"no process reads {kind}")

    def ask(self, number: int, seconds: float) -> Outcome:
        """What becomes of a file."""
        self.connection.send(number)
        try:
            if self.connection.poll(seconds):
                return Outcome(*self.connection.recv())
        except (EOFError, ConnectionResetError):
            self.process.join()
            return Outcome("crash", f"exit code {self.process.exitcode}")
        self.process.kill()
        self.process.join()
        return Outcome("hang", f"over {seconds:.0f} s", seconds)

    def end(self) -> None:
        """Let it go."""
        self.connection.send(None)
        self.process.join()


def answer(connection: Connection, kind: str, seeds: list[bytes], seed: int, megabytes: float, place: Path) -> None:
    """Read the files whose numbers come in, in a folder of one's own, until None comes."""
    os.chdir(place)
    for whole in seeds:
        examine(kind, whole, place)  # imports what is needed, so that no file is charged for it
    limit = int(1e6 * (2 * megabytes + memory("VmData")))
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    connection.send("ready")
    while (number := connection.recv()) is not None:
        content = broken(kind, seeds, seed, number)
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak starts again
        before, start = memory("VmRSS"), time.perf_counter()
        name, detail = examine(kind, content, place)
        seconds, more = time.perf_counter() - start, memory("VmHWM") - before
        if more > megabytes and name in ("read", "refused"):
            name, detail = "memory", f"{more:.0f} MB"
        connection.send((name, detail, seconds, more))


def examine(kind: str, content: bytes, place: Path) -> tuple[str, str]:
    """(outcome, detail) of one file."""
    said = io.StringIO()
    with (
        warnings.catch_warnings(record=True) as warned,
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        warnings.simplefilter("always")
        try:
            path = KINDS[kind].write(content, place)
            KINDS[kind].read(path)
            name, detail = "read", ""
        except UserError as error:
            name, detail = "refused", str(error)
            if "\n" in detail:
                name = "traceback"
        except BaseException:
            name, detail = "traceback", traceback.format_exc()
    if SECRET in detail + said.getvalue() + "".join(str(one.message) for one in warned):
        return "said", detail
    return name, detail


def memory(field: str) -> float:
    """Megabytes of this process."""
    with open("/proc/self/status", encoding="utf-8") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    sys.exit(main())
