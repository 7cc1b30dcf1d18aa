"""A generated data set for demo and tests: painted images with exact masks, patients, splits, an unlabelled part.

Made to be learnable, but not from a handful of labels: there are three modalities, and patients differ from each other
more than the images of one patient do.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np

from ..formats.images import replacing, write_image, write_labels
from ..types import UserError
from .scenes import SCENES

COLOURS = ((0, 0, 0), (255, 255, 255))
IMAGES_PER_PATIENT = 3
SMALLEST = 32  # pixels; below, an object may fall between them


def write_phantom(
    folder: Path,
    *,
    labelled: int = 108,
    unlabelled: int = 60,
    val: int = 30,
    test: int = 60,
    size: int = 128,
    seed: int = 0,
) -> None:
    """Write images/, masks/ (0 background, 1 foreground) and manifest.csv (image, mask, split, patient, modality).

    `labelled` and `unlabelled` images form the training split; the latter have no mask. All are `size` pixels square.
    A patient has one modality and up to three images, all in one split; the modalities take turns. The same arguments
    give the same bytes (with the same numpy, scipy, Pillow), and an image looks the same whatever the counts. Files of
    these names are replaced; the manifest comes last.

    Raises:
        UserError: the size is too small, or the folder cannot be written.
    """
    if size < SMALLEST:
        raise UserError(f"phantom images of {size} pixels were asked for; they need at least {SMALLEST}")
    try:
        for part in ("images", "masks"):
            (folder / part).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made a folder ({error.strerror}); give another place") from error
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["image", "mask", "split", "patient", "modality"])
    parts = (("a", "train", labelled), ("u", "train", unlabelled), ("v", "val", val), ("t", "test", test))
    for letter, split, count in parts:
        for number in range(count):
            rows.writerow(_write_one(folder, letter, split, divmod(number, IMAGES_PER_PATIENT), size, seed))
    with replacing(folder / "manifest.csv") as file:
        file.write(table.getvalue().encode("utf-8"))


def _write_one(folder: Path, letter: str, split: str, place: tuple[int, int], size: int, seed: int) -> list[str]:
    """Paint one image, `place` = (patient, image of the patient) within its part; returns its manifest row."""
    modality = list(SCENES)[place[0] % len(SCENES)]
    seeds = (seed, ord(letter), *place)
    image, mask = SCENES[modality](np.random.default_rng(seeds[:3]), np.random.default_rng(seeds), size)
    patient = f"{letter}{place[0]:03d}"
    image_path, mask_path = (f"{kind}/{modality}_{patient}_{place[1]}.png" for kind in ("images", "masks"))
    write_image(folder / image_path, np.rint(255 * image).astype(np.uint8))
    if letter == "u":
        return [image_path, "", split, patient, modality]
    write_labels(folder / mask_path, mask.astype(np.uint8), COLOURS)
    return [image_path, mask_path, split, patient, modality]
