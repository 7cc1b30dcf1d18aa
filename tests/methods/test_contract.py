"""What every method must do; a new line in METHODS is tested before its own tests exist."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import disk
from small_methods import DUE, SMALL
from toy import killed_at, run_toy, toy_data

from segdistill.deploy.artefact import load_student, save_student
from segdistill.deploy.card import Card
from segdistill.engine.plan import set_trainable
from segdistill.engine.randomness import seed_everything
from segdistill.engine.validation import dice_table
from segdistill.methods import METHODS
from segdistill.models.students import student_spec
from segdistill.types import Batch, Task, UserError

SIZE = 32
UPDATES = 90  # enough for eight images, whatever the number of threads
pytestmark = pytest.mark.parametrize("name", METHODS)


# Settings under which the student learns from labels alone: what a teacher learns costs time and is tested elsewhere.
ALONE = {
    "knowsam": {"teacher": "none"},
    "esp_medsam": {"medical": False, "common": False, "domain": False, "tuned": "student"},
}
LOGGED = {"mu"}  # beside the addends


def build(name, classes=2, size=SIZE, **settings):
    seed_everything(0)
    method = METHODS[name](
        METHODS[name].Config(**SMALL.get(name, {}) | settings), Task(classes, (size, size), ("",), 8, 8)
    )
    return method, method.stages()


def make_batch(labelled, others, classes=2, size=SIZE, seed=0):
    """Bright disks on noise; the last rows are not labelled."""
    torch.manual_seed(seed)
    rows = labelled + others
    mask = torch.zeros(rows, size, size, dtype=torch.long)
    for i in range(rows):
        for k in range(1, classes):
            centre = (torch.rand(2) * 0.5 + 0.25) * size
            mask[i][torch.from_numpy(disk((size, size), centre.tolist(), size / 6)) > 0] = k
    image = 0.3 + 0.6 * mask[:, None].float() / classes + 0.05 * torch.randn(rows, 3, size, size)
    return Batch(
        image=image.clamp(0, 1).to(memory_format=torch.channels_last),
        view=image.clamp(0, 1).flip(1),
        mask=mask,
        labelled=torch.arange(rows) < labelled,
        classes=torch.ones(rows, classes, dtype=torch.bool),
        modality=torch.zeros(rows, dtype=torch.long),
        index=torch.arange(rows),
    )


def step(method, stage, batch, progress=0.6, seed=1):
    """A step as the engine calls it."""
    set_trainable(method, stage.optimizers)
    seed_everything(seed)
    return stage.step(batch, progress)


def trained(stage):
    return [p for optimizer in stage.optimizers for group in optimizer.param_groups for p in group["params"]]


@pytest.mark.parametrize("classes", [2, 4])
def test_terms_are_finite_and_each_moves_something(name, classes):
    method, stages = build(name, classes, **DUE.get(name, {}))
    for stage in stages:
        output = step(method, stage, make_batch(2, 3, classes))
        assert output.loss.ndim == 0
        assert torch.isfinite(output.loss)
        assert output.terms
        for term in (term for key, term in output.terms.items() if key not in LOGGED):
            assert torch.isfinite(term)
            grads = torch.autograd.grad(term, trained(stage), retain_graph=True, allow_unused=True)
            assert any(g is not None and g.abs().max() > 0 for g in grads)


def test_what_no_optimizer_holds_stays_still_and_in_eval(name):
    method, stages = build(name)
    for stage in stages:
        mine = {id(p) for p in trained(stage)}
        still = {k: p.detach().clone() for k, p in method.named_parameters() if id(p) not in mine}
        output = step(method, stage, make_batch(2, 2))
        output.loss.backward()
        for optimizer in stage.optimizers:
            optimizer.step()
        assert all(torch.equal(value, dict(method.named_parameters())[k]) for k, value in still.items())
        for module in method.modules():
            own = list(module.parameters())
            if own and not any(id(p) in mine for p in own):
                assert not module.training


def test_unlabelled_masks_have_no_influence(name):
    method, stages = build(name)
    batch = make_batch(2, 3)
    noise = batch.mask.clone()
    noise[2:] = torch.randint(0, 2, noise[2:].shape)
    for stage in stages:
        before = {k: v.clone() for k, v in method.state_dict().items()}
        first = step(method, stage, batch)
        method.load_state_dict(before)
        second = step(method, stage, batch._replace(mask=noise))
        assert torch.equal(first.loss, second.loss)


@pytest.mark.parametrize(("labelled", "others"), [(1, 0), (1, 1), (3, 0), (1, 4), (0, 3)])
def test_any_mix_of_rows(name, labelled, others):
    method, stages = build(name)
    for stage in stages:
        output = step(method, stage, make_batch(labelled, others))
        output.loss.backward()
        assert torch.isfinite(output.loss)
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in trained(stage))


def test_not_square_and_odd_sizes(name):
    method, stages = build(name)
    batch = make_batch(2, 1)
    batch = batch._replace(image=batch.image[..., :27], view=batch.view[..., :27], mask=batch.mask[..., :27])
    for stage in stages:
        assert torch.isfinite(step(method, stage, batch).loss)


def test_a_step_is_repeatable(name):
    method, stages = build(name)
    for stage in stages:
        before = {k: v.clone() for k, v in method.state_dict().items()}
        results = []
        for _ in range(2):
            method.load_state_dict(before)
            output = step(method, stage, make_batch(2, 2))
            results.append((output.loss, *torch.autograd.grad(output.loss, trained(stage), allow_unused=True)))
        for a, b in zip(*results, strict=True):
            assert (a is None and b is None) or torch.equal(a, b)


def test_the_student_needs_only_an_image(name):
    method, _ = build(name, classes=4)
    image = torch.rand(2, 3, SIZE, SIZE)
    method.eval()
    with torch.no_grad():
        logits = method.student(image)
        assert logits.shape == (2, 4, SIZE, SIZE)
        assert torch.equal(logits, method.student(image, torch.zeros(2, dtype=torch.long)))


def test_augmentation_keeps_the_batch_whole(name):
    _, stages = build(name)
    batch = make_batch(2, 3)
    for stage in stages:
        torch.manual_seed(0)
        changed = stage.augment(batch)
        assert torch.equal(changed.index, batch.index)
        assert torch.equal(changed.labelled, batch.labelled)
        assert changed.image.shape == batch.image.shape
        assert set(changed.mask.unique().tolist()) <= {0, 1}


def test_a_plan_can_be_shortened(name):
    """Ramps are functions of progress: any number of iterations reaches every point of the schedule."""
    _, stages = build(name)
    for stage in stages:
        factors = [replace(stage, iterations=n).schedule(i / n) for n in (3, 50) for i in range(n)]
        assert all(0 <= factor <= 1 for factor in factors)
        assert max(factors) > 0


def test_eight_images_are_learnt(name):
    size = {"kdas": 64}.get(name, SIZE)  # its maps are at 1/8 of the image
    method, stages = build(name, size=size, **ALONE.get(name, {}))
    batch = make_batch(8, 4, size=size)
    for stage in stages:
        for i in range(UPDATES):
            if i % 15 == 0 and stage is stages[-1] and dice(method, batch) > 0.9:
                break
            set_trainable(method, stage.optimizers)
            seed_everything(i)
            output = stage.step(batch, i / UPDATES)
            output.loss.backward()
            for optimizer in stage.optimizers:
                optimizer.step()
                optimizer.zero_grad()
            stage.after_update(i / UPDATES)
    assert dice(method, batch) > 0.9


def dice(method, batch):
    """The student's, of the labelled rows."""
    method.eval()
    with torch.no_grad():
        prediction = method.student(batch.image[batch.labelled]).argmax(1)
    return dice_table(prediction, batch.mask[batch.labelled], 2).mean()


