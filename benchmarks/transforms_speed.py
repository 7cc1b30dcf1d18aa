"""How long augmentation takes beside a U-Net step: 12 images of 256 pixels, milliseconds as median [min, max].

Command: python benchmarks/transforms_speed.py [--threads 2] [--repeats 20]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from segdistill.models.students import build_student
from segdistill.transforms.presets import PRESETS, strong, with_view
from segdistill.types import Batch

ROWS, SIDE = 12, 256


def random_batch(memory_format: torch.memory_format = torch.contiguous_format) -> Batch:
    return Batch(
        image=torch.rand(ROWS, 3, SIDE, SIDE).contiguous(memory_format=memory_format),
        view=None,
        mask=torch.randint(0, 2, (ROWS, SIDE, SIDE)),
        labelled=torch.arange(ROWS) % 2 == 0,
        classes=torch.ones(ROWS, 2, dtype=torch.bool),
        modality=torch.zeros(ROWS, dtype=torch.long),
        index=torch.arange(ROWS),
    )


def milliseconds(call: Callable[[], object], repeats: int) -> tuple[float, float, float]:
    for _ in range(2):
        call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times), min(times), max(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    batch, network = random_batch(), build_student("unet", classes=2)

    def step() -> None:
        network.zero_grad()
        F.cross_entropy(network(batch.image), batch.mask).backward()

    reference = milliseconds(step, max(3, options.repeats // 4))
    print(f"{'U-Net step':24}{reference[0]:8.1f} [{reference[1]:.1f}, {reference[2]:.1f}]")
    channels_last = random_batch(torch.channels_last)
    calls = {name: (preset, batch) for name, preset in PRESETS.items()}
    calls["strong with view"] = (with_view(strong), batch)
    calls["strong, channels_last"] = (strong, channels_last)
    for name, (preset, given) in calls.items():
        times = milliseconds(lambda preset=preset, given=given: preset(given), options.repeats)
        share = 100 * times[0] / reference[0]
        print(f"{name:24}{times[0]:8.1f} [{times[1]:.1f}, {times[2]:.1f}]  {share:.1f} % of the step")


if __name__ == "__main__":
    main()
