from __future__ import annotations

import hashlib
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from segdistill.deploy.artefact import load_student, save_student
from segdistill.types import UserError


def edit(folder: Path, **changes: object) -> None:
    path = folder / "student.json"
    values = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v != "removed"}), encoding="utf-8")


def contents(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.iterdir()}


def test_a_saved_student_comes_back_bit_for_bit(card, network, image, tmp_path):
    c = card(4, scores={"mean": None}, modalities=("endoscopy",), fit="pad", postprocess="largest", threshold=0.3)
    original = network(c)
    save_student(tmp_path / "runs" / "größe 1", original, c)
    state = torch.get_rng_state()
    student = load_student(tmp_path / "runs" / "größe 1")
    assert torch.equal(state, torch.get_rng_state())
    assert student.card == c
    assert not student.training
    assert original.state_dict().keys() == student.network.state_dict().keys()
    for key, value in original.state_dict().items():
        assert torch.equal(value, student.network.state_dict()[key])
    assert [f.name for f in (tmp_path / "runs").iterdir()] == ["größe 1"]


def test_no_pickle_is_written_or_read(folder, card, network, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("pickle was used")

    for name in ("load", "loads", "dump", "dumps", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(torch, "save", refuse)
    save_student(folder, network(card()), card())
    load_student(folder)
    assert {f.name for f in folder.iterdir()} == {"student.safetensors", "student.json", "README.md"}


def test_a_pickle_in_the_place_of_the_weights_is_not_run(folder, tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    bomb = pickle.dumps(Bomb())
    (folder / "student.safetensors").write_bytes(bomb)
    edit(folder, weights_sha256=hashlib.sha256(bomb).hexdigest())
    with pytest.raises(UserError, match="not a safetensors file"):
        load_student(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format version 2, needed 1"),
        ({"size": "removed"}, "size missing"),
        ({"size": [32]}, "size"),
        ({"size": None}, "student.json"),
        ({"threshold": 1.5}, "threshold 1.5"),
        ({"threshold": "high"}, "student.json"),
        ({"fit": "crop"}, "crop"),
        ({"classes": ["background"]}, "1 classes and 2 colours"),
        ({"colours": [[0, 0], [1, 1]]}, "student.json"),
        ({"colours": [[0, 0, 0], [300, 0, 0]]}, "each 0 to 255"),
        ({"colours": [[0, 0, 0], [0, -1, 0]]}, "each 0 to 255"),
        ({"arguments": {"classes": 3}}, "weights are not of this 'micro'"),
        ({"arguments": {"depth": 3}}, "no 'micro' can be built"),
        ({"name": "vgg"}, "student 'vgg' does not exist"),
        ({"weights_sha256": "00"}, "truncated or not the file"),
        ({"weights_sha256": "removed"}, "weights_sha256"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_card_that_is_wrong_is_one_line(folder, change, message):
    edit(folder, **change)
    with pytest.raises(UserError, match=message) as error:
        load_student(folder)
    assert "\n" not in str(error.value)


def test_damaged_files_are_one_line(folder, tmp_path):
    weights = folder / "student.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-7])
    with pytest.raises(UserError, match="truncated"):
        load_student(folder)
    weights.unlink()
    with pytest.raises(UserError, match=r"cannot read student\.safetensors"):
        load_student(folder)
    for text in ("{", "[]", "", "5"):
        (folder / "student.json").write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=r"student\.json"):
            load_student(folder)
    (folder / "student.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"cannot read student\.json"):
        load_student(folder)
    with pytest.raises(UserError, match="is not a student"):
        load_student(tmp_path / "missing")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(folder, card, network, value):
    """When they are opened, as by predict, and when they are saved: an earlier student stays."""
    before, broken = contents(folder), network(card())
    broken.head.weight.data[0, 0, 0, 0] = value
    with pytest.raises(UserError, match=r"1 tensors are not finite, first head\.weight"):
        save_student(folder, broken, card())
    assert contents(folder) == before
    content = save(broken.state_dict())
    (folder / "student.safetensors").write_bytes(content)
    edit(folder, weights_sha256=hashlib.sha256(content).hexdigest())
    with pytest.raises(UserError, match="nothing can be predicted with them; take another copy"):
        load_student(folder)


def test_the_run_folder_is_answered_with_its_student(folder):
    run = folder.with_name("run")
    run.mkdir()
    folder.rename(run / "student")
    with pytest.raises(UserError, match="the student of this run is"):
        load_student(run)


def test_a_device_that_is_not_there_is_one_line(folder):
    for device in ("tpu9", "meta:1:2") if torch.cuda.is_available() else ("tpu9", "cuda"):
        with pytest.raises(UserError, match=f"device '{device}' cannot be used") as error:
            load_student(folder, device)
        assert "\n" not in str(error.value)


def test_saving_again_replaces_the_student(folder, card, network):
    before = contents(folder)
    save_student(folder, network(card(4)), card(4))
    assert contents(folder).keys() == before.keys()
    assert load_student(folder).card == card(4)
    assert [f.name for f in folder.parent.iterdir()] == [folder.name]


def test_a_failed_save_keeps_the_earlier_student(folder, card, network, monkeypatch):
    before = contents(folder)
    with pytest.raises(UserError, match="weights are not of"):  # a card that does not describe the network
        save_student(folder, network(card(4)), card(3))
    assert contents(folder) == before

    rename = Path.rename

    def fail(self, target):
        if self.name.endswith(".saving"):
            raise PermissionError(13, "in use")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(UserError, match="in use"):
        save_student(folder, network(card(4)), card(4))
    assert contents(folder) == before
    assert [f.name for f in folder.parent.iterdir()] == [folder.name]


def test_a_kill_between_the_renames_loses_nothing_and_says_where(folder):
    folder.rename(folder.with_name(f".{folder.name}.previous"))
    with pytest.raises(UserError, match=r"the earlier student in .*\.previous"):
        load_student(folder)


def test_a_folder_with_other_files_is_not_replaced(folder, card, network):
    (folder / "thesis.docx").write_text("years of work", encoding="utf-8")
    with pytest.raises(UserError, match="holds more than a student"):
        save_student(folder, network(card()), card())
    assert (folder / "thesis.docx").exists()


def test_model_card_says_what_it_is(card, network, tmp_path):
    statistic = {"mean": 0.8125, "low": 0.75, "high": 0.875, "median": 0.8, "n": 9}
    undefined = {"mean": None, "low": None, "high": None, "n": 0}
    summary = {
        "images": 9,
        "unit": "px",
        "note": "Small set.",
        "run": {"scored split": "val"},
        "classes": {
            "polyp": {
                "empty_reference": 0,
                "dice": statistic,
                "hd95": undefined,
            }
        },
        "mean": {"dice": statistic | {"low": None}},
    }
    splits = [{"split": "train", "images": 40, "labelled": 7, "patients": "–"}]
    c = card(
        3,
        scores={"test": summary},
        data={"name": "kvasir", "splits": splits, "leaks": ["exact copies: 2 pairs"]},
        pretrained={"teacher": "facebook/sam-vit-base: Apache-2.0"},
    )
    save_student(tmp_path / "polyps", network(c), c)
    text = (tmp_path / "polyps" / "README.md").read_text(encoding="utf-8")
    assert "| polyp | 0.812 (0.750 to 0.875) | undefined |" in text
    assert "| mean | 0.812 | undefined |" in text
    assert "Research use; not a medical device" in text
    assert "- These weights: weights: CC BY-NC 4.0, as the data\n- Teacher: facebook/sam-vit-base: Apache-2.0\n" in text
    assert "Trained on kvasir; hash of the contents of images and masks: `ab12`" in text
    assert "| train | 40 | 7 | – |" in text
    limits = text.partition("## Limits")[2].partition("## ")[0]
    for limit in (
        "Small set.",
        "Scored on the val split, which chose these weights",
        "Every scored image shows polyp",
        "The data check found exact copies: 2 pairs.",
        "It learned from 7 masks",
        "(their modality) is not known",
        "other hospitals",
        "One training",
    ):
        assert limit in limits
    assert 'segdistill predict "polyps" images/ -o masks/' in text
    assert 'segdistill export "polyps" -o "polyps.onnx"' in text
    assert "größe \\| x" in text


def test_the_card_of_an_unscored_student_claims_nothing(card, network, tmp_path):
    c = card(data_hash="", modalities=("endoscopy",))
    save_student(tmp_path / "polyps", network(c), c)
    text = (tmp_path / "polyps" / "README.md").read_text(encoding="utf-8")
    for phrase in ("Never scored", "data that are not known", "`unknown`", "Not scored.", "weights: none."):
        assert phrase in text
    assert "modality) is not known" not in text


def test_a_card_of_an_earlier_version_is_read(folder):
    values = json.loads((folder / "student.json").read_text(encoding="utf-8"))
    for name in ("origin", "data", "pretrained"):
        del values[name]
    (folder / "student.json").write_text(json.dumps(values), encoding="utf-8")
    card = load_student(folder).card
    assert (card.data, card.pretrained) == ({}, {})