def test_resumed_is_uninterrupted(name, tmp_path):
    def run(folder):
        seed_everything(0)
        method = METHODS[name](METHODS[name].Config(**SMALL.get(name, {})), Task(2, (SIZE, SIZE), ("",), 6, 4))
        log = run_toy(method, folder, toy_data(SIZE), iterations=4, validate_every=2)
        return method.state_dict(), log

    whole = run(tmp_path / "whole")
    shutil.rmtree(tmp_path / "whole")  # up to half a gigabyte of checkpoints
    with killed_at(4):
        run(tmp_path / "cut")
    again = run(tmp_path / "cut")
    assert whole[1] == again[1]
    assert all(torch.equal(value, again[0][key]) for key, value in whole[0].items())


def test_the_student_survives_its_artefact(name, tmp_path):
    method, _ = build(name, classes=4)
    image = torch.rand(1, 3, SIZE, SIZE)
    spec = student_spec(method.student)
    names, colours = tuple("abcd"), ((0, 0, 0),) * 4
    card = Card(spec.name, spec.arguments, name, names, colours, (SIZE, SIZE), "none")
    save_student(tmp_path / "student", method.student, card)
    with torch.no_grad():
        assert torch.equal(method.student.eval()(image), load_student(tmp_path / "student").network(image))


WEIGHTS = {  # settings that may name a file
    "kdas": ("teacher", "backbone_weights"),
    "esp_medsam": ("sam", "init"),
    "knowsam": ("teacher",),
    "mean_teacher": ("sam",),
    "unimatch": ("sam",),
    "bcp": ("sam",),
}


def test_a_named_file_is_found_again_from_any_folder(name, tmp_path, monkeypatch):
    """What is a word or a hub's name stays one, even where a file is called so."""
    fields = WEIGHTS.get(name, ())
    if not fields:
        return
    require = METHODS[name].require
    (tmp_path / "größe").mkdir()
    monkeypatch.chdir(tmp_path / "größe")
    for file in ("weights.pth", "none", "hub", "tiny"):
        Path(file).write_bytes(b"")
    config = METHODS[name].Config(**dict.fromkeys(fields, "weights.pth"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        require(config)
    assert "\n" not in str(error.value)
    monkeypatch.chdir("größe")
    settled = require(config)
    assert [getattr(settled, field) for field in fields] == [str(Path("weights.pth").resolve())] * len(fields)
    assert require(settled) == settled
    teacher = "tiny" if name == "knowsam" else ""
    words = {"backbone_weights": "hub", "init": "none", "sam": "tiny", "teacher": teacher}
    config = METHODS[name].Config(**{field: words[field] for field in fields})
    assert require(config) == config
