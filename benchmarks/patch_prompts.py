"""What the patch prompt tells ESP-MedSAM's decoder: Dice on validation images with other maps in its place.

    python benchmarks/patch_prompts.py runs/many_modalities/esp_medsam_again_s0 --threads 2

The student of a finished run is given its own map (which 32-px patches hold a class, as it thinks), the map of the true
mask, an empty one and a full one; Dice of each at the training size, the mean over modalities, and how often its own
map is right. How far the true map is ahead says how much the decoder believes its prompt, and what its errors cost.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segdistill.api.data import load_data
from segdistill.api.runs import read_config
from segdistill.deploy.artefact import load_student
from segdistill.engine.validation import BATCH, dice_table
from segdistill.losses.dice_focal import PATCH
from segdistill.losses.segmentation import one_hot

MAPS = ("its own", "of the true mask", "empty", "full")


def true_map(target: Tensor, classes: int) -> Tensor:
    """Which patches hold a class: (B, C - 1, ceil(H / 32), ceil(W / 32)) of 0 and 1."""
    return F.max_pool2d(one_hot(target, classes)[:, 1:].float(), PATCH, ceil_mode=True)


def predictions(network: torch.nn.Module, image: Tensor, modality: Tensor, truth: Tensor) -> Iterator[Tensor]:
    """Label maps under each of MAPS."""
    prompts = [head.prompt for head in network.heads]
    own = prompts[0].map
    for change in (own, lambda prob: truth.to(prob), torch.zeros_like, torch.ones_like):
        for prompt in prompts:
            prompt.map = change
        yield network.run(image, modality).logits.argmax(1)
    for prompt in prompts:
        prompt.map = own


def measured(run: Path) -> tuple[list[float], tuple[float, float]]:
    """Dice under each of MAPS, the mean over modalities; precision and recall of the student's own map."""
    data = load_data(run, read_config(run)[1], None).dataset
    network = load_student(run / "student").network.eval()
    numbers, classes = data.numbers("val", labelled=True), len(data.classes)
    tables, counts = [], np.zeros(3)  # patches that both, the student, the truth find
    with torch.inference_mode():
        for start in range(0, len(numbers), BATCH):
            rows = numbers[start : start + BATCH]
            batch, target = data.batch(rows), data.truth_for_reports(rows, "cpu")
            truth, known = true_map(target, classes), batch.classes[:, 1:]
            labels = predictions(network, batch.image, batch.modality, truth)
            scored = [dice_table(label, target, classes).masked_fill(~known, torch.nan).nanmean(1) for label in labels]
            tables.append(torch.stack(scored, 1).numpy())
            thought = (network.run(batch.image, batch.modality).patch.sigmoid() >= 0.5) & known[:, :, None, None]
            there = (truth > 0) & known[:, :, None, None]
            counts += [(thought & there).sum(), thought.sum(), there.sum()]
    table, modality = np.concatenate(tables), data.modality[numbers]
    means = [np.nanmean(table[modality == m], 0) for m in np.unique(modality)]
    return np.mean(means, 0).tolist(), (counts[0] / counts[1], counts[0] / counts[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(f"| validation Dice under the map | {' | '.join(MAPS)} | its precision | its recall |\n" + "|---" * 7 + "|")
    for run in given.runs:
        dice, right = measured(run)
        print(f"| {run.name} | " + " | ".join(f"{value:.3f}" for value in (*dice, *right)) + " |", flush=True)


if __name__ == "__main__":
    main()
