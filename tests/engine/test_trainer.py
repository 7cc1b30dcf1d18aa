"""The loop: exact resume from any moment, plans, clipping, frozen parts, messages."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from toy import Toy, toy_data, with_hidden

from segdistill.data.batches import Dataset, TrainingBatches
from segdistill.data.cache import Cache
from segdistill.engine import checkpoint
from segdistill.engine import trainer as trainer_module
from segdistill.engine.interrupt import Interrupted
from segdistill.engine.logging import RunLog
from segdistill.engine.plan import planned, rescaled, set_trainable
from segdistill.engine.settings import Settings
from segdistill.engine.trainer import Trainer
from segdistill.types import Clip, UserError

SETTINGS = Settings(seed=3, device="cpu", precision="32", validate_every=2)


class Killed(BaseException):
    """The process ends here; nothing after this line runs."""


def trainer(folder, settings=SETTINGS, method=None):
    folder.mkdir(exist_ok=True)
    log = RunLog(folder, Console(file=open(os.devnull, "w")))  # noqa: SIM115
    return Trainer(method or Toy(), toy_data(), settings, folder, "cpu", log)


def run(folder, settings=SETTINGS, method=None):
    made = trainer(folder, settings, method)
    with made.log:
        made.start()
        result = made.run()
    return made, result


def everything(folder):
    """What a run leaves, in comparable form."""
    files = checkpoint.checkpoints(folder / "checkpoints")
    tensors = {}
    for path in [*files, *sorted((folder / "checkpoints").glob("best-*"))]:
        with safe_open(path, "pt") as file:
            tensors |= {f"{path.name}/{k}": file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
            tensors[f"{path.name}/meta"] = file.metadata()
    return tensors, (folder / "log.jsonl").read_text(encoding="utf-8")


def assert_same(one, two):
    (tensors, log), (others, other_log) = everything(one), everything(two)
    assert tensors.keys() == others.keys()
    for key, value in tensors.items():
        assert torch.equal(value, others[key]) if isinstance(value, torch.Tensor) else value == others[key]
    assert log == other_log


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Uninterrupted runs by precision."""
    runs = {}
    for precision in ("32", "bf16"):
        folder = tmp_path_factory.mktemp("whole") / precision
        made, _ = run(folder, Settings(seed=3, device="cpu", precision=precision, validate_every=2))
        runs[precision] = folder, {k: v.clone() for k, v in made.method.state_dict().items()}
    return runs


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_a_run_is_repeatable(whole, tmp_path, precision):
    run(tmp_path / "again", Settings(seed=3, device="cpu", precision=precision, validate_every=2))
    assert_same(whole[precision][0], tmp_path / "again")


POINTS = (
    [("segdistill.engine.trainer.Trainer._update", n) for n in (1, 4, 7, 12)]
    + [("segdistill.engine.checkpoint.save_file", n) for n in (1, 2, 3, 6)]
    + [("pathlib.Path.replace", n) for n in (1, 2, 3, 5, 8)]
    + [("segdistill.engine.checkpoint._prune", n) for n in (1, 4)]
)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("where", "nth"), POINTS, ids=lambda v: str(v).rpartition(".")[2])
def test_killed_anywhere_and_resumed_is_uninterrupted(whole, tmp_path, monkeypatch, where, nth, after):
    module, _, name = where.rpartition(".")
    owner = {"Path": Path, "Trainer": Trainer, "checkpoint": checkpoint}[module.rpartition(".")[2]]
    original, calls = getattr(owner, name), []

    def dying(*args, **kwargs):
        calls.append(1)
        if len(calls) == nth and not after:
            raise Killed
        result = original(*args, **kwargs)
        if len(calls) == nth and after:
            raise Killed
        return result

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dying)
        with pytest.raises(Killed):
            run(tmp_path / "run")
    run(tmp_path / "run")
    assert_same(whole["32"][0], tmp_path / "run")


def test_killed_and_resumed_in_bf16(whole, tmp_path, monkeypatch):
    settings, original, calls = Settings(seed=3, device="cpu", precision="bf16", validate_every=2), Trainer._update, []

    def dying(self, stage):
        calls.append(1)
        if len(calls) in (5, 11):
            raise Killed
        original(self, stage)

    monkeypatch.setattr(Trainer, "_update", dying)
    for _ in range(2):
        with pytest.raises(Killed):
            run(tmp_path / "run", settings)
    run(tmp_path / "run", settings)
    assert_same(whole["bf16"][0], tmp_path / "run")


