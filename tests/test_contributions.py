"""What a method may add to its run: other students, remarks, watched predictions; oracle: evaluate on the artefacts."""

import csv
import json
import re
from dataclasses import replace

import pytest
import torch
from helpers import make_set
from test_cli import FAST

from segdistill.api.contributions import better_beside
from segdistill.cli import main
from segdistill.deploy.artefact import load_student
from segdistill.methods import METHODS
from segdistill.methods.supervised import Supervised
from segdistill.models.students import build_student
from segdistill.types import Remarks, Task


class Talking(Supervised):
    """Trains a V-Net beside the student and talks about both."""

    def __init__(self, config, task):
        super().__init__(config, task)
        self.vnet = build_student("vnet", classes=task.classes)

    @property
    def students(self):
        return {"vnet": self.vnet}

    def stages(self):
        (stage,) = super().stages()

        def step(batch, progress):
            output = stage.step(batch, progress)
            other = self.vnet(batch.image).square().mean()
            return output._replace(loss=output.loss + other, terms=output.terms | {"other": other})

        def watched(image, modality):
            return {"vnet": self.vnet(image)}

        more = torch.optim.SGD(self.vnet.parameters(), 1e-2)
        return [replace(stage, step=step, watched=watched, optimizers=[*stage.optimizers, more])]

    def remarks(self, log, batch):
        assert not self.training
        assert not batch.mask[~batch.labelled].any()
        seen = sum("watched" in line for line in log)
        rows = f"{int(batch.labelled.sum())} labelled rows of {len(batch.labelled)}, {seen} validations"
        picture = (batch.image[0].permute(1, 2, 0) * 255).round().byte().numpy()
        return Remarks((rows, "the <b> is not bold"), (("the first row", picture),))


@pytest.fixture(scope="module")
def talked(tiny_set, tmp_path_factory):
    """A finished run of such a method."""
    folder = tmp_path_factory.mktemp("talked")
    words = ["train", str(tiny_set), "--out", str(folder / "run"), "--cache", str(folder / "cache")]
    fast = [word.replace("supervised", "talking") for word in FAST]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, "talking", Talking)
        assert main([*words, "--method", "talking", "--labelled", "50%", *fast]) == 0
    return folder / "run"


def summary(folder):
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def test_another_student_is_shipped_and_scored_as_the_first(talked, tiny_set, tmp_path):
    (name, scores), *others = summary(talked)["students"].items()
    assert (name, others) == ("vnet", [])
    card = load_student(talked / "students" / "vnet").card
    assert (card.name, card.classes) == ("vnet", load_student(talked / "student").card.classes)
    assert {k: card.scores["mean"]["dice"][k] for k in ("mean", "low", "high")} == scores["dice"]
    assert scores["parameters"] == sum(p.numel() for p in build_student("vnet", classes=2).parameters())
    rows = csv.DictReader((talked / "data" / "splits.csv").open(encoding="utf-8"))
    tested = [f"{tiny_set / row['image']},{tiny_set / row['mask']}" for row in rows if row["split"] == "test"]
    (tmp_path / "test.csv").write_text("\n".join(["image,mask", *tested]), encoding="utf-8")
    words = ["evaluate", str(talked / "students" / "vnet"), str(tmp_path / "test.csv"), "-o", str(tmp_path / "s")]
    assert main(words) == 0
    mean = summary(tmp_path / "s")["mean"]
    for metric in ("dice", "hd95"):
        assert {k: mean[metric][k] for k in ("mean", "low", "high")} == scores[metric]


def test_another_student_exports(talked, tmp_path):
    assert main(["export", str(talked / "students" / "vnet"), "-o", str(tmp_path / "vnet.onnx")]) == 0


