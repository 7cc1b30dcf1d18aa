"""What keeping freed memory (engine/memory.py) does to a training step: seconds, their ratio, peak memory.

    python benchmarks/freed_memory.py --threads 2 --repeats 3

A U-Net (supervised, 12 images) and KnowSAM's trio (no SAM, 6 + 6 images, mixing) at 256 px, fp32 and bf16. Each variant
runs in a process of its own, the two in turn; a figure is the median of the processes' medians, with their range.
"""

import argparse
import json
import statistics
import subprocess
import sys

import torch
from knowsam_step import random_batch, timed

from segdistill.deploy.measure import peak_memory
from segdistill.engine.memory import keep_freed_memory
from segdistill.methods.knowsam import KnowSAM, KnowSAMConfig
from segdistill.methods.supervised import Supervised, SupervisedConfig
from segdistill.types import Task

HOW = ("given back", "kept")
NETWORKS = ("U-Net", "KnowSAM's trio")
STEPS = 5


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--alone", nargs=3, metavar=("NETWORK", "PRECISION", "HOW"), help="one variant, as JSON")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.alone:
        print(json.dumps(alone(given.size, *given.alone)))
        return
    print("| step | precision | given back, s | kept, s | ratio | peak, GB |\n|---|---|---|---|---|---|")
    for network in NETWORKS:
        for precision in ("fp32", "bf16"):
            print(row(given, network, precision), flush=True)


def row(given, network, precision):
    found = {how: [] for how in HOW}
    for _ in range(given.repeats):
        for how in HOW:
            words = [sys.executable, *sys.argv, "--alone", network, precision, how]
            found[how].append(json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout))
    seconds = {how: [one for one, _ in runs] for how, runs in found.items()}
    ratios = [old / new for old, new in zip(seconds["given back"], seconds["kept"], strict=True)]
    memory = " and ".join(f"{max(peak for _, peak in found[how]):.2f}" for how in HOW)
    return f"| {network} | {precision} | " + " | ".join(map(spread, [*seconds.values(), ratios])) + f" | {memory} |"


def spread(values):
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def alone(size, network, precision, how):
    """Median seconds of a step, and GB held at most."""
    if how == "kept":
        keep_freed_memory()
    task = Task(2, (size, size), ("",), 60, 540)
    method = (
        Supervised(SupervisedConfig(), task) if network == "U-Net" else KnowSAM(KnowSAMConfig(teacher="none"), task)
    )
    method = method.to(memory_format=torch.channels_last)
    batch = random_batch(6, size)
    steps = [sum(timed(method, batch, 0.6, precision)) for _ in range(STEPS + 1)]
    return statistics.median(steps[1:]), peak_memory() / 1024**3


if __name__ == "__main__":
    main()
