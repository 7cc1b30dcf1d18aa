"""What a prediction costs, measured in a process of its own: python -m segdistill.deploy.measure STUDENT [THREADS]."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

SECONDS, RUNS = 3.0, 30  # whichever ends first, after one run that also allocates


class Cost(NamedTuple):
    """Of one image of the student's input size."""

    ms: float  # median
    peak: int | None  # bytes held at most by the process, interpreter and libraries included; None: not known here


def measure(path: Path, threads: int | None = None) -> Cost:
    """Start a process that predicts with the student at `path`, a folder or a file; on all cores without `threads`."""
    command = [sys.executable, "-m", "segdistill.deploy.measure", str(path), *([str(threads)] if threads else [])]
    done = subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8")
    return Cost(*json.loads(done.stdout))


def peak_memory() -> int | None:
    """Bytes that this process held at most; None where it cannot be known."""
    if sys.platform == "linux":  # ru_maxrss there also counts the parent, before it became this program
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Predict noise; print the cost as JSON."""
    from .predictor import open_predictor

    predictor = open_predictor(Path(sys.argv[1]), threads=int(sys.argv[2]) if sys.argv[2:] else None)
    image = np.random.default_rng(0).integers(0, 256, (*predictor.card.size, 3), np.uint8)
    predictor.predict(image)
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(times) < RUNS and (not times or time.perf_counter() < end):
        start = time.perf_counter()
        predictor.predict(image)
        times.append(1000 * (time.perf_counter() - start))
    print(json.dumps(Cost(float(np.median(times)), peak_memory())))


if __name__ == "__main__":
    main()
