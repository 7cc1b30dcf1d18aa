"""Time of the scores: one 512 x 512 pair per case, and the summary of many images.

Aim: all scores of a 512 x 512 pair in less than 40 ms on one core.
Run: OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/metrics_speed.py
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter

from segdistill.metrics.calibration import Calibration
from segdistill.metrics.scores import score_image
from segdistill.metrics.summary import summarise

SIZE = 512
REPEATS = 15


def blobs(seed: int, share: float = 0.15, size: int = SIZE) -> np.ndarray:
    """A few round regions over `share` of the image."""
    field = gaussian_filter(np.random.default_rng(seed).normal(size=(size, size)), size / 16)
    return (field > np.quantile(field, 1 - share)).astype(np.uint8)


def noise(seed: int, share: float) -> np.ndarray:
    return (np.random.default_rng(seed).random((SIZE, SIZE)) < share).astype(np.uint8)


def pairs() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    full, corner = np.ones((SIZE, SIZE), np.uint8), np.zeros((SIZE, SIZE), np.uint8)
    corner[0, 0] = 1
    left, right = noise(3, 0.5), noise(4, 0.5)
    left[:, SIZE // 2 :] = 0
    right[:, : SIZE // 2] = 0
    return {
        "blob, its outline shifted": (blobs(1), np.roll(blobs(1), (7, -4), (0, 1))),
        "blobs, unrelated": (blobs(1), blobs(2)),
        "noise 50 %, noise 50 %": (noise(1, 0.5), noise(2, 0.5)),
        "noise 90 %, noise 90 %": (noise(1, 0.9), noise(2, 0.9)),
        "noise 2 %, noise 2 %": (noise(1, 0.02), noise(2, 0.02)),
        "noise 50 %, blob": (noise(1, 0.5), blobs(1)),
        "noise left, noise right": (left, right),
        "noise 50 %, one pixel": (noise(1, 0.5), corner),
        "full, full": (full, full),
        "full, one pixel": (full, corner),
        "empty, blob": (np.zeros_like(full), blobs(1)),
    }


def rows(images: int) -> list[dict[str, object]]:
    generator = np.random.default_rng(0)
    drawn = [score_image(*generator.integers(0, 3, (2, 16, 16)).astype(np.uint8), classes=3) for _ in range(16)]
    return [
        row | {"image": str(i), "patient": str(i // 4), "dataset": "a", "modality": ""}
        for i in range(images)
        for row in drawn[i % len(drawn)]
    ]


def report(case: str, work: Callable[[], object], repeats: int = REPEATS) -> None:
    work()
    milliseconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        milliseconds.append(1000 * (time.perf_counter() - start))
    low, high = min(milliseconds), max(milliseconds)
    print(f"{case:<42} {statistics.median(milliseconds):8.1f} {low:8.1f} {high:8.1f}", flush=True)


def main() -> None:
    threads = os.environ.get("OMP_NUM_THREADS", f"all {os.cpu_count()}")
    print(
        f"numpy {np.__version__}, Python {sys.version.split()[0]}, threads {threads}, {REPEATS} repeats (summaries 3)"
    )
    print(f"{'case':<42} {'median':>8} {'min':>8} {'max':>8}  ms")
    for case, (prediction, reference) in pairs().items():
        report(case, lambda p=prediction, r=reference: score_image(p, r, classes=2))
    report("blobs, unrelated, spacing 0.7 x 0.3", lambda: score_image(blobs1, blobs2, classes=2, spacing=(0.7, 0.3)))
    report("blobs, unrelated, 1536 x 1536", lambda: score_image(large1, large2, classes=2))
    report("calibration, 4 classes, 512 x 512", lambda: Calibration().update(probabilities, blobs1))
    for images in (200, 20_000):
        table = rows(images)
        report(f"summary, {images} images, 2 classes", lambda t=table: summarise(t, class_names=["b", "x", "y"]), 3)


if __name__ == "__main__":
    blobs1, blobs2 = blobs(1), blobs(2)
    large1, large2 = blobs(1, size=1536), blobs(2, size=1536)
    probabilities = np.random.default_rng(0).dirichlet(np.ones(4), (SIZE, SIZE)).astype(np.float32)
    probabilities = np.ascontiguousarray(probabilities.transpose(2, 0, 1))
    main()
