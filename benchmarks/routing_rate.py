"""How the classifier of modalities learns best: accuracy on the test split, and how often it is unsure.

    python benchmarks/routing_rate.py RUN       (a finished run of esp_medsam on several modalities; a minute)

The classifier alone, on the early features of the run's own student, drawn as S3 draws (a modality of n images n^.5
times as often), as many updates as S3 has in the small recipe and by default; Adam, decaying as S3 does. Loss: on the
images of the batch alone, or on the last images of every modality (`FeatureMemory.cross_entropy`, what S3 does).
"""

import argparse
import itertools
from pathlib import Path

import torch
import torch.nn.functional as F

from segdistill.api.data import load_data
from segdistill.api.runs import read_config
from segdistill.deploy.artefact import load_student
from segdistill.deploy.routing import SURE
from segdistill.losses.schedules import exponential
from segdistill.models.modality_classifier import FeatureMemory, ModalityClassifier, early_features


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    data = load_data(given.run, read_config(given.run)[1]).dataset
    network = load_student(given.run / "student").network
    (x, y), (x_test, y_test) = (features(network, data, split) for split in ("train", "test"))
    print(f"{len(y)} training, {len(y_test)} test images of {', '.join(data.modalities)}\n")
    print("| loss on | updates | learning rate | accuracy | mean over modalities | unsure | wrong, yet sure |")
    print("|---|---|---|---|---|---|---|")
    for remembering, updates in itertools.product((False, True), (400, 3000)):
        for rate in (5e-4, 1.5e-3, 5e-3, 1.5e-2):
            p = trained(x, y, updates, rate, remembering)(x_test).softmax(1)
            right, sure = p.argmax(1) == y_test, p.amax(1) >= SURE
            each = torch.stack([right[y_test == m].float().mean() for m in y_test.unique()]).mean()
            shares = [f"{share.float().mean():.1%}" for share in (right, each, ~sure, ~right & sure)]
            print(
                f"| {'memory' if remembering else 'batch'} | {updates} | {rate} | " + " | ".join(shares) + " |",
                flush=True,
            )


def features(network, data, split):
    """Features and modality of a split's labelled rows."""
    numbers = data.numbers(split, labelled=True)
    parts = []
    with torch.inference_mode():
        for start in range(0, len(numbers), 32):
            image = data.batch(numbers[start : start + 32]).image
            parts.append(early_features(network.trunk.early(network._normalise(image))))
    return torch.cat(parts).clone(), torch.as_tensor(data.modality[numbers])


def trained(x, y, updates, rate, remembering, rows=4):
    torch.manual_seed(0)
    modalities = int(y.max()) + 1
    classifier, memory = ModalityClassifier(modalities), FeatureMemory(modalities)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=rate)
    weight = y.bincount().float().rsqrt()[y]  # of an image, so that a modality is drawn by the root of its size
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = rate * exponential(update / updates, final=0.0176)
        index = torch.multinomial(weight, rows)
        memory.remember(x[index], y[index])
        alone = F.cross_entropy(classifier(x[index]), y[index])
        loss = memory.cross_entropy(classifier, modalities) if remembering else alone
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return classifier


if __name__ == "__main__":
    main()
