"""Small data sets that a few updates learn; what is asked of every exported graph and of every error."""

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from segdistill.types import UserError


def disk(size, centre, radius, value=1):
    """A label map (H, W) with one disk."""
    y, x = np.mgrid[: size[0], : size[1]]
    return (((y - centre[0]) ** 2 + (x - centre[1]) ** 2) <= radius**2).astype(np.uint8) * value


def make_set(
    folder: Path, count: int = 12, size: int = 64, classes: int = 2, unlabelled: int = 0, seed: int = 0
) -> Path:
    """images/ + masks/ of bright disks on noise: easy, so that a few updates learn them."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    for i in range(count):
        labels = np.zeros((size, size), np.uint8)
        for k in range(1, classes):
            centre, radius = rng.uniform(0.25, 0.75, 2) * size, rng.uniform(0.12, 0.22) * size
            labels = np.where(disk((size, size), centre, radius) > 0, k, labels).astype(np.uint8)
        image = rng.normal(90, 12, (size, size, 3)) + 45 * labels[..., None]
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{i:03d}.png")
        if i < count - unlabelled:
            Image.fromarray(labels * (255 if classes == 2 else 1)).save(folder / "masks" / f"{i:03d}.png")
    return folder


def make_volumes(folder: Path, count: int = 8, seed: int = 0) -> Path:
    """images/ + labels/ of NIfTI volumes: a bright ball in 2 x 1.5 x 4 mm voxels, 20 x 24 x 7 of them, turned oddly."""
    import nibabel as nib

    rng = np.random.default_rng(seed)
    affine = np.array([[0, 1.5, 0, -10], [0, 0, -4.0, 30], [-2.0, 0, 0, 5], [0, 0, 0, 1]])  # axes I, R, P
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    grid = np.stack(np.mgrid[:20, :24, :7], -1) * (2, 1.5, 4)
    for i in range(count):
        labels = (((grid - rng.uniform((16, 14, 10), (24, 20, 16))) ** 2).sum(-1) < 9**2).astype(np.uint8)
        image = (rng.normal(300, 40, labels.shape) + 900.0 * labels).astype(np.int16)
        for kind, data in (("images", image), ("labels", labels)):
            nib.save(nib.Nifti1Image(data, affine), folder / kind / f"Kopf ä {i}.nii.gz")
    return folder


def fails(call: Callable[[], object], *words: str) -> None:
    """A UserError of one line that says these words, and no name of a patient of `volumes`."""
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "Secret" not in str(caught.value)


def benchmark(name: str) -> Any:
    """A script of benchmarks/ as a module; such scripts import each other by name."""
    folder = str(Path(__file__).parents[1] / "benchmarks")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)


def assert_batches(file: Path, images: Sequence[NDArray[np.uint8]]) -> None:
    """A graph gives images of one size together what it gives each alone."""
    import onnxruntime

    from segdistill.deploy.predictor import open_predictor

    session = onnxruntime.InferenceSession(str(file))
    labels, probabilities = session.run(["labels", "probabilities"], {"image": np.stack(images)})
    predictor = open_predictor(file)
    for number, image in enumerate(images):
        alone = predictor.raw(image)
        np.testing.assert_allclose(probabilities[number], alone.probabilities, atol=1e-4)
        assert (labels[number] == alone.labels).mean() > 0.999
