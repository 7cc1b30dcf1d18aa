"""A student of two modalities, "dark" and "bright", that tells images apart by their brightness, and such images."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from segdistill.deploy.artefact import save_student
from segdistill.deploy.card import Card
from segdistill.models.modality_classifier import early_features
from segdistill.models.students import build_student, student_spec

SIZE = (64, 64)
LEVELS = {"dark": 50, "bright": 200, "between": 114}


def picture(kind, seed=0, size=SIZE):
    """Noise around a level, with a block in it, (H, W, 3)."""
    rng = np.random.default_rng(seed)
    image = rng.normal(LEVELS[kind], 12, (*size, 3))
    image[size[0] // 4 : size[0] // 2, size[1] // 4 : size[1] // 2] += 30
    return image.clip(0, 255).astype(np.uint8)


def tensor(images):
    """(B, 3, H, W) in [0, 1]."""
    return torch.stack([torch.from_numpy(image).permute(2, 0, 1) / 255 for image in images])


def two_modalities(**arguments):
    """Not trained, but controllers and queries matter, and the classifier is sure of all images but those between."""
    torch.manual_seed(1)
    student = build_student("esp_medsam", classes=2, modalities=["dark", "bright"], **arguments)
    for bank in student.controllers:
        for block in bank:
            torch.nn.init.normal_(block.mlp.fc2.weight, std=0.1)
            torch.nn.init.ones_(block.bias)
    student.eval()
    dark, bright = (tensor([picture(kind, seed) for seed in range(4)]) for kind in ("dark", "bright"))
    found = []
    student.classifier.scores[1].register_forward_hook(lambda module, given, out: found.append(given[0]))
    with torch.no_grad():
        student.route(dark), student.route(bright)
        student.classifier.scores[1]._forward_hooks.clear()
        away = found[1].mean(0) - found[0].mean(0)
        middle = (found[1].mean(0) + found[0].mean(0)) / 2
        student.classifier.scores[1].weight.copy_(12 * away[None] / away.square().sum())
        student.classifier.scores[1].bias.copy_(-student.classifier.scores[1].weight[0] @ middle)
    return student


def remembering(**arguments):
    """The student of two modalities, with features of both."""
    student = two_modalities(**arguments)
    for m, kind in enumerate(("dark", "bright")):
        images = tensor([picture(kind, seed) for seed in range(12)])
        with torch.no_grad():
            features = early_features(student.trunk.early(student._normalise(images)))
        student.memory.remember(features, torch.full((12,), m))
    return student


def striped(seed, size=SIZE):
    """Neither dark nor bright: both, in stripes."""
    image = picture("dark", seed, size)
    image[::4] = image[1::4] = 230
    return image


def saved(folder: Path, student=None, **changes):
    """The student's folder."""
    student = student or two_modalities()
    spec = student_spec(student)
    names = getattr(student, "modalities", ())
    card = {
        "name": spec.name,
        "arguments": spec.arguments,
        "method": "esp_medsam",
        "classes": ("background", "foreground"),
        "colours": ((0, 0, 0), (230, 60, 40)),
        "size": SIZE,
        "licence": "none",
        "modalities": names,
    }
    save_student(folder, student, Card(**card | changes))
    return folder


def made_set(folder: Path, kinds, size=SIZE):
    """images/ + masks/ of these kinds of pictures, a PNG each."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for seed, kind in enumerate(kinds):
        mask = np.zeros(size, np.uint8)
        mask[size[0] // 4 : size[0] // 2, size[1] // 4 : size[1] // 2] = 255
        image = striped(seed, size) if kind == "striped" else picture(kind, seed, size)
        Image.fromarray(image).save(folder / "images" / f"{kind}{seed}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{kind}{seed}.png")
    return folder
