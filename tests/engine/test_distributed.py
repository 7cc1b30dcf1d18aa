"""Two gloo processes on the CPU, started as torchrun would; oracle: one process with the same global batch."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import make_set
from toy import Plain
from two_processes import Bright, dark, trained, validation_set

from segdistill.engine import checkpoint
from segdistill.engine.plan import planned
from segdistill.engine.processes import Processes
from segdistill.engine.settings import Settings
from segdistill.engine.validation import validate
from segdistill.methods import METHODS
from segdistill.types import UserError

TESTS = Path(__file__).parents[1]
PACKAGE = TESTS.parent / "src"


class Pair:
    """Two processes of one command; `output` holds what both said."""

    def __init__(self, folder, *command):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "t"}
        paths = os.pathsep.join([str(PACKAGE), str(TESTS)])
        shared |= {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
        self.path = folder / f"output-{port}.txt"
        with self.path.open("wb") as file:
            self.members = [
                subprocess.Popen(
                    [sys.executable, *map(str, command)],
                    env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
                for rank in range(2)
            ]

    def wait(self):
        """Both exit codes; a process that hangs is killed and fails the test."""
        try:
            return [member.wait(300) for member in self.members]
        finally:
            for member in self.members:
                member.kill()

    @property
    def output(self):
        return self.path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    """Started here, looked at later: a folder without masks."""
    folder = tmp_path_factory.mktemp("refused")
    data = make_set(folder / "data", count=4, unlabelled=4)
    return Pair(folder, "-m", "segdistill", "train", data, "--devices", "2", "--out", folder / "run")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, refused):
    """What two processes left."""
    folder = tmp_path_factory.mktemp("pair")
    pair = Pair(folder, TESTS / "two_processes.py", folder)
    assert pair.wait() == [0, 0], pair.output
    return folder


@pytest.mark.parametrize("name", [*METHODS, "toy"])
def test_both_hold_the_same(folder, name):
    """Weights, buffers and averages, although the second one began with others and each saw images of its own."""
    one, two = (json.loads((folder / f"{name}-{rank}.json").read_text(encoding="utf-8")) for rank in range(2))
    assert one.keys() == two.keys()
    assert [key for key in one if one[key] != two[key]] == []
    assert len({tuple(key.split("-")[:2]) for key in one}) >= 4  # updates; several stages share the four, rounded
    assert any("running_mean" in key for key in one)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_same_losses_as_one_process_with_the_global_batch(folder, tmp_path, accumulate):
    settings = Settings(device="cpu", precision="32", accumulate=accumulate)
    trained("plain", tmp_path / "one", settings, Processes(), Plain(batch=(4, 2)))
    two, one = (losses(path / "log.jsonl") for path in (folder / f"plain{accumulate}", tmp_path / "one"))
    assert len(one) == 10
    for mine, theirs in zip(two, one, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)
    assert one[0]["loss"] - one[-1]["loss"] > 0.1


def losses(log):
    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [{"loss": e["loss"], "lr": e["lr"], "iteration": e["iteration"], **e["terms"]} for e in entries]


def test_validation_is_that_of_one_process(folder):
    alone = validate(Bright(), validation_set(), torch.device("cpu"), watched=dark)
    for rank in range(2):
        assert json.loads((folder / f"scores-{rank}.json").read_text(encoding="utf-8")) == [*alone]
    assert 0.5 < alone.scores["dice"] < 1
    assert alone.watched.keys() == {"dark"}
    assert alone.hidden.keys() == {"student", "dark"}
    assert alone.hidden["dark"] < 0.3 < 0.5 < alone.hidden["student"]


def test_a_loss_that_is_not_finite_on_one_ends_both(folder):
    said = [(folder / f"nan-{rank}.txt").read_text(encoding="utf-8") for rank in range(2)]
    assert said[0].startswith("UserError plain, iteration 1: the loss is not finite")
    assert said[1] == "SystemExit 2"


def test_a_signal_to_one_stops_both_with_a_checkpoint(folder):
    said = [(folder / f"stop-{rank}.txt").read_text(encoding="utf-8") for rank in range(2)]
    assert said[0].startswith("Interrupted stopped by SIGTERM; continue with: segdistill train --resume")
    assert said[1] == f"SystemExit {128 + signal.SIGTERM}"
    assert saved(folder / "stop") == 3


def test_an_epoch_counts_the_images_of_all():
    stages = Plain(batch=(3, 0)).stages()
    assert [planned(stages, Settings(epochs=100), (6, 4), world)[0].iterations for world in (1, 2)] == [200, 100]


def test_unusable_data_end_both_with_one_message(refused):
    assert refused.wait() == [2, 2]
    assert refused.output.count("no image has a mask") == 1
    assert "Traceback" not in refused.output


@pytest.fixture(scope="module")
def life(tmp_path_factory):
    """A run that loses a process and is finished by one command; (exit codes, output, iteration saved) of each part."""
    base = tmp_path_factory.mktemp("life")
    data, run = make_set(base / "data", count=12, size=32), base / "run"
    options = ["--size", "32", "--iterations", "12", "--validate-every", "2", "--precision", "32", "--devices", "2"]
    options += ["--supervised.batch-size", "2", "--cache", base / "cache"]
    pair = Pair(base, "-m", "segdistill", "train", data, "--out", run, *options)
    _wait_for_a_checkpoint(run, pair)
    pair.members[1].kill()
    cut = (pair.wait(), pair.output, saved(run))
    command = [sys.executable, "-m", "segdistill", "train", "--resume", str(run)]
    environment = os.environ | {"PYTHONPATH": str(PACKAGE), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=240)
    return run, cut, ([done.returncode], done.stdout + done.stderr, saved(run))


def _wait_for_a_checkpoint(run, pair):
    deadline = time.monotonic() + 240
    while not saved(run) and pair.members[0].poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)


def saved(run):
    files = checkpoint.checkpoints(run / "checkpoints")
    return checkpoint.peek(files[-1]).iteration if files else 0


def test_a_killed_process_ends_the_other_with_a_checkpoint(life):
    _, (codes, output, iteration), _ = life
    assert codes == [1, -signal.SIGKILL]
    assert output.count("another process ended or cannot be reached; continue with: segdistill train --resume") == 1
    assert 2 <= iteration < 12
    assert "Traceback" not in output


def test_one_command_goes_on_and_finishes(life):
    run, _, (codes, output, _) = life
    assert codes == [0], output
    assert output.count("report: ") == 1
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [entry["iteration"] for entry in entries if "terms" in entry] == list(range(1, 13))
    assert [entry["iteration"] for entry in entries if "validation" in entry] == list(range(2, 13, 2))
    assert "training seconds" in json.loads((run / "run.json").read_text(encoding="utf-8"))


# fmt: off
STARTED = {
    "torchrun": {"TORCHELASTIC_RUN_ID": "t", "WORLD_SIZE": "4", "RANK": "{rank}", "LOCAL_RANK": "{rank}"},
    "srun": {"SLURM_NTASKS": "4", "SLURM_PROCID": "{rank}", "SLURM_LOCALID": "{rank}", "SLURM_JOB_NAME": "train",
             "SLURM_NTASKS_PER_NODE": "4"},
}
# fmt: on


@pytest.mark.parametrize("launcher", STARTED)
def test_another_number_of_processes_is_one_message(monkeypatch, launcher):
    for rank, outcome in ((0, UserError), (3, SystemExit)):
        for name, value in STARTED[launcher].items():
            monkeypatch.setenv(name, value.format(rank=rank))
        with pytest.raises(outcome, match=r"4 processes were started" if rank == 0 else "2"), Processes(devices=2):
            pass


def test_several_hosts_need_a_launcher(tmp_path):
    with Processes(nodes=2) as processes, pytest.raises(UserError, match=r"--nodes 2: .*torchrun"):
        processes.launch(tmp_path)


def test_an_error_that_is_no_lost_process_stays_as_it_is():
    processes = Processes()
    processes.world = 2
    assert processes.lost(RuntimeError("shapes differ")) is None
    assert processes.lost(RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer")) is not None
