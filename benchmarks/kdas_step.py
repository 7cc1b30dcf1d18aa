"""KDAS: seconds of an iteration and of its parts, memory, and the student alone. Exported: inference.py.

    python benchmarks/kdas_step.py --threads 2 --repeats 5         (B2 teaches B0 at 352 px, 4 images: some 5 minutes)
    python benchmarks/kdas_step.py --device cuda --rows 16         (images/s of the iteration; inference at 1 and 64)
    python benchmarks/kdas_step.py --teacher b0 --size 64 --rows 2 --repeats 1                       (does it run?)

An iteration is one batch at three scales, an update each, as the engine makes it but for data and augmentation. Weights
are random. Each variant runs in a process of its own, as a training does (in one process they share oneDNN's cache of
kernels and the allocator's holes, and all get slower); the processes take turns, so that a slow minute of the machine
hits all. A figure is the median of the processes' medians, with their range.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from functools import partial

import torch
from knowsam_step import limits
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from segdistill.deploy.measure import peak_memory
from segdistill.engine.memory import keep_freed_memory
from segdistill.engine.plan import rescaled, set_trainable
from segdistill.engine.randomness import seed_everything
from segdistill.methods.kdas import KDAS, KDASConfig
from segdistill.types import Batch, Task

VARIANTS = [(stage, precision) for stage in ("student", "control", "teacher") for precision in ("fp32", "bf16")]
CHANNELS_LAST = torch.channels_last
ITERATIONS = 5  # timed, per process


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="b2")
    parser.add_argument("--student", default="b0")
    parser.add_argument("--size", type=int, default=352)
    parser.add_argument("--rows", type=int, default=4, help="labelled images; there are no others")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--alone", nargs=2, metavar=("STAGE", "PRECISION"), help="one variant, as JSON")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_freed_memory()  # as in each training
    if given.alone:
        print(json.dumps(alone(given, *given.alone)))
        return
    where = f"{given.threads} threads" if given.device == "cpu" else torch.cuda.get_device_name()
    print(f"{given.teacher} teaches {given.student}, {given.size} px, {given.rows} images, {where}\n")
    if given.device == "cpu":
        limits()
    iterations(given)
    parts(*made(given))
    student(given)


def made(given):
    seed_everything(0)
    config = KDASConfig(backbone=given.student, teacher_backbone=given.teacher, unlabelled=False)
    method = KDAS(config, Task(2, (given.size, given.size), ("",), 60, 0))
    return method.to(given.device, memory_format=CHANNELS_LAST), random_batch(given.rows, given.size, given.device)


def random_batch(rows, size, device):
    """Noise, and a square to find."""
    zeros = torch.zeros(rows, dtype=torch.long)
    mask = torch.zeros(rows, size, size, dtype=torch.long)
    mask[:, size // 4 : size // 2, size // 4 : size // 2] = 1
    image = torch.rand(rows, 3, size, size).to(memory_format=CHANNELS_LAST)
    known, classes = torch.ones(rows, dtype=torch.bool), torch.ones(rows, 2, dtype=torch.bool)
    return Batch(*(None if x is None else x.to(device) for x in (image, None, mask, known, classes, zeros, zeros)))


def iteration(method, batch, name, precision):
    """An update per scale of the stage called so."""
    stage = next(stage for stage in method.stages() if stage.name == name)
    set_trainable(method, stage.optimizers)
    for scale in stage.scales:
        with lowered(batch, precision):
            output = stage.step(rescaled(batch, scale), 0.5)
        output.loss.backward()
        for optimizer in stage.optimizers:
            torch.nn.utils.clip_grad_value_([p for g in optimizer.param_groups for p in g["params"]], stage.clip.value)
            optimizer.step()
            optimizer.zero_grad()


def lowered(batch, precision):
    return torch.autocast(batch.image.device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def timed(run, device):
    """Seconds of a call, until the device is done."""
    start = time.perf_counter()
    result = run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def peak(device):
    """GB that this process, or its GPU, held at most."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 1024**3
    return peak_memory() / 1024**3


