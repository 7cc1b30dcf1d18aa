"""A U-Net update through the engine against a bare loop, in fp32 and bf16; one run, in turn.

    python benchmarks/step_speed.py --size 256 --batch 12

The bare loop: forward, the same loss, backward, the same clipping and AdamW, on a batch that is there already; so the
engine's extra is its data, augmentation (weak), wrapper and log.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import nn
from torch.optim import AdamW

from segdistill.data.batches import Dataset, TrainingBatches
from segdistill.data.cache import Cache
from segdistill.data.rows import Row
from segdistill.engine.logging import RunLog
from segdistill.engine.settings import Settings
from segdistill.engine.trainer import Trainer
from segdistill.losses.segmentation import dice_cross_entropy
from segdistill.methods.supervised import Supervised, SupervisedConfig
from segdistill.models.students import build_student
from segdistill.transforms.presets import strong, weak
from segdistill.types import Task


def random_batches(count, size, labelled=None):
    """Noise; of some rows, or all, with a mask."""
    known = count if labelled is None else labelled
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, size, size, 3)).astype(np.uint8)
    masks = rng.integers(0, 2, (count, size, size)).astype(np.uint8)
    names = [Path(f"{i}.png") for i in range(count)]
    rows = [Row(name, name if i < known else None, "train") for i, name in enumerate(names)]
    return TrainingBatches(Dataset(Cache(images, masks, ""), rows, ("background", "foreground"), ("",)), seed=0)


def bare_step(network, optimizer, batch, bf16):
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = dice_cross_entropy(network(batch.image), batch.mask, batch.labelled, batch.classes)
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 5.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def timed(function, repeats):
    function()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    data = random_batches(4 * given.batch, given.size)
    batch = data.at(0, (given.batch, 0), 0, "cpu")
    print(f"U-Net, {given.size} px, batch {given.batch}, {given.threads} threads, ms: median (min to max)")
    for name, preset in (("weak", weak), ("strong", strong)):
        show(f"{name} preset", timed(lambda preset=preset: preset(batch), given.repeats))
    for precision in ("32", "bf16"):
        compare(given, data, batch, precision)


def compare(given, data, batch, precision):
    torch.manual_seed(0)
    network = build_student("unet", classes=2).to(memory_format=torch.channels_last)
    optimizer = AdamW(network.parameters(), lr=1e-3)
    method = Supervised(
        SupervisedConfig(batch_size=given.batch), Task(2, (given.size,) * 2, ("",), len(data.labelled), 0)
    )
    settings = Settings(device="cpu", precision=precision, iterations=10_000, validate_every=10_000)
    with tempfile.TemporaryDirectory() as folder:
        log = RunLog(Path(folder), Console(quiet=True))
        trainer = Trainer(method, data, settings, Path(folder), "cpu", log)
        with log:
            trainer.start()
            stage = trainer.stages[0]
            trainer._wrap(stage)
            bare, engine = [], []
            for _ in range(given.repeats):  # in turn: the machine's drift meets both
                bare += timed(lambda: bare_step(network, optimizer, batch, precision == "bf16"), 1)
                engine += timed(lambda: trainer._update(stage), 1)
    show(f"bare step, {precision}", bare)
    show(f"engine, {precision}", engine)
    ratios = [e / b for e, b in zip(engine, bare, strict=True)]
    print(f"  engine / bare, {precision:18} {statistics.median(ratios):8.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


def show(name, seconds):
    values = [1000 * s for s in seconds]
    print(f"  {name:33} {statistics.median(values):8.1f} ({min(values):.1f} to {max(values):.1f})", flush=True)


if __name__ == "__main__":
    main()
