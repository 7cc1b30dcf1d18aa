"""ESP-MedSAM: a step of S2 with the teacher's embeddings computed and cached, and the student's inference.

    python benchmarks/esp_step.py --threads 2                               (SAM ViT-B at 1024: minutes, 6 GB)
    python benchmarks/esp_step.py --sam tiny --size 64 --repeats 2
    python benchmarks/esp_step.py --device cuda --rows 16

ViT-B has random weights. Variants take turns, so that a slow minute of the machine hits all; figures are medians with
their spread. "cached" is a step whose embeddings are all there; filling the cache costs what an uncached step costs,
once per image. Inference is the student of six modalities alone, one modality per batch and mixed, fp32 and bf16.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from random_sam import random_vit_b

from segdistill.deploy.measure import peak_memory
from segdistill.engine.memory import keep_freed_memory
from segdistill.engine.plan import set_trainable
from segdistill.engine.randomness import seed_everything
from segdistill.methods.esp_medsam import ESPMedSAM, ESPMedSAMConfig
from segdistill.types import Batch, Store, Task

MODALITIES = ("colonoscopy", "dermoscopy", "fundus", "microscopy", "ultrasound", "xray")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sam", default="vit_b", help="vit_b (random weights), tiny, small")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=4, help="images per batch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_freed_memory()  # as in each training
    print(f"{given.sam}, {given.size} px, {given.rows} images, {given.threads} threads, {given.device}\n")
    with tempfile.TemporaryDirectory() as folder:
        distillation(given, Path(folder))
    inference(given)
    if given.device == "cpu":
        print(f"\npeak memory of this process, all variants in it: {peak_memory() / 1024**3:.2f} GB")


def distillation(given, folder):
    """Seconds of a step of S2, by precision; how many times faster the cached one is."""
    sam = random_vit_b(folder) if given.sam == "vit_b" else given.sam
    batch = random_batch(given.rows, given.size, given.device)
    methods = {cached: made(sam, given, folder / "kept", cached) for cached in (False, True)}
    stages = {}
    for cached, method in methods.items():
        stages[cached] = next(stage for stage in method.stages() if stage.name == "domain")
        stages[cached].prepare()
        set_trainable(method, stages[cached].optimizers)
    times = {}
    for repeat in range(given.repeats + 1):
        for precision in ("fp32", "bf16"):
            for cached, stage in stages.items():
                seconds = clock(lambda stage=stage: update(stage, batch), precision, given.device)
                if repeat:  # the first one warms up and fills the cache
                    times.setdefault((precision, cached), []).append(seconds)
    print("| S2, a step | computed, s | cached, s | times faster |\n|---|---|---|---|")
    for precision in ("fp32", "bf16"):
        computed, kept = times[precision, False], times[precision, True]
        faster = statistics.median(computed) / statistics.median(kept)
        print(f"| {precision} | {spread(computed)} | {spread(kept)} | {faster:.1f} |")
    print(f"\nembeddings: {methods[True].embeddings.cache.bytes / given.rows / 1e6:.2f} MB per image")


def inference(given):
    """Seconds and images per second of the student alone."""
    student = made("tiny", given, None, False).student.eval()
    print("\n| inference | batch | modalities | s per batch | images/s |\n|---|---|---|---|---|")
    for precision in ("fp32", "bf16"):
        for rows, mixed in ((1, False), (given.rows, False), (given.rows, True)):
            batch = random_batch(rows, given.size, given.device)
            modality = batch.modality if mixed else torch.zeros_like(batch.modality)

            def run(image=batch.image, modality=modality):
                with torch.inference_mode():
                    student(image, modality)

            times = [clock(run, precision, given.device) for _ in range(given.repeats + 1)][1:]
            rate = rows / statistics.median(times)
            print(f"| {precision} | {rows} | {'mixed' if mixed else 'one'} | {spread(times)} | {rate:.2f} |")
    parameters = sum(p.numel() for p in student.parameters())
    print(
        f"\nstudent: {parameters:,} parameters, {parameters / len(MODALITIES) / 1e6:.1f} M per modality; SAM-B: 93.7 M"
    )


def made(sam, given, folder, cached):
    seed_everything(0)
    store = Store(folder, tuple(range(given.rows)), print) if folder else None
    task = Task(2, (given.size, given.size), MODALITIES, given.rows, 0, store=store)
    method = ESPMedSAM(ESPMedSAMConfig(sam=sam, cached=cached), task)
    return method.to(given.device, memory_format=torch.channels_last)


def random_batch(rows, size, device):
    torch.manual_seed(0)
    index = torch.arange(rows)
    return Batch(
        image=torch.rand(rows, 3, size, size).to(device, memory_format=torch.channels_last),
        view=None,
        mask=torch.randint(0, 2, (rows, size, size), device=device),
        labelled=torch.ones(rows, dtype=torch.bool, device=device),
        classes=torch.ones(rows, 2, dtype=torch.bool, device=device),
        modality=(index % len(MODALITIES)).to(device),
        index=index.to(device),
    )


def update(stage, batch):
    """Forward, backward, optimizer."""
    loss = stage.step(batch, 0.5).loss
    with torch.autocast(batch.image.device.type, enabled=False):
        loss.backward()
    for optimizer in stage.optimizers:
        optimizer.step()
        optimizer.zero_grad()


def clock(run, precision, device):
    kind = torch.device(device).type
    start = time.perf_counter()
    with torch.autocast(kind, dtype=torch.bfloat16, enabled=precision == "bf16"):
        run()
    if kind == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def spread(times):
    return f"{statistics.median(times):.3f} ({min(times):.3f} to {max(times):.3f})"


if __name__ == "__main__":
    main()
