"""Images per second of `predict` on a folder, against the sum of its parts: reading, predicting, writing.

    python benchmarks/predict_folder.py student.onnx IMAGES [--count 60] [--repeats 5] [--threads 2]

Each repeat times reading all images, predicting all (each by all threads), writing all, one after the other, and then
`predict_files`, which has several images on their way at once.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from segdistill.deploy.inputs import find_images
from segdistill.deploy.predict import predict_files
from segdistill.deploy.predictor import open_predictor
from segdistill.formats import read_image, write_labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    given = parser.parse_args()
    paths = [path for path, _ in find_images([given.images])][: given.count]
    one, several = (open_predictor(given.student, threads=given.threads, images=count) for count in (1, len(paths)))
    for predictor in (one, several):
        predictor.predict(read_image(paths[0]))
    rows = [repeat(one, several, paths) for _ in range(given.repeats)]
    print(f"{len(paths)} images, {given.threads} threads; images/s: median (minimum to maximum)")
    for name in rows[0]:
        rates = [len(paths) / row[name] for row in rows]
        print(f"| {name} | {statistics.median(rates):.1f} ({min(rates):.1f} to {max(rates):.1f}) |")
    ratios = [row["one after the other"] / row["predict"] for row in rows]
    print(f"| ratio, pair by pair | {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |")


def repeat(one, several, paths) -> dict[str, float]:
    """Seconds of each part and of the whole."""
    times = {"read": time.perf_counter()}
    images = [read_image(path) for path in paths]
    times["compute"] = time.perf_counter()
    masks = [one.predict(image).labels for image in images]
    times["write"] = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for number, mask in enumerate(masks):
            write_labels(Path(folder) / f"{number}.png", mask, one.card.colours)
        end = time.perf_counter()
    marks = [*times.values(), end]
    parts = {name: after - before for name, before, after in zip(times, marks, marks[1:], strict=False)}
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        predict_files(several, paths, Path(folder))
        return parts | {"one after the other": sum(parts.values()), "predict": time.perf_counter() - start}


if __name__ == "__main__":
    main()
