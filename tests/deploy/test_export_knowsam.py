"""KnowSAM's trio as ONNX: exclusive or and entropy survive."""

import numpy as np
import torch
from helpers import assert_batches

from segdistill.deploy.artefact import save_student
from segdistill.deploy.export import export_onnx
from segdistill.deploy.predictor import open_predictor
from segdistill.models.students import build_student


def test_the_graph_agrees(card, image, tmp_path):
    torch.manual_seed(0)
    network = build_student("knowsam_trio", classes=2)
    with torch.no_grad():  # batch statistics as after training
        for _ in range(20):
            network.train()(torch.rand(2, 3, 48, 64))
        network.unet.head.weight *= 8  # so that probabilities lie on both sides of a half
    save_student(tmp_path / "s", network, card(2, name="knowsam_trio", size=(48, 64)))
    check = export_onnx(tmp_path / "s", tmp_path / "s.onnx")
    assert check.max_difference < 1e-3
    a, b = (open_predictor(tmp_path / name).raw(image(50, 70)) for name in ("s", "s.onnx"))
    np.testing.assert_allclose(a.probabilities, b.probabilities, atol=1e-3)
    assert_batches(tmp_path / "s.onnx", [image(50, 70, seed) for seed in range(3)])
    z_a, z_b, _ = network.eval().branches(torch.from_numpy(image(48, 64)).permute(2, 0, 1)[None] / 255)
    assert 0.01 < (z_a.argmax(1) != z_b.argmax(1)).float().mean() < 0.99
