"""Images per second into a training batch: from the cache, against a DataLoader that decodes and resizes.

    python benchmarks/data_speed.py DATA --size 256 --batch 12

Both deliver (B, 3, size, size) float images and (B, size, size) masks without augmentation; measured in turn, A B A B.
The cache is warm in the page cache, as are the files.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from segdistill.data.batches import Dataset, TrainingBatches
from segdistill.data.cache import open_cache
from segdistill.data.labels import build_mapping, scan_values
from segdistill.data.manifest import load_manifest
from segdistill.data.splits import assign_splits
from segdistill.formats import read_image, read_mask, resize_image, resize_labels


class Decoding(TorchDataset):
    """The usual way: decode and resize at every visit, in worker processes."""

    def __init__(self, rows, mapping, size):
        self.rows, self.mapping, self.size = rows, mapping, size

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, number):
        row = self.rows[number]
        image = torch.from_numpy(resize_image(read_image(row.image), self.size, "squash"))
        mask = torch.from_numpy(resize_labels(self.mapping.apply(read_mask(row.mask)), self.size, "squash"))
        return image.permute(2, 0, 1).float() / 255, mask.long()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--images", type=int, default=2400)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    manifest = load_manifest(given.data)
    rows = [row for row in assign_splits(manifest, val=0.15, test=0.15, seed=0) if row.mask]
    mapping = build_mapping(scan_values([row.mask for row in rows]))
    size = (given.size, given.size)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        cache = open_cache(rows, mapping, size=size, fit="squash", folder=Path(folder), threads=given.threads)
        print(f"cache of {len(rows)} images at {given.size} px built in {time.perf_counter() - start:.1f} s")
        batches = TrainingBatches(Dataset(cache, rows, mapping.classes, tuple({row.modality for row in rows})), seed=0)
        train = [row for row in rows if row.split == "train"]
        loader = DataLoader(
            Decoding(train, mapping, size),
            given.batch,
            shuffle=True,
            num_workers=2,
            persistent_workers=True,
            drop_last=True,
        )
        rates = {"cache": [], "DataLoader, 2 workers": []}
        list(loader)  # the workers' start is not counted
        for _ in range(given.repeats):
            steps = given.images // given.batch
            start = time.perf_counter()
            for position in range(steps):
                batches.at(0, (given.batch, 0), position, "cpu")
            rates["cache"].append(steps * given.batch / (time.perf_counter() - start))
            start = time.perf_counter()
            count = sum(len(image) for image, _ in loader)
            rates["DataLoader, 2 workers"].append(count / (time.perf_counter() - start))
        del batches, cache
    print(f"{given.size} px, batch {given.batch}, {given.threads} threads, images/s: median (min to max)")
    for name, values in rates.items():
        print(f"  {name:22} {statistics.median(values):8.0f} ({min(values):.0f} to {max(values):.0f})")
    ratios = [a / b for a, b in zip(*rates.values(), strict=True)]
    print(f"  ratio, pair by pair    {statistics.median(ratios):8.1f} ({min(ratios):.1f} to {max(ratios):.1f})")


if __name__ == "__main__":
    main()
