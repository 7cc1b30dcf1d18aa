"""On a cluster of two processes the same files come out as on one machine."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bright import write_bright
from PIL import Image

from segdistill.deploy import on_ray
from segdistill.deploy.on_ray import ray_engine
from segdistill.deploy.predict import predict_files
from segdistill.deploy.predicted import PREDICTED
from segdistill.deploy.predictor import open_predictor
from segdistill.deploy.stages import Extras
from segdistill.types import UserError

ALL = Extras(probabilities=True, overlays=True)


@pytest.fixture(scope="module")
def two_processes() -> Iterator[str]:
    """The address of a cluster that is started here, so that the engine finds it."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    yield ray.init(address="local", num_cpus=2, **quiet).address_info["address"]
    ray.shutdown()


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_ray, "BLOCK", 2)


@pytest.fixture
def images(tmp_path: Path, image) -> Path:
    """Seven images, one in a subfolder and one broken: four blocks."""
    root = tmp_path / "Bilder ä"
    (root / "sub").mkdir(parents=True)
    for seed, name in enumerate(("a.png", "b.png", "c.jpg", "e.png", "f.png", "sub/a.png")):
        Image.fromarray(image(30 + seed, 50, seed)).save(root / name)
    (root / "d.jpg").write_bytes((root / "c.jpg").read_bytes()[:200])
    return root


def files(out: Path) -> dict[str, bytes]:
    """But for predicted.jsonl, whose lines come in any order."""
    found = {file.relative_to(out).as_posix(): file.read_bytes() for file in out.rglob("*") if file.is_file()}
    assert found.pop(PREDICTED)
    return found


@pytest.mark.usefixtures("two_processes")
def test_the_same_files_as_on_one_machine(images, tmp_path, monkeypatch):
    """Also from relative paths, and of a student that routes."""
    student = write_bright(tmp_path / "student.onnx", routes=True)
    predictor, seen = open_predictor(student, threads=1), []
    here = predict_files(predictor, [images], tmp_path / "here", ALL)
    assert (here.written, here.skipped, [path.name for path, _ in here.failed]) == (6, 0, ["d.jpg"])
    monkeypatch.chdir(tmp_path)
    there = predict_files(
        predictor,
        [images.name],
        Path("there"),
        ALL,
        engine=ray_engine(Path("student.onnx")),
        on_progress=lambda *step: seen.append(step),
    )
    assert there[:2] == here[:2]
    assert there.unsure == here.unsure
    assert [path for path, _ in there.failed] == [Path(images.name, "d.jpg")]
    assert files(tmp_path / "there") == files(tmp_path / "here")
    assert [(done, total) for done, total, _ in seen] == [(n, 7) for n in range(1, 8)]
    assert len({path for _, _, path in seen}) == 7

    (tmp_path / "there" / "b.png").unlink()
    (tmp_path / "there" / "areas.csv").unlink()
    again = predict_files(predictor, [images], tmp_path / "there", ALL, engine=ray_engine(student))
    assert again[:2] == (1, 5)
    assert files(tmp_path / "there") == files(tmp_path / "here")


@pytest.mark.usefixtures("two_processes")
def test_what_stops_a_run_is_one_line(images, tmp_path):
    student = write_bright(tmp_path / "student.onnx")
    predictor = open_predictor(student, threads=1)
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(UserError, match="choose another folder") as error:
        predict_files(predictor, [images], tmp_path / "file", engine=ray_engine(student))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="does not exist"):
        predict_files(predictor, [images], tmp_path / "out", engine=ray_engine(tmp_path / "elsewhere.onnx"))
    with pytest.raises(UserError, match="an actor needs 3 CPU, and the cluster has 2 CPU"):
        predict_files(predictor, [images], tmp_path / "out", engine=ray_engine(student, threads=3))
    with pytest.raises(UserError, match="an actor needs 1 CPU, 1 GPU"):
        predict_files(predictor, [images], tmp_path / "out", engine=ray_engine(student, "cuda"))


def test_the_terminal_stays_readable(two_processes, images, tmp_path):
    """In a process of its own, which finds the cluster by its address: some of Ray's lines come once."""
    write_bright(tmp_path / "student.onnx")
    settings = os.environ | {"COLUMNS": "1000", "RAY_ADDRESS": two_processes}  # no line is broken
    said = []
    for engine in ("local", "ray"):
        words = ["predict", "student.onnx", images.name, "-o", "out", "--overwrite", "true", "--engine", engine]
        command = [sys.executable, "-m", "segdistill", *words]
        done = subprocess.run(
            command, cwd=tmp_path, env=settings, capture_output=True, text=True, encoding="utf-8", timeout=300
        )
        assert done.returncode == 1, done.stderr  # one image is broken
        lines = done.stderr.splitlines()
        assert [line for line in lines if "core_worker.cc" not in line] == []  # its C++ part writes past Python
        assert len(lines) <= 1
        said.append(done.stdout.replace(f"{tmp_path}{os.sep}", ""))
    assert "6 written, 0 there already, 1 unreadable" in said[0]
    assert said[1] == said[0]


def test_no_cluster_is_one_line(tmp_path, image, monkeypatch):
    student = write_bright(tmp_path / "student.onnx")
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "a.png")
    monkeypatch.setattr(on_ray, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install segdistill\[ray\]"):
        ray_engine(student)
