"""`segdistill serve` as a process: from an ONNX file without torch, until a signal; and what keeps it from starting."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from segdistill.api import serve as api
from segdistill.cli import main
from segdistill.deploy.artefact import save_student
from segdistill.deploy.export import export_onnx
from segdistill.deploy.predict import predict_files
from segdistill.deploy.predictor import open_predictor

from .conftest import Client, encoded

RUN = """
import atexit, sys
from segdistill.cli import main
atexit.register(lambda: print("torch" in sys.modules, flush=True))
sys.exit(main(["serve", sys.argv[1], "--port", "0", "--threads", "1"]))
"""


@pytest.fixture
def file(folder: Path) -> Path:
    export_onnx(folder, folder.parent / "schüler 1.onnx")
    return folder.parent / "schüler 1.onnx"


def test_it_serves_without_torch_until_a_signal(file, image, tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(image(50, 40)))
    predict_files(open_predictor(file), [tmp_path / "a.png"], tmp_path / "out")
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    try:
        first = process.stdout.readline()
        client = Client(int(re.search(r"http://127\.0\.0\.1:(\d+)/ \(Ctrl-C stops\)", first)[1]))
        assert client.post("/mask", (tmp_path / "a.png").read_bytes()).body == (tmp_path / "out/a.png").read_bytes()
        if sys.platform == "win32":  # which ends a process without asking it
            return
        process.send_signal(signal.SIGTERM)
        out, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, out.split(), errors) == (0, ["stopped", "False"], "")


SLOW = """
import sys, time
from segdistill.cli import main
from segdistill.deploy.serve import app
app.predict_upload = lambda *given: time.sleep(120)
sys.exit(main(["serve", sys.argv[1], "--port", "0", "--threads", "1", "--max-seconds", "1"]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="it ends a process without asking it")
def test_a_job_that_nobody_hears_keeps_it_from_no_end(file, image):
    """Two minutes of it; its client was told after one second that it takes too long."""
    words = [sys.executable, "-c", SLOW, str(file)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, encoding="utf-8")
    try:
        client = Client(int(re.search(r":(\d+)/ ", process.stdout.readline())[1]))
        assert client.post("/mask", encoded(image(50, 40))).status == 504
        process.send_signal(signal.SIGTERM)
        out, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out.split(), errors) == (0, ["stopped"], "")


def refused(capsys, *words: str) -> str:
    """The one line with which serve ends before it began."""
    assert main(["serve", *words]) == 2
    out, errors = capsys.readouterr()
    assert out == ""
    assert errors.startswith("segdistill: ")
    assert errors.count("\n") == 1
    return errors


def test_other_hosts_need_a_token(file, capsys, monkeypatch):
    monkeypatch.delenv("SEGDISTILL_TOKEN", raising=False)
    assert "give --token" in refused(capsys, str(file), "--host", "0.0.0.0")
    assert "secrets.token_urlsafe" in refused(capsys, str(file), "--host", "0.0.0.0", "--token", "short")


def test_a_taken_port_and_a_foreign_address(file, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "choose another --host or --port" in refused(capsys, str(file), "--port", str(taken.getsockname()[1]))
    assert "cannot listen on 192.0.2.1" in refused(capsys, str(file), "--host", "192.0.2.1", "--token", "x" * 16)
    assert "cannot listen" in refused(capsys, str(file), "--port", "70000")


def test_what_is_no_student_and_what_needs_volumes(card, network, tmp_path, capsys):
    assert "does not exist" in refused(capsys, str(tmp_path / "none"))
    volumes = card(neighbours=1)
    save_student(tmp_path / "s", network(volumes), volumes)
    assert "neighbouring slices" in refused(capsys, str(tmp_path / "s"))


def test_without_the_extra_it_says_what_to_install(file, capsys, monkeypatch):
    find_spec = api.find_spec
    monkeypatch.setattr(api, "find_spec", lambda name: None if name in ("uvicorn", "fastapi") else find_spec(name))
    said = refused(capsys, str(file))
    assert "serve needs fastapi, uvicorn; install with: pip install segdistill[serve]" in said
