"""The command line as a person uses it: the main job on a tiny set, and bad input of every kind."""

import csv
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from filelock import FileLock
from helpers import make_set
from PIL import Image

from segdistill.cli import main
from segdistill.deploy.measure import Cost

FAST = [
    "--size",
    "32",
    "--iterations",
    "4",
    "--validate-every",
    "2",
    "--supervised.batch-size",
    "2",
    "--precision",
    "32",
]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def run(tiny_set, tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("run")
    words = ["train", str(tiny_set), "--out", str(folder / "first run"), "--cache", str(folder / "cache"), *FAST]
    assert main([*words, "--classes", "background,disk", "--labelled", "50%"]) == 0
    return folder / "first run"


def test_a_run_is_a_folder(run):
    names = {path.name for path in run.iterdir()}
    assert names >= {"config.yaml", "data", "log.jsonl", "checkpoints", "student", "student_last", "report.html"}
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    rows = list(csv.DictReader((run / "scores.csv").open(encoding="utf-8")))
    assert summary["images"] == len(rows) > 0
    assert set(summary["classes"]) == {"disk"}
    assert summary["run"]["scored split"] == "test"
    card = json.loads((run / "student" / "student.json").read_text(encoding="utf-8"))
    assert card["classes"] == ["background", "disk"]
    assert card["scores"]["mean"]["dice"]["mean"] == pytest.approx(summary["mean"]["dice"]["mean"])


def test_the_budget_is_as_asked(run):
    rows = list(csv.DictReader((run / "data" / "splits.csv").open(encoding="utf-8")))
    train = [row for row in rows if row["split"] == "train"]
    labelled, hidden = sum(bool(row["mask"]) for row in train), sum(bool(row["hidden"]) for row in train)
    assert abs(labelled - hidden) <= 1
    assert not [row for row in rows if row["hidden"] and row["split"] != "train"]


def test_the_report_says_what_ran(run):
    text = (run / "report.html").read_text(encoding="utf-8")
    for word in ("disk", "supervised", "seed", "data hash", "torch"):
        assert word in text


def test_config_repeats_the_run(run, tmp_path):
    words = ["train", "--config", str(run / "config.yaml"), "--out", str(tmp_path / "again")]
    assert main(words) == 0
    assert (tmp_path / "again" / "log.jsonl").read_bytes() == (run / "log.jsonl").read_bytes()
    assert (tmp_path / "again" / "scores.csv").read_bytes() == (run / "scores.csv").read_bytes()


def test_another_seed_trains_on_the_same_masks(run, tmp_path, capsys):
    words = ["train", "--config", str(run / "config.yaml"), "--seed", "1", "--split_seed", "0"]
    assert main([*words, "--out", str(tmp_path / "again")]) == 0
    splits = [(folder / "data" / "splits.csv").read_bytes() for folder in (run, tmp_path / "again")]
    assert splits[0] == splits[1]
    assert (tmp_path / "again" / "log.jsonl").read_bytes() != (run / "log.jsonl").read_bytes()
    for seed, drawn_by in ((1, 0), (0, 1)):
        words = ["train", "--config", str(run / "config.yaml"), "--seed", str(seed), "--split_seed", str(drawn_by)]
        assert main([*words, "--baseline", str(run), "--out", str(tmp_path / "refused")]) == 2
        assert "train with --seed 0 --split_seed 0" in " ".join(capsys.readouterr().err.split())


def test_a_training_that_is_refused_leaves_no_folder(tiny_set, tmp_path, capsys):
    assert main(["train", "nowhere"]) == 2
    assert main(["train", str(tiny_set), "--val", "300", "--out", "refused"]) == 2
    assert not (tmp_path / "refused").exists()
    assert not [*tmp_path.rglob("data")]
    capsys.readouterr()


def test_a_choice_is_offered_once(run, tiny_set, capsys):
    assert main(["evaluate", str(run), str(tiny_set), "--metrics", "foo"]) == 2
    assert "--metrics foo: needs one of polyp;" in " ".join(capsys.readouterr().err.split())


def test_resuming_a_finished_run_shows_it(run, capsys):
    assert main(["train", "--resume", str(run)]) == 0
    assert "finished already" in capsys.readouterr().out


def test_two_processes_do_not_train_one_run(run, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "report.html").unlink()
    log = (copy / "log.jsonl").read_bytes()
    with FileLock(copy / ".lock"):
        assert main(["train", "--resume", str(copy)]) == 2
    said = capsys.readouterr()
    assert "another process is training this run" in " ".join((said.out + said.err).split())
    assert not (copy / "report.html").exists()
    assert main(["train", "--resume", str(copy)]) == 0
    assert (copy / "log.jsonl").read_bytes() == log


def test_smaller_files_are_measured_on_the_runs_own_validation_images(run, tiny_set, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("segdistill.deploy.variants.measure", lambda path, threads: Cost(1.0, None))
    # After four updates many pixels lie at p = .5, where any rounding shows; refusals are tested in test_variants
    monkeypatch.setattr("segdistill.deploy.variants.MAX_DROP", 0.05)
    val = sum(row["split"] == "val" for row in csv.DictReader((run / "data" / "splits.csv").open(encoding="utf-8")))
    for words, measured in (
        (["half.onnx", "--precision", "bf16"], f"{val} labelled images"),
        (["half.onnx", "--precision", "bf16", "--data", str(tiny_set)], f"{val} labelled images"),
        (["half.onnx", "--precision", "bf16", "--images", str(tiny_set / "images")], "24 images, Dice against torch's"),
        (["whole.onnx"], "5 synthetic images"),
        (["small.onnx", "--precision", "int8"], f"{val} labelled images"),
    ):
        assert main(["export", str(run), "-o", *words]) == 0
        assert f"measured on {measured}" in capsys.readouterr().out
    sizes = [(tmp_path / f"{name}.onnx").stat().st_size for name in ("whole", "half", "small")]
    assert sizes[1] < 0.6 * sizes[0]
    assert sizes[2] < 0.4 * sizes[0]
    for name in ("half", "small"):
        assert main(["predict", f"{name}.onnx", str(tiny_set / "images"), "-o", name]) == 0
        assert len(list((tmp_path / name).glob("*.png"))) == 24


def test_export_takes_the_threads_that_it_is_given(run, capsys, monkeypatch):
    asked, before = [], torch.get_num_threads()
    monkeypatch.setattr(
        "segdistill.deploy.variants.measure", lambda path, threads: asked.append(threads) or Cost(1, None)
    )
    try:
        assert main(["export", str(run), "-o", "one.onnx", "--threads", "1"]) == 0
        assert (asked, torch.get_num_threads()) == ([1, 1], 1)
    finally:
        torch.set_num_threads(before)
    assert main(["export", str(run), "-o", "none.onnx", "--threads", "0"]) == 2
    assert "--threads 0: needed 1 or more" in capsys.readouterr().err


def test_predict_evaluate_export(run, tiny_set, tmp_path, capsys):
    extras = ["--overlays", "true", "--probabilities", "true"]
    assert main(["predict", str(run), str(tiny_set / "images"), "-o", "out", *extras]) == 0
    masks = sorted(path for path in (tmp_path / "out").glob("*.png") if "overlay" not in path.name)
    assert len(masks) == 24
    assert set(np.unique(np.array(Image.open(masks[0])))) <= {0, 1}
    assert main(["export", str(run), "-o", "s.onnx", "--images", str(tiny_set / "images")]) == 0
    assert main(["predict", "s.onnx", str(tiny_set / "images"), "-o", "onnx"]) == 0
    for path in masks:
        ours, theirs = (np.array(Image.open(folder / path.name)) for folder in (path.parent, tmp_path / "onnx"))
        with np.load(path.with_name(f"{path.stem}_prob.npz")) as stored:
            tie = np.abs(stored["probabilities"][1].astype(np.float32) - 0.5) < 3e-4  # float16
        assert (ours == theirs)[~tie].all()
        assert tie.mean() < 0.1  # so that this says something; four updates leave much near .5
    assert main(["evaluate", str(run), str(tiny_set), "--split", "all", "-o", "scores"]) == 0
    assert main(["evaluate", "out", str(tiny_set), "-o", "masks"]) == 0
    assert main(["evaluate", "out", str(tiny_set / "masks")]) == 0
    ours, theirs = (
        json.loads((tmp_path / name / "summary.json").read_text(encoding="utf-8")) for name in ("scores", "masks")
    )
    assert ours["mean"]["dice"] == theirs["mean"]["dice"]
    assert (tmp_path / "scores" / "report.html").exists()


def test_a_broken_image_is_skipped_and_the_exit_code_says_so(run, tiny_set, tmp_path, capsys):
    good = sorted((tiny_set / "images").iterdir())[0]
    (tmp_path / "broken.png").write_bytes(good.read_bytes()[:100])
    assert main(["predict", str(run), str(good), "broken.png", "-o", "out"]) == 1
    assert "broken.png" in capsys.readouterr().out
    assert (tmp_path / "out" / f"{good.stem}.png").exists()


def test_show_augment(tiny_set, tmp_path):
    assert main(["check", str(tiny_set), "--show-augment", "strong", "-o", "sheet.png", "--size", "64"]) == 0
    assert Image.open(tmp_path / "sheet.png").width > 4 * 64


def test_folders_with_spaces_and_non_ascii_names(tmp_path):
    data = make_set(tmp_path / "Größe 画像", count=9, size=40)
    assert main(["train", str(data), "--out", "größe run", "--cache", "cäche", "--onnx", "true", *FAST]) == 0
    assert (tmp_path / "größe run" / "report.html").exists()
    (tmp_path / "größe run" / "student.onnx").unlink()  # as if the run had been stopped before the export
    assert main(["train", "--resume", "größe run"]) == 0
    image = next((data / "images").iterdir())
    assert main(["predict", "größe run/student.onnx", str(image), "-o", "maßke"]) == 0
    assert (tmp_path / "maßke" / image.with_suffix(".png").name).exists()


@pytest.mark.parametrize("layout", ["knowsam", "manifest"])
def test_other_layouts_train(tmp_path, layout):
    source = make_set(tmp_path / "source", count=12, size=32)
    files = sorted((source / "images").iterdir())
    if layout == "knowsam":
        for i, path in enumerate(files):
            part = tmp_path / "data" / ("labeled", "unlabeled", "val", "test")[i % 4]
            for kind, folder in (("image", "images"), ("mask", "masks")):
                (part / kind).mkdir(parents=True, exist_ok=True)
                (part / kind / path.name).write_bytes((source / folder / path.name).read_bytes())
        data = tmp_path / "data"
    else:
        lines = [f"images/{p.name},masks/{p.name},{('train', 'val', 'test')[i % 3]},p{i}" for i, p in enumerate(files)]
        data = source / "list.csv"
        data.write_text("image,mask,split,patient\n" + "\n".join(lines), encoding="utf-8")
    assert main(["train", str(data), "--out", "run", "--cache", "cache", *FAST]) == 0
    rows = list(csv.DictReader((tmp_path / "run" / "data" / "splits.csv").open(encoding="utf-8")))
    assert {row["split"] for row in rows} == {"train", "val", "test"}


def test_interrupted_and_resumed_is_uninterrupted(tiny_set, run, tmp_path):
    """SIGTERM from outside: exit code 143, a message that says how to go on, then the same result."""
    code = (
        "import sys, time; from segdistill.engine.trainer import Trainer; from segdistill.cli import main\n"
        "slow = Trainer._update\n"
        "def update(self, stage): print('updating', flush=True); time.sleep(0.3); slow(self, stage)\n"
        "Trainer._update = update; sys.exit(main(sys.argv[1:]))"
    )
    words = ["train", str(tiny_set), "--out", "run", "--cache", str(run.parent / "cache"), *FAST]
    words += ["--classes", "background,disk", "--labelled", "50%"]
    command = [sys.executable, "-c", code, *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8"}
    process = subprocess.Popen(command, cwd=tmp_path, **pipes)
    for line in process.stdout:
        if "updating" in line:
            process.terminate()
            break
    _, errors = process.communicate(timeout=60)
    if sys.platform != "win32":  # Windows ends a process without asking it
        assert process.returncode == 143
        assert "--resume run" in errors
        assert "Traceback" not in errors
    assert main(["train", "--resume", "run"]) == 0
    assert (tmp_path / "run" / "log.jsonl").read_bytes() == (run / "log.jsonl").read_bytes()
    assert (tmp_path / "run" / "scores.csv").read_bytes() == (run / "scores.csv").read_bytes()


def test_stopped_while_scoring_goes_on_with_scoring(tiny_set, run, tmp_path, monkeypatch):
    words = ["train", str(tiny_set), "--out", "run", "--cache", str(run.parent / "cache"), *FAST]
    words += ["--classes", "background,disk", "--labelled", "50%"]
    with monkeypatch.context() as patch:
        patch.setattr("segdistill.api.train.write_scores", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(words) == 130
    assert not (tmp_path / "run" / "scores.csv").exists()
    assert main(["train", "--resume", "run"]) == 0
    assert (tmp_path / "run" / "scores.csv").read_bytes() == (run / "scores.csv").read_bytes()


def test_empty_validation_masks_choose_no_weights_and_a_run_says_so(tmp_path, capsys):
    data = make_set(tmp_path / "data", count=9, size=32)
    files = sorted((data / "images").iterdir())
    for path in files[3:6]:
        Image.new("L", (32, 32)).save(data / "masks" / path.name)
    lines = [f"images/{p.name},masks/{p.name},{('train', 'val', 'test')[i // 3]}" for i, p in enumerate(files)]
    (data / "manifest.csv").write_text("image,mask,split\n" + "\n".join(lines), encoding="utf-8")
    assert main(["train", str(data), "--out", "run", "--cache", "cache", *FAST]) == 0
    assert "no validation mask shows any foreground: the last weights" in " ".join(capsys.readouterr().out.split())
    last, best = (
        (tmp_path / "run" / name / "student.safetensors").read_bytes() for name in ("student_last", "student")
    )
    assert last == best


def test_data_that_are_gone_stop_a_resume_and_may_come_back_elsewhere(tmp_path, monkeypatch, capsys):
    data = make_set(tmp_path / "data", count=9, size=32)
    with monkeypatch.context() as patch:
        patch.setattr("segdistill.api.train.write_scores", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(["train", str(data), "--out", "run", "--cache", "cache", *FAST]) == 130
    data.rename(tmp_path / "moved")
    capsys.readouterr()
    assert main(["train", "--resume", "run"]) == 2
    message = capsys.readouterr().err
    place = tmp_path / "run" / "data" / "data.json"
    assert message.count("\n") == 1
    assert "000.png: cannot be found" in message
    assert str(place.relative_to(tmp_path)) in message
    place.write_text(json.dumps(json.loads(place.read_text("utf-8")) | {"root": str(tmp_path / "moved")}), "utf-8")
    assert main(["train", "--resume", "run"]) == 0


def test_changed_data_stop_a_resume(tmp_path, monkeypatch):
    data = make_set(tmp_path / "data", count=9, size=32)
    words = ["train", str(data), "--out", "run", "--cache", "cache", *FAST]
    with monkeypatch.context() as patch:
        patch.setattr("segdistill.api.train.write_scores", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(words) == 130
    Image.new("RGB", (32, 32)).save(data / "images" / "000.png")
    assert main(["train", "--resume", "run"]) == 2


def test_a_broken_image_leaves_no_run_behind(tmp_path, capsys):
    data = make_set(tmp_path / "data", count=9, size=32)
    whole = (data / "images" / "003.png").read_bytes()
    (data / "images" / "003.png").write_bytes(whole[:60])
    words = ["train", str(data), "--out", "run", "--cache", "cache", *FAST]
    assert main(words) == 2
    assert "003.png" in capsys.readouterr().err
    (data / "images" / "003.png").write_bytes(whole)
    assert main(words) == 0


def test_leakage_stops_unless_it_is_allowed(tmp_path, capsys):
    source = make_set(tmp_path / "source", count=9, size=32)
    files = sorted((source / "images").iterdir())
    files[1].write_bytes(files[0].read_bytes())
    lines = [f"images/{p.name},masks/{p.name},{('train', 'val', 'test')[i % 3]}" for i, p in enumerate(files)]
    (source / "manifest.csv").write_text("image,mask,split\n" + "\n".join(lines), encoding="utf-8")
    words = ["train", str(source), "--out", "run", "--cache", "cache", *FAST]
    assert main(words) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "--allow-leakage" in message
    assert "000.png" in message
    assert main([*words, "--allow-leakage", "true"]) == 0
    assert "000.png" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def bad_inputs(tmp_path, data, run):
    """(words, what the message must hold) by name."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.txt").write_text("hello", encoding="utf-8")
    (tmp_path / "zero.png").write_bytes(b"")
    (tmp_path / "bad.yaml").write_text("size: 64\nbogus: 1\n", encoding="utf-8")
    (tmp_path / "broken.yaml").write_text("size: [64\n", encoding="utf-8")
    (tmp_path / "list.csv").write_text("image,mask\nnot_there.png,\n", encoding="utf-8")
    noisy = make_set(tmp_path / "noisy", count=6, size=32)
    for path in (noisy / "masks").iterdir():
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32)).astype(np.uint8)).save(path)
    torn = make_set(tmp_path / "torn", count=8, size=32)
    (torn / "images" / "003.png").write_bytes((torn / "images" / "003.png").read_bytes()[:60])
    other = make_set(tmp_path / "cropped", count=8, size=32)
    for path in (other / "masks").iterdir():
        Image.fromarray(np.array(Image.open(path))[:20]).save(path)
    bare = make_set(tmp_path / "bare", count=6, size=32)
    for path in (bare / "masks").iterdir():
        path.unlink()
    train = ["train", str(data), "--out", "new"]
    (tmp_path / "scored").mkdir()
    shutil.copytree(run / "student", tmp_path / "alone")  # without its run
    shutil.copy(run / "scores.csv", tmp_path / "scored")  # as `evaluate --out scored` leaves it
    return {
        "no verb": (["trian"], "train"),
        "no data": (["train"], "needs a data folder"),
        "data missing": (["train", "nowhere"], "nowhere"),
        "data a text file": (["train", "note.txt"], "note.txt"),
        "empty folder": (["train", "empty"], "images/"),
        "no masks": (["train", "bare", *FAST], "mask"),
        "grey masks": (["train", "noisy", *FAST], "--threshold 127"),
        "torn image": (["train", "torn", "--cache", "c", *FAST], "003.png"),
        "mask of another size": (["train", "cropped", "--cache", "c", *FAST], "another size than their image"),
        "file missing in manifest": (["train", "list.csv"], "not_there.png"),
        "unknown option": ([*train, "--sizee", "64"], "sizee"),
        "unknown method": ([*train, "--method", "sam9"], "supervised"),
        "unknown method option": ([*train, "--supervised.warmth", "1"], "warmth"),
        "unknown student": ([*train, "--supervised.student", "vgg"], "unet"),
        "bad size": ([*train, "--size", "huge"], "--size"),
        "tiny size": ([*train, "--size", "8"], "32"),
        "bad number": ([*train, "--seed", "abc"], "seed"),
        "negative number": ([*train, "--iterations", "0"], "--iterations"),
        "iterations and epochs": ([*train, "--iterations", "9", "--epochs", "2"], "--epochs"),
        "too many labels": ([*train, "--labelled", "9999"], "9999"),
        "garbage labels": ([*train, "--labelled", "some"], "10%"),
        "unknown patients": ([*train, "--labelled", "3patients"], "patient"),
        "wrong class names": ([*train, "--classes", "a,b,c,d"], "class names"),
        "same class twice": ([*train, "--classes", "a,a"], "a"),
        "no gpu": ([*train, "--device", "cuda"], "--device cpu"),
        "bad device": ([*train, "--device", "tpu"], "device"),
        "bad precision": ([*train, "--precision", "8"], "precision"),
        "unknown key in config": ([*train, "--config", "bad.yaml"], "bogus"),
        "broken config": ([*train, "--config", "broken.yaml"], "config"),
        "config missing": ([*train, "--config", "none.yaml"], "none.yaml"),
        "run exists": (["train", str(data), "--out", str(run)], "--resume"),
        "scores exist": (["train", str(data), "--out", "scored", "--cache", "c", *FAST], "holds scores.csv"),
        "resume nothing": (["train", "--resume", "empty"], "config.yaml"),
        "resume with options": (["train", "--resume", str(run), "--seed", "3"], "--resume"),
        "student missing": (["predict", "nowhere", str(data), "-o", "o"], "nowhere"),
        "student a text file": (["predict", "note.txt", str(data), "-o", "o"], "note.txt"),
        "images missing": (["predict", str(run), "nowhere*", "-o", "o"], "nowhere"),
        "no out": (["predict", str(run), str(data)], "out"),
        "export to png": (["export", str(run), "-o", "s.png"], ".onnx"),
        "int8 of nothing": (["export", "alone", "-o", "s.onnx", "--precision", "int8"], "--data"),
        "xml without its format": (["export", str(run), "-o", "s.xml"], "--format"),
        "no such split": (["evaluate", "alone", str(data), "--split", "val"], "split"),
        "masks do not match": (["evaluate", "empty", str(data)], "no mask"),
        "unknown preset": (["check", str(data), "--show-augment", "wild"], "weak"),
        "no picture": (["check", str(data), "--show-augment", "weak", "--images", "0"], "--images 0"),
        "no SAM": ([*train, "--method", "knowsam", "--knowsam.teacher", "sam_vit_b_01ec64.pth"], "fetch https"),
        "no SAM beside": ([*train, "--method", "unimatch", "--unimatch.sam", "huge"], "tiny, small"),
        "demo into a file": (["demo", "--out", "note.txt"], "is a file"),
        "no teacher": ([*train, "--method", "kdas", "--kdas.teacher", "nowhere"], "nowhere"),
        "no backbone": ([*train, "--method", "kdas", "--kdas.backbone-weights", "b0.pth"], "b0.pth"),
    }


NAMES = [
    "no verb", "no data", "data missing", "data a text file", "empty folder", "no masks", "grey masks", "torn image",
    "mask of another size", "file missing in manifest", "unknown option", "unknown method", "unknown method option",
    "unknown student", "bad size", "tiny size", "bad number", "negative number", "iterations and epochs",
    "too many labels", "garbage labels", "unknown patients", "wrong class names", "same class twice", "no gpu",
    "bad device", "bad precision", "unknown key in config", "broken config", "config missing", "run exists",
    "resume nothing", "resume with options", "student missing", "student a text file", "images missing", "no out",
    "export to png", "int8 of nothing", "xml without its format", "no such split", "masks do not match",
    "unknown preset", "demo into a file", "scores exist", "no picture",
    "no SAM", "no SAM beside", "no teacher", "no backbone",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_bad_input_is_one_line(name, tmp_path, tiny_set, run, capsys):
    if name == "no gpu" and torch.cuda.is_available():
        return
    cases = bad_inputs(tmp_path, tiny_set, run)
    assert cases.keys() == set(NAMES)
    words, expected = cases[name]
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert main(words) == 2
    message = capsys.readouterr().err
    assert message.startswith("segdistill: ")
    assert message.count("\n") == 1
    assert expected in message
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_demo_replaces_only_what_a_demo_wrote(tmp_path, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("segdistill.api.demo.train", stop)
    (tmp_path / "work" / "phantom").mkdir(parents=True)
    (tmp_path / "work" / "phantom" / "scan.png").write_bytes(b"one's own")
    assert main(["demo", "--out", "work"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert [path.name for path in (tmp_path / "work").rglob("*")] == ["phantom", "scan.png"]
    assert main(["demo", "--out", "demo"]) == 130
    for name in ("my run", "knowsam"):
        (tmp_path / "demo" / name).mkdir()
    assert main(["demo", "--out", "demo", "--iterations", "0"]) == 2
    assert (tmp_path / "demo" / "knowsam").is_dir()
    assert main(["demo", "--out", "demo"]) == 130
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {"demo.txt", "phantom", "my run"}


def test_what_the_system_refuses_is_one_line(monkeypatch, capsys):
    def refused(student: str, images: list[str], out: str):
        raise PermissionError(13, "Permission denied", "some\nwhere")

    monkeypatch.setattr("segdistill.api.use.predict", refused)
    assert main(["predict", "student", "images", "-o", "out"]) == 2
    said = "some\\nwhere: Permission denied; check path, permission and free space"
    assert capsys.readouterr().err == f"segdistill: {said}\n"


def test_an_output_whose_code_page_lacks_a_name(tmp_path):
    make_set(tmp_path / "数据", count=4, size=32)
    done = subprocess.run(
        [sys.executable, "-m", "segdistill", "check", "数据"],
        capture_output=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONIOENCODING": "cp1252"},
    )
    assert done.returncode == 0, done.stderr
    assert rb"\u6570\u636e" in done.stdout


def test_no_traceback_from_the_shell(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "segdistill", "train", "nowhere"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "nowhere" in done.stderr


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help(words, capsys):
    assert main(words) == 0
    assert "train" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["demo", "train", "evaluate", "compare", "predict", "export", "convert", "check"])
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    assert "usage: segdistill " + verb in capsys.readouterr().out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip()[0].isdigit()
