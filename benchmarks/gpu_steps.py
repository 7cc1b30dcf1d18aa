"""Updates of the engine on a GPU: ms, images/s and peak memory of U-Net, KnowSAM (ViT-B, without SAM) and KDAS.

    python benchmarks/gpu_steps.py [--repeats 20]

Data, augmentation, step, clipping, optimizers and log are in it, as in a training; noise for images, random weights.
Of KnowSAM both with mixing (progress .6). Medians of single updates, each waited for, with their range; then the same
without waiting between them, as a training runs; how many kernels one launches, and their own time together, by torch's
profiler. The machine's limits stand above the table. ESP-MedSAM: esp_step.py.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from random_sam import random_vit_b
from rich.console import Console
from step_speed import random_batches
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from segdistill.engine.logging import RunLog
from segdistill.engine.randomness import seed_everything
from segdistill.engine.settings import Settings
from segdistill.engine.trainer import Trainer
from segdistill.methods import METHODS
from segdistill.types import Task

CASES = {  # method, settings, size
    "U-Net, 256 px, 12": ("supervised", {"batch_size": 12}, 256),
    "KnowSAM without SAM, 256 px, 6 + 6": ("knowsam", {"teacher": "none", "labelled_batch": 6, "other_batch": 6}, 256),
    "KnowSAM, ViT-B, 256 px, 6 + 6": ("knowsam", {"teacher": "vit_b", "labelled_batch": 6, "other_batch": 6}, 256),
    "KnowSAM, ViT-B, 256 px, 12 + 12": ("knowsam", {"teacher": "vit_b", "labelled_batch": 12, "other_batch": 12}, 256),
    "KDAS, B2 to B0, 352 px, 16": ("kdas", {"unlabelled": False, "labelled_batch": 16}, 352),
}
ITERATIONS = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--case", default="", help="only those whose name holds this")
    given = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n")
    limits()
    print(
        "\n| update | precision | ms, waited for | ms, not waited for | images/s | peak, GB | launches | GPU, ms |\n"
        + "|---" * 8
        + "|"
    )
    with tempfile.TemporaryDirectory() as folder:
        teacher = random_vit_b(Path(folder))
        for name, (method, settings, size) in ((n, case) for n, case in CASES.items() if given.case in n):
            if settings.get("teacher") == "vit_b":
                settings = settings | {"teacher": teacher}
            for precision in ("32", "bf16"):
                print(
                    f"| {name} | {precision} | " + measured(method, settings, size, precision, given.repeats),
                    flush=True,
                )


def measured(name: str, settings: dict, size: int, precision: str, repeats: int) -> str:
    """The cells of one case."""
    seed_everything(0)
    labelled = 24 if name == "knowsam" else 48
    data = random_batches(48, size, labelled)
    method = METHODS[name](METHODS[name].Config(**settings), Task(2, (size, size), ("",), labelled, 48 - labelled))
    given = Settings(device="cuda", precision=precision, validate_every=ITERATIONS)
    torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        log = RunLog(Path(folder), Console(quiet=True))
        trainer = Trainer(method, data, given, Path(folder), "cuda", log)
        with log:
            trainer.start()
            stage = trainer.stages[-1]
            trainer._wrap(stage)
            trainer.progress.iteration = int(0.6 * stage.iterations)
            single = [seconds(trainer, stage, 1) for _ in range(repeats + 5)][5:]
            running = seconds(trainer, stage, repeats) / repeats
            peak = torch.cuda.max_memory_allocated() / 1024**3
            launches, busy = profiled(trainer, stage)
    images = sum(stage.batch) * len(stage.scales)
    middle, least, most = (f"{1000 * s:.0f}" for s in (statistics.median(single), min(single), max(single)))
    spread = f"{middle} ({least} to {most})"
    return f"{spread} | {1000 * running:.0f} | {images / running:.0f} | {peak:.1f} | {launches} | {busy:.0f} |"


def profiled(trainer: Trainer, stage) -> tuple[int, float]:
    """Kernel launches of one update, and the milliseconds of all its kernels."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        seconds(trainer, stage, 1)
    events = found.key_averages()
    kernels = sum(event.self_device_time_total for event in events if event.device_type == DeviceType.CUDA)
    return sum(event.count for event in events if event.key.startswith("cudaLaunchKernel")), kernels / 1000


def seconds(trainer: Trainer, stage, updates: int) -> float:
    """Of so many updates, until the GPU is done."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(updates):
        trainer._update(stage)
    torch.cuda.synchronize()
    return time.perf_counter() - start


def limits() -> None:
    """TFLOP/s of a matrix product and a 3x3 convolution, and TB/s of a copy."""
    square, image = torch.randn(8192, 8192, device="cuda"), torch.randn(16, 64, 256, 256, device="cuda")
    image = image.to(memory_format=torch.channels_last)
    convolution = torch.nn.Conv2d(64, 64, 3, padding=1).cuda().to(memory_format=torch.channels_last)
    work = {
        "matrix product": (lambda: square @ square, 2 * 8192**3),
        "3x3 convolution, 64 channels": (lambda: convolution(image), 2 * 64 * 64 * 9 * 16 * 256**2),
    }
    for name, (run, operations) in work.items():
        rates = []
        for enabled in (False, True):
            with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=enabled):
                rates.append(operations / best(run) / 1e12)
        print(f"{name}: {rates[0]:.0f} TFLOP/s in fp32, {rates[1]:.0f} in bf16 (casts in it)")
    print(f"copy: {2 * image.nbytes / best(image.clone) / 1e12:.2f} TB/s")


def best(run) -> float:
    """Seconds of the fastest of ten."""
    found = []
    for _ in range(12):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return min(found[2:])


if __name__ == "__main__":
    main()
