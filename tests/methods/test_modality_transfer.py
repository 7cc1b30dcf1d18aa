"""One more modality: what was there keeps its bytes, what is new learns, the classifier finds it."""

import pytest
import torch
from modalities import LEVELS, picture, remembering, saved, striped, tensor, two_modalities
from toy import killed_at, run_toy, toy_data

from segdistill.engine.plan import set_trainable
from segdistill.engine.randomness import seed_everything
from segdistill.methods.esp_medsam import ESPMedSAM, ESPMedSAMConfig
from segdistill.types import Batch, Task, UserError

NAMES = ("dark", "bright", "striped")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("before")
    return {"remembers": saved(place / "a", remembering()), "forgot": saved(place / "b")}


def build(folder, classes=2, names=NAMES, **settings):
    seed_everything(0)
    return ESPMedSAM(ESPMedSAMConfig(init=str(folder), **settings), Task(classes, (64, 64), names, 6, 4))


def batch(rows=4, classes=2):
    image = tensor([striped(seed) for seed in range(rows)])
    mask = torch.zeros(rows, 64, 64, dtype=torch.long)
    mask[:, 16:32, 16:32] = classes - 1
    every = torch.ones(rows, classes, dtype=torch.bool)
    return Batch(
        image, None, mask, torch.ones(rows, dtype=torch.bool), every, torch.full((rows,), 2), torch.arange(rows)
    )


def outputs(student, classes=2):
    """What the old modalities make of any image, and the old logits of the classifier."""
    images = tensor([*(picture(kind, 30) for kind in LEVELS), striped(30)])
    with torch.no_grad():
        found = []
        for m in (0, 1):
            out = student.run(images, torch.full((len(images),), m))
            found += [out.logits[:, :classes], out.patch[:, : classes - 1], out.embedding, out.route[:, :2]]
    return found


def train(method, updates=30, classes=2):
    (stage,) = method.stages()
    stage.prepare()
    for i in range(updates):
        set_trainable(method, stage.optimizers)
        stage.step(batch(classes=classes), i / updates).loss.backward()
        for optimizer in stage.optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return method.requires_grad_(True).eval()  # torch's convolutions round otherwise where nothing requires a gradient


@pytest.mark.parametrize("classes", [2, 3])
def test_old_outputs_are_byte_equal_after_training(folders, classes):
    method = build(folders["remembers"], classes).eval()
    before, images = two_modalities(), batch().image
    start = {k: v.clone() for k, v in method.student.state_dict().items()}
    with torch.no_grad():
        untrained = method.student(images, batch().modality)
    train(method, updates=3, classes=classes)
    assert all(torch.equal(a, b) for a, b in zip(outputs(before), outputs(method.student), strict=True))
    moved = {k for k, v in method.student.state_dict().items() if not torch.equal(v, start[k])}
    own = ("controllers.2.", "readouts.2.", "classifier.scores.2.", "memory.")
    assert all(k.startswith(own) or ".prompt.patch.1." in k or ".prompt.prompt.1." in k for k in moved)
    assert {k.split(".")[0] for k in moved} >= {"controllers", "readouts", "classifier", "memory"}
    assert any("prompt" in k for k in moved) == (classes == 3)
    with torch.no_grad():
        assert not torch.equal(untrained, method.student(images, batch().modality))
    kept = method.student.memory
    assert torch.equal(kept.features[:2], start["memory.features"][:2])
    assert kept.seen[2] == 12


def test_the_classifier_finds_the_new_modality_and_still_the_old(folders):
    """From features of the old ones alone: no image of theirs is there."""
    method = train(build(folders["remembers"], learning_rate=1e-3), updates=15)
    student = method.student
    for m, kind in enumerate(("dark", "bright")):
        assert student.route(tensor([picture(kind, s) for s in range(50, 54)])).argmax(1).tolist() == [m] * 4
    found = student.route(tensor([striped(s) for s in range(50, 54)]))
    assert found.argmax(1).tolist() == [2] * 4
    assert found.max() > 0.8


def test_without_a_memory_nothing_is_routed_to_the_new_one_and_it_is_said(folders):
    method = build(folders["forgot"])
    (stage,) = method.stages()
    assert set(stage.step(batch(), 0.5).terms) == {"seg", "patch"}
    train(method, updates=2)
    assert method.student.route(tensor([striped(1)])).argmax(1).tolist() != [2]
    with torch.inference_mode():
        sentences = method.remarks([], batch()).sentences
    assert any("remembers no features of dark, bright" in one for one in sentences)
    assert any("striped was added to dark, bright" in one for one in sentences)


@pytest.mark.parametrize(("its_own", "said"), [("none", "hard"), ("hard", "none")])
def test_its_patch_prompt_is_the_students_whatever_the_settings_say(tmp_path, its_own, said):
    method = build(saved(tmp_path / "it", remembering(patch_prompt=its_own)), patch_prompt=said)
    (stage,) = method.stages()
    assert ("patch" in stage.step(batch(), 0.5).terms) == (its_own == "hard")
    with torch.inference_mode():
        assert bool(method.eval().remarks([], batch()).pictures) == (its_own == "hard")


def test_its_terms_are_those_of_the_last_stage(folders):
    method = build(folders["remembers"], patch_weight=0.25)
    (stage,) = method.stages()
    t = (out := stage.step(batch(), 0.5)).terms
    assert set(t) == {"seg", "patch", "route", "keep"}
    torch.testing.assert_close(out.loss, t["seg"] + 0.25 * t["patch"] + t["route"] + t["keep"])


def test_what_cannot_be_added_to_is_one_line(folders, tmp_path):
    with pytest.raises(UserError, match="this run began with one that knew light"):
        build(folders["forgot"], names=("light", "striped"))
    with pytest.raises(UserError, match="holds no student"):
        build(tmp_path)


def test_resumed_is_uninterrupted(folders, tmp_path):
    def run(folder):
        method = build(folders["remembers"], names=("dark", "bright", ""), batch_size=2)
        data = toy_data(64)
        data.dataset.__dict__["modality"] = torch.full((13,), 2).numpy()
        run_toy(method, folder, data, iterations=4, validate_every=1)
        return method.state_dict()

    whole = run(tmp_path / "whole")
    with killed_at(3):
        run(tmp_path / "cut")
    again = run(tmp_path / "cut")
    assert all(torch.equal(value, again[key]) for key, value in whole.items())
    assert whole["student.memory.seen"][2] > 0