def test_kill_9_of_a_process(whole, tmp_path):
    """A real process, killed without warning, then finished."""
    folder = tmp_path / "run"
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "import time, pathlib, test_trainer as t\n"
        "slow = t.Trainer._update\n"
        "def update(self, stage): time.sleep(0.15); slow(self, stage)\n"
        "t.Trainer._update = update\n"
        f"t.run(pathlib.Path({str(folder)!r}))\n"
    )
    here = os.path.dirname(__file__)
    process = subprocess.Popen([sys.executable, "-c", code, here, os.path.dirname(here)])
    deadline = time.monotonic() + 60
    while not checkpoint.checkpoints(folder / "checkpoints") and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert len(checkpoint.checkpoints(folder / "checkpoints")) >= 1
    assert not list((folder / "checkpoints").glob("01-00000006*"))
    run(folder)
    assert_same(whole["32"][0], folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", ["update", "validation"])
def test_a_signal_saves_within_one_update_and_resumes(whole, tmp_path, monkeypatch, number, moment):
    owner, name = (Trainer, "_update") if moment == "update" else (sys.modules["segdistill.engine.trainer"], "validate")
    original, calls = getattr(owner, name), []
    before = signal.getsignal(signal.SIGTERM)  # ray, in another file's tests, leaves its own

    def signalled(*args):
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(number)
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, signalled)
        with pytest.raises(Interrupted, match="--resume") as stop:
            run(tmp_path / "run")
    assert stop.value.exit_code == 128 + number
    saved = checkpoint.peek(checkpoint.checkpoints(tmp_path / "run" / "checkpoints")[-1])
    assert (saved.stage, saved.iteration) == ((0, 3) if moment == "update" else (0, 6))
    assert signal.getsignal(signal.SIGTERM) == before
    run(tmp_path / "run")
    (_, log), (_, expected) = everything(tmp_path / "run"), everything(whole["32"][0])
    assert log == expected


def test_a_full_disk_keeps_the_old_checkpoint(whole, tmp_path, monkeypatch):
    original, calls = checkpoint.save_file, []

    def full(*args, **kwargs):
        calls.append(1)
        if len(calls) > 4:
            raise OSError(28, "No space left on device")
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(UserError, match=r"No space left.*intact.*--resume"):
            run(tmp_path / "run")
    assert checkpoint.checkpoints(tmp_path / "run" / "checkpoints")
    run(tmp_path / "run")
    assert_same(whole["32"][0], tmp_path / "run")


@pytest.mark.parametrize(("owner", "name", "at"), [(os, "fsync", 2), (Path, "write_text", 2)], ids=["sync", "cut"])
def test_a_disk_full_for_the_log_is_one_line(whole, tmp_path, monkeypatch, owner, name, at):
    original, calls = getattr(owner, name), []

    def full(*args, **kwargs):
        calls.append(1)
        if len(calls) == at:
            raise OSError(28, "No space left on device")
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        with pytest.raises(UserError, match=r"log\.jsonl: cannot write .*No space left.*--resume"):
            run(tmp_path / "run")
    run(tmp_path / "run")
    assert_same(whole["32"][0], tmp_path / "run")


def test_a_loss_that_is_not_finite_names_its_term(tmp_path):
    class Broken(Toy):
        def pair(self, batch, progress):
            output = super().pair(batch, progress)
            bad = output.terms["agree"] * (float("nan") if progress >= 0.5 else 1.0)
            return output._replace(loss=output.loss + bad, terms=output.terms | {"agree": bad})

    with pytest.raises(UserError, match=r"pair, iteration 4: .*agree = nan.*00-00000002\.safetensors is intact"):
        run(tmp_path / "run", method=Broken())


def test_the_next_stage_starts_from_the_best_weights(tmp_path):
    made = trainer(tmp_path / "run")
    seen = {}
    made.stages[1].prepare()
    original = made._prepare

    def watched(number, file):
        original(number, file)
        if number == 1:
            best = next((tmp_path / "run" / "checkpoints").glob("best-00-*"))
            with safe_open(best, "pt") as file_:
                seen.update({k: file_.get_tensor(f"model.{k}") for k in checkpoint.stored_state(made.method)})
            assert all(torch.equal(v, seen[k]) for k, v in checkpoint.stored_state(made.method).items())

    made._prepare = watched
    with made.log:
        made.start()
        made.run()
    assert seen


