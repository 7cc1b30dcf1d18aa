"""segdistill check as a person uses it."""

import json

import numpy as np
import pytest
from helpers import make_set
from PIL import Image

from segdistill.api.check import check
from segdistill.cli import main


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return make_set(tmp_path / "my [data] ü", count=10)


def test_clean_data_end_with_0(data, capsys):
    assert main(["check", str(data), "--classes", "background,disk", "--threads", "1"]) == 0
    out = capsys.readouterr().out
    for word in ("my [data] ü", "10, 10 with a mask", "64x64", "class disk", "0 error, 0 warning"):
        assert word in out


def test_an_error_ends_with_1_a_warning_with_0(data, capsys):
    Image.new("L", (64, 64)).save(data / "masks" / "002.png")
    assert main(["check", str(data)]) == 0
    assert "warning: empty masks: 1\n    images/002.png\n    -> " in capsys.readouterr().out
    (data / "images" / "003.png").write_bytes(b"")
    assert main(["check", str(data)]) == 1
    out = capsys.readouterr().out
    assert out.index("error: unreadable") < out.index("warning: empty")


def test_json_alone_on_the_screen_or_in_a_file(data, capsys):
    (data / "images" / "003.png").write_bytes(b"")
    assert main(["check", str(data), "--json", "-"]) == 1
    shown = json.loads(capsys.readouterr().out)
    assert shown["findings"][0]["code"] == "unreadable"
    assert shown["findings"][0]["files"] == ["images/003.png"]
    assert shown["facts"]["images"] == 10
    assert main(["check", str(data), "--json", "found.json"]) == 1
    assert json.loads((data.parent / "found.json").read_text(encoding="utf-8")) == shown
    assert "unreadable" in capsys.readouterr().out


def test_the_sheet_shows_findings_and_survives_broken_files(data):
    (data / "images" / "003.png").write_bytes(b"")
    Image.new("L", (20, 20)).save(data / "masks" / "004.png")
    result = check(data, sheet=data.parent / "sheet.png")
    assert len(result.errors) == 2
    sheet = np.array(Image.open(data.parent / "sheet.png"))
    assert sheet.shape[1] > 900
    assert len(np.unique(sheet)) > 50


def test_threshold_settles_grey_masks(data):
    for path in (data / "masks").iterdir():
        Image.fromarray((np.array(Image.open(path)) * 0.7 + np.arange(64)).astype(np.uint8)).save(path)
    assert main(["check", str(data)]) == 1
    assert main(["check", str(data), "--threshold", "127"]) == 0


def test_the_sheet_shows_the_flips_that_training_would_have(data):
    words = ["check", str(data), "--show-augment", "weak", "--size", "32", "--versions", "12"]
    for flips in ("both", "none"):
        assert main([*words, "-o", f"{flips}.png", "--flips", flips]) == 0
    assert (data.parent / "both.png").read_bytes() != (data.parent / "none.png").read_bytes()
    assert main([*words, "-o", "x.png", "--flips", "up"]) == 2
    assert not (data.parent / "x.png").exists()


def test_show_augment_still_writes_its_sheet(data):
    assert main(["check", str(data), "--show-augment", "weak", "-o", "w.png", "--size", "32"]) == 0
    assert main(["check", str(data), "--show-augment=strong", "-o", "s.png", "--size", "32"]) == 0
    assert (data.parent / "w.png").is_file()
    assert (data.parent / "s.png").is_file()


@pytest.mark.parametrize("words", [["nowhere"], [], ["DATA", "--sheet", "no/folder/s.png"], ["DATA", "--bogus", "1"]])
def test_bad_input_is_one_line(data, words, capsys):
    assert main(["check", *(str(data) if word == "DATA" else word for word in words)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_help_names_the_augmentation_too(capsys):
    with pytest.raises(SystemExit):
        main(["check", "--help"])
    out = capsys.readouterr().out
    assert "--show_augment" in out
    assert "--sheet" in out
