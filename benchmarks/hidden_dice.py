"""Dice of finished runs' students on validation images and on training images whose masks the budget hid.

    python benchmarks/hidden_dice.py runs/few_labels/supervised_6000_s1 runs/few_labels/trio_6000_s1 --threads 2

Beside each the difference to the first run, paired by image, with its 95 % interval (images resampled), at the training
size. Hundreds of images tell settings apart that a hundred do not, and `test` is left alone. A method that trains on
these images without their masks has seen them, and validation chose the weights: to find out why, not for claims.
RUN/students/unet in place of RUN: what the run ships beside its own student.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from segdistill.api.data import load_data
from segdistill.api.runs import read_config
from segdistill.deploy.artefact import load_student
from segdistill.engine.validation import BATCH, dice_table
from segdistill.types import UserError


def scores(path: Path) -> dict[str, float]:
    """Mean Dice over the foreground classes of each image, by path; without images in which there is nothing."""
    beside = path.parent.name == "students"
    run, student = (path.parent.parent, path) if beside else (path, path / "student")
    data = load_data(run, read_config(run)[1], None).dataset
    network = load_student(student).network
    numbers = np.concatenate([data.numbers("val", labelled=True), data.hidden()])
    found = []
    with torch.inference_mode():
        for start in range(0, len(numbers), BATCH):
            rows = numbers[start : start + BATCH]
            batch, target = data.batch(rows), data.truth_for_reports(rows, "cpu")
            table = dice_table(network(batch.image, batch.modality).argmax(1), target, len(data.classes))
            found += table.nanmean(1).tolist()
    pairs = zip((str(data.rows[i].image) for i in numbers), found, strict=True)
    return {name: dice for name, dice in pairs if not np.isnan(dice)}


def name_of(path: Path) -> str:
    """With its run's, of a student beside the run's own."""
    return f"{path.parent.parent.name}, its {path.name}" if path.parent.name == "students" else path.name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="finished runs on one data set with one budget and seed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="also written here, for benchmarks/results_tables.py")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    first: dict[str, float] = {}
    lines = ["| run | images | Dice | difference to the first, 95 % interval |", "|---|---|---|---|"]
    for run in given.runs:
        try:
            own = scores(run)
        except UserError as error:
            parser.error(str(error))
        first = first or own
        if own.keys() != first.keys():
            parser.error(f"{run}: other images than the first run's; give runs of one data set, budget and seed")
        gaps = np.array([own[name] - dice for name, dice in first.items()])
        drawn = np.random.default_rng(0).choice(gaps, (2000, len(gaps))).mean(1)
        low, high = np.quantile(drawn, [0.025, 0.975])
        mean = f"{np.mean(list(own.values())):.3f}"
        lines.append(f"| {name_of(run)} | {len(own)} | {mean} | {gaps.mean():+.3f} [{low:+.3f}, {high:+.3f}] |")
    print("\n".join(lines))
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