def test_each_stage_is_prepared_in_turn(tmp_path, monkeypatch):
    """What a stage makes on disk, the first process makes alone."""
    made, turns = trainer(tmp_path / "run"), []
    in_turn, prepared = made.processes.in_turn, made.method.prepared

    def watched(work):
        before = len(prepared)
        result = in_turn(work)
        turns.append(prepared[before:])
        return result

    monkeypatch.setattr(made.processes, "in_turn", watched)
    with made.log:
        made.start()
        made.run()
    assert turns == [["pair"], ["head"]]


def test_without_anything_to_find_in_validation_the_last_weights_stay(tmp_path):
    made = trainer(tmp_path / "run")
    made.batches.dataset.cache.masks[10:] = 0
    with made.log:
        made.start()
        trained = made.run()
    assert trained.best is None
    assert "validation" not in (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8")
    assert not list((tmp_path / "run" / "checkpoints").glob("best-*"))
    with safe_open(trained.last, "pt") as file:
        assert all(
            torch.equal(v, file.get_tensor(f"model.{k}")) for k, v in checkpoint.stored_state(made.method).items()
        )


def test_only_what_trains_changes(tmp_path):
    method = Toy(iterations=(1, 6))
    before = {k: v.clone() for k, v in method.state_dict().items()}
    run(tmp_path / "run", method=method)
    after = method.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before if k.startswith("foreign"))
    assert any(not torch.equal(before[k], after[k]) for k in before if k.startswith("student.head"))
    with safe_open(checkpoint.checkpoints(tmp_path / "run" / "checkpoints")[-1], "pt") as file:
        keys = list(file.keys())
    assert not [key for key in keys if "foreign" in key]
    assert [key for key in keys if key.startswith("optimizer.0.")]
    assert not [key for key in keys if key.startswith("optimizer.1.")]


