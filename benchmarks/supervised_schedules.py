"""Which optimizer and schedule the supervised baseline uses: chosen on the validation split, never on test.

    python benchmarks/supervised_schedules.py DATA --labelled 60 --size 128 --iterations 1200 --out runs/schedules

Each variant is a resumable run; a finished one is only read. Prints best and last validation Dice, one seed.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from torch.optim import SGD

from segdistill.api.options import TrainOptions
from segdistill.api.train import resume, train
from segdistill.methods import METHODS
from segdistill.methods.supervised import Supervised, SupervisedConfig


class SupervisedSGD(Supervised):
    """KnowSAM's and SSL4MIS's optimizer: SGD .01, momentum .9, weight decay 1e-4, linear decay to 0."""

    def stages(self):  # noqa: D102
        (stage,) = super().stages()
        sgd = SGD(self.student.parameters(), lr=self.config.learning_rate, momentum=0.9, weight_decay=1e-4)
        return [replace(stage, optimizers=[sgd], schedule=lambda progress: 1 - progress)]


class SupervisedLinear(Supervised):
    """AdamW with linear decay."""

    def stages(self):  # noqa: D102
        (stage,) = super().stages()
        return [replace(stage, schedule=lambda progress: min(progress / 0.04, 1 - progress))]


VARIANTS = {
    "adamw_cosine_1e-3": (Supervised, 1e-3),
    "adamw_cosine_3e-3": (Supervised, 3e-3),
    "sgd_linear_1e-2": (SupervisedSGD, 1e-2),
    "adamw_cosine_3e-4": (Supervised, 3e-4),
    "adamw_linear_1e-3": (SupervisedLinear, 1e-3),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--labelled", default="60")
    parser.add_argument("--size", default=128, type=int)
    parser.add_argument("--iterations", default=1200, type=int)
    parser.add_argument("--out", default=Path("runs/schedules"), type=Path)
    parser.add_argument("--threads", default=2, type=int)
    parser.add_argument("--seed", default=0, type=int)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(f"{given.data.name}: {given.labelled} masks, {given.size} px, {given.iterations} updates, seed {given.seed}")
    for name in given.variants:
        method, rate = VARIANTS[name]
        METHODS[name] = method
        run = given.out / f"{given.data.name}_{given.labelled}_{given.iterations}_{name}_s{given.seed}"
        options = TrainOptions(
            method=name,
            labelled=given.labelled,
            size=given.size,
            iterations=given.iterations,
            threads=given.threads,
            seed=given.seed,
            precision="bf16",
            cache=given.out / "cache",
        )
        if (run / "config.yaml").exists():
            resume(run)
        else:
            train(given.data, run, options, SupervisedConfig(learning_rate=rate))
        lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        dice = [line["validation"]["dice"] for line in lines if "validation" in line]
        print(f"{name}: best validation Dice {max(dice):.4f}, last {dice[-1]:.4f}", flush=True)


if __name__ == "__main__":
    main()
