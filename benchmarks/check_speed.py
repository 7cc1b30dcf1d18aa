"""Seconds that `segdistill check` takes: its audit of a data folder, and the pair search alone on many pictures.

    python benchmarks/check_speed.py DATA --threads 2 --pictures 20000

The pictures of the search are smoothed noise on what all share (so that hashes collide as they do in chest X-rays),
every tenth is a copy of the one before with a little noise; it prints how many of these are found, and how many more.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from segdistill.data.audit import judge
from segdistill.data.hashing import SIDE, near_pairs
from segdistill.data.inspection import inspect
from segdistill.data.manifest import load_manifest


def pictures(count):
    rng = np.random.default_rng(0)
    shared = 60 * gaussian_filter(rng.normal(size=(SIDE, SIDE)), 6) / 0.05
    made = np.empty((count, SIDE, SIDE), np.uint8)
    for i in range(count):
        own = 12 * gaussian_filter(rng.normal(size=(SIDE, SIDE)), 1.5) / 0.19
        made[i] = (128 + shared + own).clip(0, 255)
        if i % 10 == 9:
            made[i] = (made[i - 1] + rng.normal(0, 1, (SIDE, SIDE))).clip(0, 255)
    return made


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pictures", type=int, default=20000)
    given = parser.parse_args()
    rows = load_manifest(given.data).rows
    start = time.perf_counter()
    seen = inspect(rows, threads=given.threads)
    middle = time.perf_counter()
    judge(rows, seen)
    end = time.perf_counter()
    print(f"{given.data.name}: {len(rows)} images, {given.threads} threads")
    rate = 1000 * (end - start) / len(rows)
    print(f"  decoding {middle - start:.1f} s, judging {end - middle:.1f} s; per 1,000 images {rate:.1f} s")
    made = pictures(given.pictures)
    start = time.perf_counter()
    found = near_pairs(made)
    planted = {(i - 1, i) for i in range(9, given.pictures, 10)}
    print(f"search among {given.pictures} pictures: {time.perf_counter() - start:.1f} s, ", end="")
    print(f"{len(planted & {*found})} of {len(planted)} copies found, {len({*found} - planted)} other pairs")


if __name__ == "__main__":
    main()
