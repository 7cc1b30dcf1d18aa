"""What a run writes about where it ran."""

import platform
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from helpers import make_set
from PIL import Image

from segdistill.api.options import TrainOptions
from segdistill.api.runs import machine, read_config
from segdistill.api.train import _new_run
from segdistill.cli import main
from segdistill.engine.trainer import Trainer
from segdistill.methods.supervised import SupervisedConfig


def test_the_machine_names_the_instructions_of_its_kernels(monkeypatch):
    known = f"{platform.system()} {platform.machine()}"
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: {"cpu_name": "A CPU", "avx512_bf16": True, "amx_bf16": True}
    )
    assert machine() == f"{known}, A CPU, amx_bf16"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False})
    assert machine() == f"{known}, {torch.backends.cpu.get_cpu_capability()}"
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # an older torch
    assert machine() == f"{known}, {torch.backends.cpu.get_cpu_capability()}"
    monkeypatch.delitem(sys.modules, "torch")
    assert machine() == known
    assert "torch" not in sys.modules


def test_a_run_that_nothing_would_score_is_refused_before_it_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_set(tmp_path / "A", count=6, size=32)
    assert main(["train", "A", "--size", "32", "--val", "0", "--test", "0", "--onnx", "true", "--out", "run"]) == 2
    assert "no labelled test or validation image, so there would be no scores" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_training_without_foreground_is_refused(tmp_path, capsys):
    """Masks of 0 and 1 with the threshold of 0 and 255."""
    data = make_set(tmp_path / "data", count=8)
    for path in (data / "masks").iterdir():
        Image.fromarray((np.asarray(Image.open(path)) > 0).astype(np.uint8)).save(path)
    words = ["train", str(data), "--classes", "background,disk", "--threshold", "127", "--out", str(tmp_path / "run")]
    assert main(words) == 2
    assert "masks shows any foreground" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_finds_its_cache_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = _new_run([make_set(tmp_path / "A", size=32)], "run", TrainOptions(cache=Path("mine")), SupervisedConfig())
    assert read_config(run)[1].cache == tmp_path.resolve() / "mine"


@pytest.mark.parametrize("sets", [("A",), ("A", "B")])
def test_a_run_that_is_refused_before_its_first_update_leaves_no_trace(sets, tmp_path, monkeypatch, capsys):
    """The method is built when the data are read, after config.yaml was written."""
    monkeypatch.chdir(tmp_path)
    for name in sets:
        make_set(tmp_path / name, count=8, size=32)
    (tmp_path / "mine" / "data").mkdir(parents=True)
    (tmp_path / "mine" / "data" / "notes.txt").write_text("mine", encoding="utf-8")
    words = ["train", *sets, "--method", "kdas", "--size", "32x64", "--cache", "cache", "--kdas.as-released", "true"]
    for out in ("new", "mine"):
        assert main([*words, "--out", out]) == 2
        assert "--kdas.as_released needs 2 classes and a square size" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert [path.name for path in (tmp_path / "mine").rglob("*")] == ["data", "notes.txt"]


@pytest.mark.parametrize(
    "words",
    [
        "--supervised.iterations 0",
        "--supervised.batch-size=-1",
        "--supervised.learning-rate 0",
        "--method kdas --kdas.labelled-batch 0",
        "--method kdas --kdas.other-batch=-1",
    ],
)
def test_numbers_that_nothing_could_train_with_are_refused_at_once(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_set(tmp_path / "A", count=6, size=32)
    assert main(["train", "A", *words.split(), "--out", "run"]) == 2
    option = words.split("--")[-1].replace("=", " ").replace("-size", "_size").replace("-rate", "_rate")
    assert f"--{option.replace('-batch', '_batch')}".split()[0] in (said := capsys.readouterr().err)
    assert "needs a number" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["data/splits.csv", "log.jsonl", "run.json"])
def test_a_file_of_mine_in_the_folder_is_not_written_over(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_set(tmp_path / "A", count=6, size=32)
    mine = tmp_path / "out" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine", encoding="utf-8")
    assert main(["train", "A", "--size", "32", "--iterations", "1", "--out", "out"]) == 2
    assert f"holds {name} already" in capsys.readouterr().err
    assert [path.read_text(encoding="utf-8") for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["mine"]


def test_a_folder_in_which_a_run_begins_is_left_alone(tmp_path, monkeypatch, capsys):
    """Another process reads its data for minutes before it writes its settings."""
    monkeypatch.chdir(tmp_path)
    make_set(tmp_path / "A", count=6, size=32)
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"):
        assert main(["train", "A", "--size", "32", "--iterations", "1", "--out", "run"]) == 2
    assert "another process is training this run" in capsys.readouterr().err
    assert not list((tmp_path / "run" / "data").iterdir())


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_too_little_memory_is_one_line(error, tmp_path, monkeypatch, capsys):
    def raises(self):
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Trainer, "run", raises)
    make_set(tmp_path / "A", count=8, size=32)
    assert main(["train", "A", "--size", "32", "--iterations", "1", "--precision", "32", "--out", "run"]) == 2
    assert "out of memory at --size 32: give a smaller size" in capsys.readouterr().err