def test_modules_follow_their_parameters():
    method = Toy()
    set_trainable(method, method.stages()[1].optimizers)
    assert method.student.head.training
    assert not method.student.body.training
    assert not method.student.body[3].training  # dropout, without parameters, as its parent
    assert not method.teacher.training
    assert [p.requires_grad for p in method.student.body.parameters()] == [False] * 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_a_stages_last_save_ends_the_run_there(whole, tmp_path, monkeypatch, number):
    """The next stage has handlers of its own, which did not hear it."""
    original, heard = checkpoint.save, []

    def signalled(folder, method, optimizers, progress):
        if (progress.stage, progress.iteration) == (0, 6) and not heard:
            heard.append(number)
            signal.raise_signal(number)
        return original(folder, method, optimizers, progress)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", signalled)
        with pytest.raises(Interrupted):
            run(tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints").glob("01-*"))
    run(tmp_path / "run")
    assert_same(whole["32"][0], tmp_path / "run")


def test_a_validation_whose_checkpoint_was_not_written_is_logged_once(whole, tmp_path, monkeypatch):
    """Stopped in the validation, resumed, and again stopped in the save after it."""
    original = checkpoint.save

    def stopped(folder, method, optimizers, progress):
        before = replace(progress, validated=-1, best=None, best_file=None, stale=0)
        original(folder, method, optimizers, before)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", stopped)
        with pytest.raises(Killed):
            run(tmp_path / "run")
    run(tmp_path / "run")
    assert_same(whole["32"][0], tmp_path / "run")


def test_a_damaged_checkpoint_may_be_deleted(whole, tmp_path):
    """The one before it still has its best weights, of the stage before."""
    shutil.copytree(whole["32"][0], tmp_path / "run")
    for path in checkpoint.checkpoints(tmp_path / "run" / "checkpoints")[1:]:
        path.unlink()
    run(tmp_path / "run")
    assert_same(whole["32"][0], tmp_path / "run")


def test_checkpoints_are_pruned(whole):
    folder = whole["32"][0] / "checkpoints"
    names = sorted(path.name for path in folder.iterdir())
    assert names[:2] == ["01-00000004.safetensors", "01-00000006.safetensors"]
    assert len(names) == 3
    assert names[2].startswith("best-01-")


def test_the_log_has_every_update_and_validation(whole):
    lines = [json.loads(line) for line in (whole["32"][0] / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    updates = [(line["stage"], line["iteration"]) for line in lines if "terms" in line]
    assert updates == [(stage, i) for stage in ("pair", "head") for i in range(1, 7)]
    assert {name for line in lines if line["stage"] == "pair" and "terms" in line for name in line["terms"]} == {
        "a",
        "b",
        "agree",
    }
    assert [line["iteration"] for line in lines if "validation" in line] == [2, 4, 6, 2, 4, 6]
    rates = [line["lr"] for line in lines if line["stage"] == "pair" and "terms" in line]
    assert rates == pytest.approx([0.1 * (1 - i / 6) for i in range(6)])


def test_accumulating_two_batches_is_one_update_on_their_mean(tmp_path):
    settings = Settings(seed=3, device="cpu", precision="32", accumulate=2)
    seen = []

    class Counting(Toy):
        def pair(self, batch, progress):
            seen.append(tuple(batch.index.tolist()))
            return super().pair(batch, progress)

    run(tmp_path / "run", settings, Counting(iterations=(2, 1)))
    assert len(seen) == 2 * 2 * 2  # iterations, scales, batches
    assert seen[0] != seen[1]
    assert seen[:2] == seen[2:4]  # the second scale sees the same images


@pytest.mark.parametrize("precise", [True, False])
def test_batch_norms_are_measured_on_training_images(tmp_path, precise):
    made, _ = run(tmp_path / "run", replace(SETTINGS, precise_bn=precise))
    data = toy_data()
    rows = sorted([*data.labelled, *data.others])
    conv, norm = made.method.student.eval().body[:2]
    with torch.no_grad():
        seen = conv(data.dataset.batch(rows, "cpu").image)
    assert torch.allclose(norm.running_mean, seen.mean((0, 2, 3)), atol=1e-6) == precise
    assert torch.allclose(norm.running_var, seen.var((0, 2, 3)), rtol=1e-5) == precise


def test_batch_norms_are_measured_on_mixed_batches(tmp_path, monkeypatch):
    """Rows of one data set lie together; a batch of them alone would vary less than the batches of the training."""
    made = trainer(tmp_path / "run")
    rows = [replace(made.batches.dataset.rows[0], dataset=name) for name in ("a", "b") for _ in range(20)]
    empty = np.zeros((40, 8, 8, 3), np.uint8)
    made.batches = TrainingBatches(Dataset(Cache(empty, empty[..., 0], "x"), rows, ("background", "x"), ("",)), seed=0)
    seen = []
    monkeypatch.setattr(trainer_module, "precise_statistics", lambda norms, forward, batches: seen.extend(batches))
    made.method.train()
    made._measure_norms(made.method.student)
    sets = [{rows[i].dataset for i in batch.index.tolist()} for batch in seen]
    assert sorted(i for batch in seen for i in batch.index.tolist()) == list(range(40))
    assert len(sets) > 1
    assert all(one == {"a", "b"} for one in sets)


def test_another_network_may_be_measured(tmp_path):
    """Of which the scored one is a part."""

    class Both(torch.nn.Module):
        def __init__(self, toy):
            super().__init__()
            self.parts = torch.nn.ModuleList([toy.student, toy.other])

        def forward(self, image, modality=None):
            return [part(image) for part in self.parts]

    class Whole(Toy):
        def stages(self):
            return [replace(stage, measured=Both(self)) for stage in super().stages()]

    for method, measured in ((Toy(), False), (Whole(), True)):
        made, _ = run(tmp_path / str(measured), method=method)
        data = toy_data()
        conv, norm = made.method.other.eval().body[:2]
        with torch.no_grad():
            seen = conv(data.dataset.batch(sorted([*data.labelled, *data.others]), "cpu").image)
        assert torch.allclose(norm.running_mean, seen.mean((0, 2, 3)), atol=1e-6) == measured


@pytest.mark.parametrize("clip", [Clip(norm=0.0), Clip(value=0.0), Clip(norm=1.0)])
def test_a_clip_of_0_is_none(tmp_path, clip):
    class Clipped(Toy):
        def stages(self):
            return [replace(stage, clip=clip) for stage in super().stages()]

    made = trainer(tmp_path / "run", method=Clipped())
    before = [p.clone() for p in made.method.student.parameters()]
    with made.log:
        made.start()
        made.run()
    assert any(not torch.equal(a, b) for a, b in zip(before, made.method.student.parameters(), strict=True))


def test_early_stop(tmp_path):
    class Frozen(Toy):
        def pair(self, batch, progress):
            output = super().pair(batch, progress)
            return output._replace(loss=output.loss * 0)

    settings = Settings(seed=3, device="cpu", precision="32", validate_every=1, patience=2)
    run(tmp_path / "run", settings, Frozen(iterations=(50, 1)))
    log = (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert sum('"pair"' in line and "terms" in line for line in log) < 20


def test_iterations_and_epochs_keep_each_stages_share():
    stages = Toy(iterations=(300, 100)).stages()
    assert [s.iterations for s in planned(stages, Settings(iterations=40), (6, 4))] == [30, 10]
    assert [s.iterations for s in planned(stages, Settings(epochs=100), (6, 4))] == [150, 50]  # 6 rows, 3 at once
    assert [s.iterations for s in planned(stages, Settings(), (6, 4))] == [300, 100]


@pytest.mark.parametrize(("scale", "size"), [(1.0, (48, 80)), (0.75, (32, 64)), (1.25, (64, 96)), (0.1, (32, 32))])
def test_scales_round_to_a_multiple_of_32(scale, size):
    batch = toy_data().at(0, (2, 0), 0, "cpu")
    batch = batch._replace(image=torch.rand(2, 3, 48, 80), mask=torch.randint(0, 2, (2, 48, 80)), view=None)
    changed = rescaled(batch, scale)
    assert changed.image.shape[-2:] == changed.mask.shape[-2:] == size
    assert changed.mask.dtype == torch.long


def test_auto_precision_leaves_the_method_as_it_was(tmp_path):
    made = trainer(tmp_path / "run", Settings(seed=3, device="cpu", precision="auto"))
    before = {k: v.clone() for k, v in made.method.state_dict().items()}
    with made.log:
        assert made.start() in ("32", "bf16")
    assert all(torch.equal(before[k], v) for k, v in made.method.state_dict().items())
    assert all(p.grad is None for p in made.method.parameters())


def test_a_compiled_step_trains(tmp_path, monkeypatch):
    """Through dynamo and the autograd tracer; the C++ backend would add a minute of compiling."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    _, result = run(
        tmp_path / "run", Settings(seed=3, device="cpu", precision="32", compile=True), Toy(iterations=(2, 1))
    )
    with safe_open(result.last, "pt") as file:
        keys = list(file.keys())
    assert not [key for key in keys if "_orig_mod" in key]


def test_tensorboard_files_are_written(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    made = trainer(folder)
    made.log = RunLog(folder, Console(file=open(os.devnull, "w")), tensorboard=True)  # noqa: SIM115
    with made.log:
        made.start()
        made.run()
    assert list((folder / "tensorboard").glob("events*"))


@pytest.mark.parametrize("damage", [b"", b"short", None])
def test_a_damaged_checkpoint_is_one_message(tmp_path, damage):
    run(tmp_path / "run", method=Toy(iterations=(2, 2)))
    last = checkpoint.checkpoints(tmp_path / "run" / "checkpoints")[-1]
    last.write_bytes(last.read_bytes()[:-9] if damage is None else damage)
    with pytest.raises(UserError, match="delete it"):
        run(tmp_path / "run", method=Toy(iterations=(2, 2)))


def test_another_networks_checkpoint_is_refused(tmp_path):
    run(tmp_path / "run", method=Toy(iterations=(2, 2)))
    other = Toy(iterations=(2, 2))
    other.other = torch.nn.Identity()
    with pytest.raises(UserError, match="another network"):
        checkpoint.load_weights(checkpoint.checkpoints(tmp_path / "run" / "checkpoints")[-1], other)


class Watching(Toy):
    """Draws random numbers, switches modules and watches in passing."""

    def stages(self):
        return [replace(stage, watched=self.others) for stage in super().stages()]

    def others(self, image, modality):
        assert not any(module.training for module in self.modules())
        assert torch.is_inference_mode_enabled()
        return {"other": self.other(image), "noise": torch.randn(len(image), 2, *image.shape[-2:])}


def test_watching_leaves_training_as_it_is(tmp_path, monkeypatch):
    """Weights, optimizers and losses are bit-equal; the log only has more in it."""
    run(tmp_path / "plain")
    monkeypatch.setitem(globals(), "toy_data", partial(with_hidden, toy_data()))
    run(tmp_path / "watching", SETTINGS, Watching())
    (tensors, log), (others, other_log) = everything(tmp_path / "plain"), everything(tmp_path / "watching")
    assert tensors.keys() == others.keys()
    for key, value in tensors.items():
        assert torch.equal(value, others[key]) if isinstance(value, torch.Tensor) else value == others[key]
    lines, watched_lines = ([json.loads(line) for line in text.splitlines()] for text in (log, other_log))
    more = [(line.pop("watched"), line.pop("hidden")) for line in watched_lines if "validation" in line]
    assert lines == watched_lines
    assert [[*part] for pair in more for part in pair] == [["other", "noise"], ["other", "noise", "student"]] * 6
