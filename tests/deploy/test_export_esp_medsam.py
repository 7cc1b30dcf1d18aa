"""ESP-MedSAM's student leaves as one file that routes by itself; test_routing.py binds it to one modality."""

from __future__ import annotations

import numpy as np
import torch

from segdistill.deploy.artefact import save_student
from segdistill.deploy.export import export_onnx
from segdistill.deploy.predictor import open_predictor
from segdistill.models.students import build_student, student_spec

SIZE = (64, 96)


def trained_looking():
    """A student whose controllers, prompts and classifier all matter."""
    torch.manual_seed(1)
    own = {"modalities": ["a", "b"], "modality_classes": [[1], [2, 1]]}
    student = build_student("esp_medsam", classes=3, **own, skips=True)
    for name, parameter in student.named_parameters():
        if name.startswith(("controllers", "classifier", "skips")) and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    with torch.no_grad():
        for controllers in student.controllers:
            for block in controllers:
                block.bias.fill_(1.0)
    return student.eval()


def exported(student, card, tmp_path):
    """The student's folder, its file."""
    spec = student_spec(student)
    saved = card(3, name=spec.name, arguments=spec.arguments, size=SIZE, modalities=student.modalities)
    save_student(tmp_path / "student", student, saved)
    export_onnx(tmp_path / "student", tmp_path / "student.onnx")
    return tmp_path / "student", tmp_path / "student.onnx"


def test_the_graph_routes_as_torch_does(card, image, tmp_path):
    student = trained_looking()
    images = [image(*SIZE, seed) // (1 + seed % 3) for seed in range(4)] + [np.zeros((*SIZE, 3), np.uint8)]
    batch = torch.stack([torch.from_numpy(i).permute(2, 0, 1) / 255 for i in images])
    with torch.no_grad():  # half of the images to each side
        score = torch.logit(student.route(batch)[:, 1])
        student.classifier.scores[1].bias -= score.median() + 1e-3
        assert student.route(batch).argmax(1).unique().tolist() == [0, 1]
    folder, file = exported(student, card, tmp_path)
    torch_, graph = open_predictor(folder), open_predictor(file)
    for picture in images:
        a, b = torch_.raw(picture), graph.raw(picture)
        np.testing.assert_allclose(a.probabilities, b.probabilities, atol=1e-4)
        assert a.probabilities.std() > 1e-3