def test_the_log_has_what_was_watched_and_hidden(talked):
    lines = [json.loads(line) for line in (talked / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    validated = [line for line in lines if "validation" in line]
    assert [line["iteration"] for line in validated] == [2, 4]
    for line in validated:
        assert line["watched"].keys() == {"vnet"}
        assert line["hidden"].keys() == {"student", "vnet"}
        assert all(0 <= value <= 1 for value in (*line["watched"].values(), *line["hidden"].values()))


def test_the_report_shows_it_all(talked):
    text = (talked / "report.html").read_text(encoding="utf-8")
    plain = " ".join(re.sub(r"<[^>]*>", " ", text).split())
    for phrase in (
        "4 labelled rows of 8, 2 validations",
        "the &lt;b&gt; is not bold",
        "the first row",
        "What else this run trained",
        "Dice on training images whose masks the budget hides",
    ):
        assert phrase in plain, phrase


class Pair(torch.nn.Module):
    """A V-Net of 3.3 M parameters; beside it a U-Net of 1.9 M and a Polyp-PVT that is larger than both."""

    def __init__(self):
        super().__init__()
        self.student = build_student("vnet", classes=2)
        self.students = {"unet": build_student("unet", classes=2), "pvt": build_student("polyp_pvt", classes=2)}


def entry(stage, dice, **watched):
    return {"stage": stage, "iteration": 1, "validation": {"dice": dice}, "watched": watched}


def test_what_should_ship_instead_is_said():
    """Read where validation chose the weights, so in the best entry of the last stage, from students no larger."""
    first = entry("first", 0.9, unet=0.95)
    chosen, later = entry("last", 0.6, unet=0.625, pvt=0.7, sam=0.8), entry("last", 0.5, unet=0.99)
    (said,) = better_beside(Pair(), [first, chosen, later, {"stage": "last", "iteration": 9, "terms": {}}])
    assert said.startswith("students/unet may be the better one to ship: validation Dice 0.625, 1,944,322 parameters;")
    assert said.endswith("student/ has 0.600, 3,265,986.")
    assert not [*better_beside(Pair(), [chosen, entry("last", 0.65, unet=0.65, pvt=0.7), later])]
    assert not [*better_beside(Pair(), [])]
    assert not [*better_beside(Supervised(Supervised.Config(), Task(2, (32, 32), ("",), 8, 0)), [entry("last", 0.5)])]


def test_all_of_it_over_several_sets(tmp_path, monkeypatch, capsys):
    """Each student is scored by each set's own masks; what is watched is a mean over modalities, as the scored one."""
    monkeypatch.setitem(METHODS, "talking", Talking)
    monkeypatch.setattr("segdistill.api.train.better_beside", lambda method, log: [f"ship the other ({len(log)})"])
    folders = [make_set(tmp_path / name, count=12, size=40, seed=i) for i, name in enumerate("AB")]
    words = ["train", *map(str, folders), "--out", str(tmp_path / "run"), "--cache", str(tmp_path / "cache")]
    fast = [word.replace("supervised", "talking") for word in FAST]
    assert main([*words, "--method", "talking", "--labelled", "4", *fast]) == 0
    assert "ship the other (6)" in capsys.readouterr().out
    assert "ship the other (6)" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    words = ["evaluate", str(tmp_path / "run" / "students" / "vnet"), "--out", str(tmp_path / "scores")]
    tested = []
    for folder in folders:
        splits = tmp_path / "run" / "data" / "sets" / folder.name / "splits.csv"
        rows = list(csv.DictReader(splits.open(encoding="utf-8")))
        lines = [f"{folder / row['image']},{folder / row['mask']},{row['split']}" for row in rows if row["mask"]]
        tested.append(tmp_path / f"{folder.name}.csv")
        tested[-1].write_text("\n".join(["image,mask,split", *lines]), encoding="utf-8")
    assert main([*words[:2], *map(str, tested), *words[2:]]) == 0
    mean = summary(tmp_path / "scores")["mean"]["dice"]["mean"]
    assert summary(tmp_path / "run")["students"]["vnet"]["dice"]["mean"] == mean
    log = (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    validated = [line for line in map(json.loads, log) if "validation" in line]
    assert all({"dice@A", "dice@B"} <= line["validation"].keys() for line in validated)
    assert all(line["hidden"].keys() == {"student", "vnet"} for line in validated)
    assert "4 labelled rows of 8, 2 validations" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
