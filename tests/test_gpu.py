"""On a GPU: a step is the CPU's, a whole run trains, resumes, scores and exports as on the CPU. Skips without one."""

import json

import numpy as np
import pytest
import torch
from helpers import make_set
from PIL import Image
from small_methods import DUE, SMALL

from segdistill.api.evaluate import evaluate
from segdistill.api.options import TrainOptions
from segdistill.api.runs import method_named
from segdistill.api.train import resume, train
from segdistill.deploy.predictor import open_predictor
from segdistill.engine.interrupt import Interrupted
from segdistill.engine.plan import set_trainable
from segdistill.engine.randomness import seed_everything
from segdistill.engine.trainer import Trainer
from segdistill.methods import METHODS
from segdistill.transforms.presets import weak_strong
from segdistill.types import Batch, Task

pytestmark = pytest.mark.gpu
SIZE = 64
NOTHING_DROPPED = {"unimatch": {"feature_dropout": 0.0}}


@pytest.fixture(autouse=True)
def exact():
    """Without TF32, which rounds a convolution's inputs to ten bits, sums differ in the last digits only."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def disks(rows=4):
    """Half of them labelled; on the CPU."""
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    mask = torch.stack([(((y - 20 - 6 * i) ** 2 + (x - 32) ** 2) < 150).long() for i in range(rows)])
    generator = torch.Generator().manual_seed(0)
    image = 0.3 + 0.4 * mask[:, None] + 0.05 * torch.randn(rows, 3, SIZE, SIZE, generator=generator)
    zeros = torch.zeros(rows, dtype=torch.long)
    image = image.clamp(0, 1).to(memory_format=torch.channels_last)
    known, classes = torch.arange(rows) < rows // 2, torch.ones(rows, 2, dtype=torch.bool)
    return Batch(image, image.flip(1), mask, known, classes, zeros, torch.arange(rows))


def steps(name, device):
    """Loss, and gradients by name, of a step of each stage; nothing is dropped, so that no device draws its own."""
    seed_everything(0)
    settings = SMALL.get(name, {}) | DUE.get(name, {}) | NOTHING_DROPPED.get(name, {})
    method = METHODS[name](METHODS[name].Config(**settings), Task(2, (SIZE, SIZE), ("",), 8, 8))
    method.to(device, memory_format=torch.channels_last)
    batch = Batch(*(field.to(device) for field in disks()[:-1]))
    for stage in method.stages():
        set_trainable(method, stage.optimizers)
        for module in method.modules():
            if isinstance(module, torch.nn.Dropout) or "DropPath" in type(module).__name__:
                module.eval()
        seed_everything(1)
        output = stage.step(batch, 0.6)
        method.zero_grad(set_to_none=True)
        output.loss.backward()
        grads = {key: p.grad.cpu() for key, p in method.named_parameters() if p.grad is not None}
        yield stage.name, output.loss.detach().cpu(), grads


@pytest.mark.parametrize("name", METHODS)
def test_a_step_is_that_of_the_cpu(name):
    for (stage, loss, grads), (_, there, expected) in zip(steps(name, "cuda"), steps(name, "cpu"), strict=True):
        torch.testing.assert_close(loss, there, rtol=1e-3, atol=1e-4, msg=lambda text, s=stage: f"{s}: {text}")
        assert grads.keys() == expected.keys()
        whole, other = (torch.cat([g.flatten().double() for g in each.values()]) for each in (grads, expected))
        assert torch.nn.functional.cosine_similarity(whole, other, dim=0) > 0.999


def test_augmentation_is_that_of_the_cpu():
    seed_everything(3)
    expected = weak_strong(disks())
    seed_everything(3)
    found = weak_strong(Batch(*(field.cuda() for field in disks()[:-1])))
    torch.testing.assert_close(found.image.cpu(), expected.image, atol=1e-4, rtol=1e-4)
    assert (found.mask.cpu() == expected.mask).float().mean() > 0.999


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("gpu") / "disks", count=24, unlabelled=6)


def few(name, **options):
    method = method_named(name)
    settings = SMALL.get(name, {})
    given = {"method": name, "size": SIZE, "iterations": 12, "validate_every": 6, "threads": 2, "device": "cuda"}
    return TrainOptions(**(given | options)), method.Config(**settings)


@pytest.mark.parametrize("precision", ["32", "bf16", "auto"])
@pytest.mark.parametrize("name", METHODS)
def test_a_run_ends_with_a_student(name, precision, data, tmp_path):
    result = train(data, tmp_path / "run", *few(name, precision=precision))
    assert (result.folder / "report.html").is_file()
    assert np.isfinite(result.summary["mean"]["dice"]["mean"])
    log = [json.loads(line) for line in (result.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    values = [value for entry in log for value in entry.get("terms", {}).values()]
    assert np.isfinite(values).all()


def test_a_student_predicts_as_on_the_cpu(data, tmp_path):
    folder = train(data, tmp_path / "run", *few("supervised", iterations=60)).folder
    image = np.asarray(Image.open(data / "images" / "000.png"))
    here, there = (open_predictor(folder / "student", device) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(here.raw(image).probabilities, there.raw(image).probabilities, atol=1e-3)
    dice = [evaluate(folder, data, device=device)["mean"]["dice"]["mean"] for device in ("cpu", "cuda")]
    assert abs(dice[0] - dice[1]) < 1e-2


def test_a_stopped_run_goes_on(data, tmp_path, monkeypatch):
    """Its checkpoint comes back to the GPU, optimizers too."""
    update = Trainer._update

    def stop(trainer, stage):
        update(trainer, stage)
        if trainer.progress.iteration == 7:
            trainer.signals.received = 15

    monkeypatch.setattr(Trainer, "_update", stop)
    with pytest.raises(Interrupted):
        train(data, tmp_path / "run", *few("supervised"))
    monkeypatch.undo()
    assert np.isfinite(resume(tmp_path / "run").summary["mean"]["dice"]["mean"])
