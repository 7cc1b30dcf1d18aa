"""One step of KnowSAM by parts: seconds, share, GFLOP/s, memory; with SAM's windows and with the whole grid as one.

    python benchmarks/knowsam_step.py --threads 2 --repeats 5            (ViT-B at 256, 2 + 2 images: about 10 minutes)
    python benchmarks/knowsam_step.py --teacher tiny --size 128 --rows 6

ViT-B has random weights; its parameters are frozen but for adapters and prompts, as with real ones. Variants take
turns, so that a slow minute of the machine hits all; figures are medians with their spread. In the same run two limits
of the machine: a matrix product and a 3x3 convolution (channels_last), fp32 and bf16. Peak memory is that of two steps
in a process of their own.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from random_sam import random_vit_b
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from segdistill.deploy.measure import peak_memory
from segdistill.engine.memory import keep_freed_memory
from segdistill.engine.plan import set_trainable
from segdistill.engine.randomness import seed_everything
from segdistill.methods.knowsam import KnowSAM, KnowSAMConfig
from segdistill.types import Batch, Task

PROGRESS = {"before mixing": 0.2, "with mixing": 0.6}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="vit_b", help="vit_b (random weights), tiny, small")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rows", type=int, default=2, help="labelled rows, and as many others")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--alone", nargs=3, metavar=("WINDOW", "PRECISION", "PROGRESS"), help="one step: peak in GB")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_freed_memory()  # as in each training
    if given.alone:
        print(json.dumps(alone(given, *given.alone)))
        return
    limits()
    with tempfile.TemporaryDirectory() as folder:
        teacher = random_vit_b(Path(folder)) if given.teacher == "vit_b" else given.teacher
        windows = ("sam", "whole") if given.teacher == "vit_b" else ("sam",)
        methods = {window: made(teacher, window, given.size) for window in windows}
    batch = random_batch(given.rows, given.size)
    times = {}
    for repeat in range(given.repeats + 1):
        for window, method in methods.items():
            for precision in ("fp32", "bf16"):
                for mixing, progress in PROGRESS.items():
                    seconds = timed(method, batch, progress, precision)
                    if repeat:  # the first one warms up
                        times.setdefault((window, precision, mixing), []).append(seconds)
    print(f"\n{given.teacher}, {given.size} px, {given.rows} + {given.rows} images, {given.threads} threads\n")
    print("| windows | precision | | s per step | forward | backward | optimizers | GFLOP/s | peak memory, GB |")
    print("|---" * 9 + "|")
    for (window, precision, mixing), rows in times.items():
        total = [sum(row) for row in rows]
        flops = counted(methods[window], batch, PROGRESS[mixing])
        words = [*sys.argv, "--alone", window, precision, str(PROGRESS[mixing])]
        held = json.loads(subprocess.run([sys.executable, *words], check=True, capture_output=True, text=True).stdout)
        shares = [statistics.median(column) for column in zip(*rows, strict=True)]
        middle = statistics.median(total)
        print(
            f"| {window} | {precision} | {mixing} | {middle:.2f} ({min(total):.2f} to {max(total):.2f}) | "
            + " | ".join(f"{share / sum(shares):.0%}" for share in shares)
            + f" | {flops / middle / 1e9:.0f} | {held:.2f} |",
            flush=True,
        )
    parts(methods["sam"], batch)


def alone(given, window, precision, progress):
    with tempfile.TemporaryDirectory() as folder:
        teacher = random_vit_b(Path(folder)) if given.teacher == "vit_b" else given.teacher
        method = made(teacher, window, given.size)
    for _ in range(2):
        timed(method, random_batch(given.rows, given.size), float(progress), precision)
    return peak_memory() / 1024**3


def made(teacher, window, size):
    seed_everything(0)
    config = KnowSAMConfig(teacher=teacher, window=window, gate=False)
    return KnowSAM(config, Task(2, (size, size), ("",), 60, 540)).to(memory_format=torch.channels_last)


def random_batch(rows, size):
    torch.manual_seed(0)
    count = 2 * rows
    zeros = torch.zeros(count, dtype=torch.long)
    return Batch(
        image=torch.rand(count, 3, size, size).to(memory_format=torch.channels_last),
        view=None,
        mask=torch.randint(0, 2, (count, size, size)),
        labelled=torch.arange(count) < rows,
        classes=torch.ones(count, 2, dtype=torch.bool),
        modality=zeros,
        index=zeros,
    )


def timed(method, batch, progress, precision):
    """Seconds of forward, backward, optimizers."""
    stage = method.stages()[0]
    set_trainable(method, stage.optimizers)
    start = time.perf_counter()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        output = stage.step(batch, progress)
    forward = time.perf_counter()
    output.loss.backward()
    backward = time.perf_counter()
    for optimizer in stage.optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return forward - start, backward - forward, time.perf_counter() - backward


def counted(method, batch, progress):
    """Floating-point operations of forward and backward."""
    with FlopCounterMode(display=False) as counter:
        method.step(batch, progress).loss.backward()
    method.zero_grad()
    return counter.get_total_flops()


def parts(method, batch):
    """Seconds of the networks alone, forward and backward, fp32."""
    stage = method.stages()[0]
    set_trainable(method, stage.optimizers)
    fused = torch.zeros(len(batch.image), 2, *batch.image.shape[-2:])
    networks = {
        "U-Net": lambda: method.trio.unet(batch.image),
        "V-Net": lambda: method.trio.vnet(batch.image),
        "SAM's encoder": lambda: method.sam.teacher.sam.encode(batch.image),
        "SAM, whole": lambda: method.sam(batch.image, fused),
    }
    print("\n| part, fp32 | forward, s | backward, s |\n|---|---|---|")
    for name, run in networks.items():
        rows = []
        for _ in range(4):
            start = time.perf_counter()
            output = run()
            middle = time.perf_counter()
            output.sum().backward()
            rows.append((middle - start, time.perf_counter() - middle))
        forward, backward = (statistics.median(column) for column in zip(*rows[1:], strict=True))
        print(f"| {name} | {forward:.2f} | {backward:.2f} |")


def limits():
    """GFLOP/s of a large matrix product and of a 3x3 convolution on this machine, now."""
    print("| limit, GFLOP/s | fp32 | bf16 |\n|---|---|---|")
    square = torch.rand(2048, 2048)
    convolution = nn.Conv2d(64, 64, 3, padding=1).to(memory_format=torch.channels_last)
    image = torch.rand(4, 64, 128, 128).to(memory_format=torch.channels_last)
    work = {
        "matrix product": (lambda x: x @ x, square, 2 * 2048**3),
        "3x3 convolution": (convolution, image, 2 * 64 * 64 * 9 * 4 * 128 * 128),
    }
    for name, (run, given, flops) in work.items():
        rates = []
        for enabled in (False, True):
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                seconds = []
                for _ in range(8):
                    start = time.perf_counter()
                    run(given)
                    seconds.append(time.perf_counter() - start)
            rates.append(flops / min(seconds) / 1e9)
        print(f"| {name} | {rates[0]:.0f} | {rates[1]:.0f} |")


if __name__ == "__main__":
    main()