def iterations(given):
    found = {variant: [] for variant in VARIANTS}
    for _ in range(given.repeats):
        for variant, runs in found.items():
            words = [sys.executable, *sys.argv, "--alone", *variant]
            runs.append(json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout))
    print("\n| stage | precision | s per iteration | images/s | GFLOP/s | peak memory, GB |\n" + "|---" * 6 + "|")
    method, batch = made(given)
    work = {name: counted(method, batch, name) for name, _ in VARIANTS}
    for (name, precision), runs in found.items():
        seconds, held = [seconds for seconds, _ in runs], max(held for _, held in runs)
        middle = statistics.median(seconds)
        print(
            f"| {name} | {precision} | {middle:.2f} ({min(seconds):.2f} to {max(seconds):.2f}) | "
            f"{given.rows / middle:.2f} | {work[name] / middle / 1e9:.0f} | {held:.2f} |",
            flush=True,
        )


def alone(given, name, precision):
    """Median seconds of an iteration after one that warms up, and the process' peak memory in GB."""
    method, batch = made(given)
    run = partial(iteration, method, batch, name, precision)
    seconds = [timed(run, given.device)[0] for _ in range(1 + ITERATIONS)]
    return statistics.median(seconds[1:]), peak(given.device)


def counted(method, batch, name):
    """Floating-point operations of an iteration; a backward pass is two forward ones.

    Torch's own count of a backward pass takes depthwise convolutions for dense ones.
    """
    work = 0
    for scale in method.stages()[-1].scales:
        image = rescaled(batch, scale).image
        trained = method.teacher if name == "teacher" else method.student
        work += 3 * forward_work(trained, image) + (forward_work(method.teacher, image) if name == "student" else 0)
    return work


def forward_work(network, image):
    """Floating-point operations of a forward pass."""
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(image)  # other kernels of the attention are not counted
    return counter.get_total_flops()


def parts(method, batch):
    """Where the student's update at scale 1 spends its time, fp32 and bf16."""
    stage, device = method.stages()[-1], batch.image.device.type
    set_trainable(method, stage.optimizers)
    print("\n| part, ms | student forward | teacher forward | losses | backward |\n|---|---|---|---|---|")
    for precision in ("fp32", "bf16"):
        rows = []
        for _ in range(4):
            with lowered(batch, precision):
                first, s = timed(lambda: method.student.explain(batch.image), device)
                second, t = timed(lambda: method.taught(batch.image, batch.modality), device)
                third, loss = timed(lambda s=s, t=t: total(method, batch, s, t), device)
            fourth, _ = timed(loss.backward, device)
            rows.append((first, second, third, fourth))
        middle = [statistics.median(column) for column in zip(*rows[1:], strict=True)]
        print(f"| {precision} | " + " | ".join(f"{1000 * seconds:.0f}" for seconds in middle) + " |")


def total(method, batch, s, t):
    return method.segmentation(s, batch) + sum(distilled(s, t) for distilled in method.distilled.values())


def student(given):
    """The student's forward alone, per image."""
    method, _ = made(given)
    network = method.student.eval()
    print("\n| student forward | batch | ms per image | images/s | GFLOP per image |\n|---|---|---|---|---|")
    for rows in (1, 8) if given.device == "cpu" else (1, 64):
        batch = random_batch(rows, given.size, given.device)
        work = forward_work(network, batch.image) / rows / 1e9
        for precision in ("fp32", "bf16"):
            with torch.inference_mode(), lowered(batch, precision):
                runs = 4 * given.repeats + 2
                calls = [timed(lambda batch=batch: network(batch.image), given.device)[0] for _ in range(runs)]
            print(f"| {precision} | {rows} | {spread(calls[2:], rows)} | {work:.1f} |")


def spread(seconds, rows):
    each = [1000 * s / rows for s in seconds]
    middle = statistics.median(each)
    return f"{middle:.1f} ({min(each):.1f} to {max(each):.1f}) | {1000 / middle:.1f}"


if __name__ == "__main__":
    main()
