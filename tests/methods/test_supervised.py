"""The baseline's own rules."""

import pytest
import torch

from segdistill.losses.schedules import warm_up_cosine
from segdistill.methods import METHODS
from segdistill.methods.supervised import Supervised, SupervisedConfig
from segdistill.types import Task, UserError


def test_the_schedule_rises_then_falls():
    rates = [warm_up_cosine(i / 1000, 0.1) for i in range(1001)]
    assert rates[0] == 0
    assert rates[50] == pytest.approx(0.5)
    assert max(rates) == rates[100] == 1
    assert rates[550] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0, abs=1e-12)


def test_no_warm_up_starts_at_the_top():
    assert warm_up_cosine(0.0, 0.0) == 1


def test_an_unknown_student_is_refused():
    with pytest.raises(UserError, match="unet"):
        Supervised(SupervisedConfig(student="resnet"), Task(2, (32, 32), ("",), 1, 0))


def test_all_parameters_of_the_student_train():
    method = Supervised(SupervisedConfig(), Task(2, (32, 32), ("",), 1, 0))
    (stage,) = method.stages()
    held = {id(p) for group in stage.optimizers[0].param_groups for p in group["params"]}
    assert held == {id(p) for p in method.parameters()}
    assert stage.scored is method.student
    assert isinstance(stage.optimizers[0], torch.optim.AdamW)


@pytest.mark.parametrize("name", ["supervised", "mean_teacher", "bcp", "unimatch"])
def test_a_student_with_weights_per_modality_is_its_own_methods(name):
    """Built by another one it would know a single modality, and its card those of the data."""
    method = METHODS[name]
    for student in ("esp_medsam", "resnet"):
        with pytest.raises(UserError, match=f"--{name}.student {student}"):
            method.require(method.Config(student=student))
    assert method.require(method.Config(student="vnet")).student == "vnet"
