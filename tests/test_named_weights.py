"""A run goes on with the teacher that it began with, or says that it cannot."""

import hashlib
from dataclasses import dataclass

import pytest
from helpers import make_set

from segdistill.api.named_weights import ENTRY, named_weights, require_same_weights
from segdistill.api.options import TrainOptions
from segdistill.api.runs import write_json
from segdistill.api.train import _new_run, resume
from segdistill.methods.kdas import KDASConfig
from segdistill.types import UserError


@dataclass(frozen=True)
class Config:
    teacher: str = "tiny"
    init: str = ""
    weight: float = 1.0


@pytest.fixture
def config(tmp_path):
    """Of a teacher that is a run, and a file."""
    for name in ("run/student/student.safetensors", "run/student_last/student.safetensors", "mobile_sam.pt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return Config(str(tmp_path / "run"), str(tmp_path / "mobile_sam.pt"))


def test_the_weights_that_settings_name_are_known_by_their_hash(config, tmp_path):
    wanted = {"teacher": b"run/student/student.safetensors", "init": b"mobile_sam.pt"}
    assert named_weights(config) == {name: hashlib.sha256(content).hexdigest() for name, content in wanted.items()}
    assert named_weights(Config()) == named_weights(Config(init=str(tmp_path / "gone.pt"))) == {}
    for part in ("model-1.safetensors", "model-2.safetensors"):
        (tmp_path / "hub").mkdir(exist_ok=True)
        (tmp_path / "hub" / part).write_bytes(part.encode())
    first = named_weights(Config(str(tmp_path / "hub")))
    (tmp_path / "hub" / "model-2.safetensors").write_bytes(b"other")
    assert named_weights(Config(str(tmp_path / "hub"))) != first


def test_a_run_does_not_go_on_with_another_teacher(config, tmp_path):
    write_json(tmp_path / "run.json", {ENTRY: named_weights(config)})
    require_same_weights(tmp_path, config)
    (tmp_path / "run" / "student" / "student.safetensors").write_bytes(b"trained again")
    with pytest.raises(UserError, match=r"run: other weights \(teacher, sha256 .* start a new run"):
        require_same_weights(tmp_path, config)
    write_json(tmp_path / "run.json", {})
    require_same_weights(tmp_path, config)  # an older run


def test_resume_looks_at_the_teacher(config, tmp_path):
    data, teacher = make_set(tmp_path / "disks"), tmp_path / "teacher.pth"
    teacher.write_bytes(b"first")
    settings = KDASConfig(teacher=str(teacher))
    run = _new_run([data], tmp_path / "taught", TrainOptions(method="kdas", size=32), settings)
    teacher.write_bytes(b"second")
    with pytest.raises(UserError, match=r"other weights \(teacher"):
        resume(run)
