"""Students that are not trained, but whose outputs vary, and images that look like photographs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import zoom
from torch import Tensor, nn

from segdistill.deploy.artefact import Card, save_student
from segdistill.models import students

COLOURS = ((0, 0, 0), (230, 60, 40), (60, 200, 80), (70, 90, 240))


class Micro(nn.Module):
    """One convolution: any output of it can be computed by hand."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, classes, 3, padding=1)

    def forward(self, image: Tensor, modality: Tensor | None = None) -> Tensor:
        return 6 * self.head(image - 0.5)


@pytest.fixture(autouse=True)
def _micro(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(students.STUDENTS, "micro", Micro)


def make_card(classes: int = 2, name: str = "micro", **changes: object) -> Card:
    values = {
        "name": name,
        "arguments": {"classes": classes},
        "method": "supervised",
        "classes": ("background", "polyp", "größe | x", "d")[:classes],
        "colours": COLOURS[:classes],
        "size": (32, 48),
        "licence": "weights: CC BY-NC 4.0, as the data",
        "versions": {"torch": "2.13"},
        "data_hash": "ab12",
    }
    return Card(**(values | changes))


def make_image(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth colours, sharp edges and noise, (H, W, 3)."""
    generator = np.random.default_rng(seed)
    coarse = generator.random((5, 6, 3))
    image = 255 * zoom(coarse, (height / 5, width / 6, 1), order=1, grid_mode=True, mode="nearest")
    image[height // 3 : height // 2, width // 4 : width // 2] = (250, 10, 240)
    return (image + generator.normal(0, 12, image.shape)).clip(0, 255).astype(np.uint8)


def make_network(card: Card) -> nn.Module:
    """Built by name; batch statistics as after training, logits centred and stretched so that all classes occur."""
    torch.manual_seed(0)
    network = students.build_student(card.name, **card.arguments)
    x = torch.stack([torch.from_numpy(make_image(*card.size, seed)).permute(2, 0, 1) / 255 for seed in range(4)])
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.momentum = None
    with torch.no_grad():
        network.train()(x)
        z = network.eval()(x)
        scale = 2 / z.std(dim=(0, 2, 3))
        network.head.weight *= scale[:, None, None, None]
        network.head.bias *= scale
        network.head.bias -= network(x).mean(dim=(0, 2, 3)) / (6 if isinstance(network, Micro) else 1)
    return network


@pytest.fixture
def card() -> Callable[..., Card]:
    return make_card


@pytest.fixture
def image() -> Callable[..., NDArray[np.uint8]]:
    return make_image


@pytest.fixture
def network() -> Callable[[Card], nn.Module]:
    return make_network


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved student of two classes."""
    card = make_card()
    save_student(tmp_path / "ein Schüler", make_network(card), card)
    return tmp_path / "ein Schüler"


EXPORTED = {
    "unet-2-pad": make_card(2, "unet", size=(64, 96), fit="pad", threshold=0.4, postprocess="largest"),
    "unet-4-squash": make_card(4, "unet", size=(48, 64)),
}


@pytest.fixture(scope="session", params=EXPORTED)
def unet_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved U-Net; one for each fit and rule of decision."""
    card = EXPORTED[request.param]
    folder = tmp_path_factory.mktemp("students") / request.param
    save_student(folder, make_network(card), card)
    return folder


@pytest.fixture(scope="session")
def onnx_file(unet_folder: Path) -> Path:
    """The same student as one ONNX file."""
    from segdistill.deploy.export import export_onnx

    out = unet_folder.parent / "ausgeführt.onnx"
    export_onnx(unet_folder, out)
    return out
