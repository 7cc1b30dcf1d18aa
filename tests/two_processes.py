"""python two_processes.py FOLDER: what each of two processes does for test_distributed.py, and leaves there."""

import hashlib
import json
import os
import shutil
import signal
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from small_methods import SMALL
from torch import nn
from toy import Plain, Toy, toy_data

from segdistill.data.batches import Dataset
from segdistill.data.cache import Cache
from segdistill.data.rows import Row
from segdistill.engine import checkpoint
from segdistill.engine.logging import RunLog
from segdistill.engine.processes import Processes
from segdistill.engine.randomness import seed_everything
from segdistill.engine.settings import Settings
from segdistill.engine.trainer import Trainer
from segdistill.engine.validation import validate
from segdistill.methods import METHODS
from segdistill.types import Task


class Bright(nn.Module):
    """Foreground is what is brighter than .5, without a parameter."""

    def forward(self, image, modality=None):
        z = image.mean(1, keepdim=True) - 0.5
        return torch.cat([-z, z], 1)


def dark(image, modality):
    """Another prediction: foreground is what is darker than .5."""
    return {"dark": Bright()(1 - image)}


def validation_set():
    """17 rows: two processes get 9 and 8 of them, so two batches and one. The last one has nothing to find.

    And three training rows with a hidden mask, so 2 and 1.
    """
    rng = np.random.default_rng(0)
    masks = (rng.random((20, 16, 16)) < 0.3).astype(np.uint8)
    masks[16] = 0
    noise = rng.random(masks.shape) < 0.1
    noise[16] = False
    images = np.repeat(((masks ^ noise) * 255).astype(np.uint8)[..., None], 3, 3)
    rows = [Row(Path(f"{i}.png"), Path(f"{i}m.png"), "val") for i in range(17)]
    rows += [Row(Path(f"{i}.png"), None, "train", hidden=Path(f"{i}m.png")) for i in range(17, 20)]
    return Dataset(Cache(images, masks, "val"), rows, ("background", "spot"), ("",))


def method_named(name):
    seed_everything(0)
    if name in METHODS:
        small = {field.name: 2 for field in fields(METHODS[name].Config) if "batch" in field.name}
        return METHODS[name](METHODS[name].Config(**SMALL.get(name, {}) | small), Task(2, (32, 32), ("",), 6, 4))
    return Toy((3, 3)) if name == "toy" else Plain()


def trained(name, folder, settings, processes, method=None, change=None):
    """Run a method, after a change to its Trainer; returns that."""
    folder.mkdir(parents=True, exist_ok=True)
    log = RunLog(folder, Console(quiet=True), silent=processes.rank > 0)
    trainer = Trainer(method or method_named(name), toy_data(), settings, folder, "cpu", log, processes)
    with log:
        trainer.start()
        if change:
            change(trainer)
        trainer.run()
    return trainer


def drift(trainer):
    """Before DDP wraps it, the second process's method has other weights, buffers and averages; then hash each update.

    Kept is what an update leaves: after a stage all get the first one's best weights anyway.
    """
    update, trainer.kept = trainer._update, {}

    def keeping(stage):
        update(stage)
        state = trainer.method.state_dict().items()
        place = f"{stage.name}-{trainer.progress.iteration}"
        trainer.kept |= {
            f"{place}-{key}": hashlib.sha256(value.contiguous().numpy()).hexdigest() for key, value in state
        }

    trainer._update = keeping
    if trainer.processes.rank == 1:
        with torch.no_grad():
            for value in checkpoint.stored_state(trainer.method).values():
                value.add_(1)


def nan(trainer):
    """The second process's loss is not finite."""
    step = trainer.method.step

    def broken(batch, progress):
        output = step(batch, progress)
        return output._replace(loss=output.loss * (float("nan") if trainer.processes.rank == 1 else 1.0))

    trainer.stages = [replace(trainer.stages[0], step=broken)]


def stop(trainer):
    """The second process gets a SIGTERM in its third update."""
    update = trainer._update

    def signalled(stage):
        if trainer.processes.rank == 1 and trainer.progress.iteration == 2:
            signal.raise_signal(signal.SIGTERM)
        update(stage)

    trainer._update = signalled


def main(folder):
    torch.set_num_threads(1)
    with Processes(devices=2) as processes:
        settings = Settings(device="cpu", precision="32", iterations=4, validate_every=3, devices=2)
        for name in [*METHODS, "toy"]:
            kept = trained(name, folder / name, settings, processes, change=drift).kept
            (folder / f"{name}-{processes.rank}.json").write_text(json.dumps(kept), encoding="utf-8")
            for other in set(METHODS) - {name} if processes.rank == 0 else ():  # both have left those, all in all 1 GB
                shutil.rmtree(folder / other, ignore_errors=True)
        for accumulate in (1, 2):
            settings = Settings(device="cpu", precision="32", accumulate=accumulate, devices=2)
            trained("plain", folder / f"plain{accumulate}", settings, processes)
        scores = validate(Bright(), validation_set(), torch.device("cpu"), processes=processes, watched=dark)
        (folder / f"scores-{processes.rank}.json").write_text(json.dumps(scores), encoding="utf-8")
        for change in (nan, stop):
            try:
                plain = Settings(device="cpu", precision="32", devices=2)
                trained("plain", folder / change.__name__, plain, processes, change=change)
            except (Exception, SystemExit) as error:
                said = f"{type(error).__name__} {error}"
                (folder / f"{change.__name__}-{processes.rank}.txt").write_text(said, encoding="utf-8")


if __name__ == "__main__":
    os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"
    main(Path(sys.argv[1]))
