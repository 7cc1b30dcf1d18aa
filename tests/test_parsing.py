"""What is wrong with the words of a command is said in words, not in Python's types."""

import pytest

from segdistill.cli import main


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train x --threads two", "--threads two: needs a whole number"),
        ("train x --iterations 1.5", "--iterations 1.5: needs a whole number"),
        ("train x --tolerance a", "--tolerance a: needs a number"),
        ("train x --onnx maybe", "--onnx maybe: needs true or false"),
        ("train x --labelled", "--labelled needs a value"),
        ("train x --supervised.batch-size=", "--supervised.batch_size (nothing): needs a whole number"),
        ("train x --method knowsam --knowsam.mix-where up", "--knowsam.mix_where up: needs one of highest, lowest"),
        (
            "train x --kdas.alpha 3",
            "unrecognized arguments: --kdas.alpha 3 (settings of a method go with its --method)",
        ),
        ("train x --such 3", "unrecognized arguments: --such 3"),
        ("train x --config none.yaml", "--config: tolerance has no value"),
    ],
)
def test_what_is_wrong_is_said_in_words(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "none.yaml").write_text("tolerance:\n", encoding="utf-8")
    assert main(words.split()) == 2
    shown = "train --method knowsam" if "knowsam" in words else "train"
    assert capsys.readouterr().err == f"segdistill: {said}; see segdistill {shown} --help\n"


@pytest.mark.parametrize(
    "words",
    ["--method bcp --method unimatch", "--method=unimatch --config bcp.yaml", "--config bcp.yaml --method unimatch"],
)
def test_the_last_method_and_its_settings(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bcp.yaml").write_text("method: bcp\n", encoding="utf-8")
    asked = []
    monkeypatch.setattr("segdistill.api.train.train", lambda *given: asked.append(given))
    assert main(["train", "data", *words.split()]) == 0
    options, config = asked[0][2:]
    assert options.method == "unimatch"
    assert type(config).__name__ == "UniMatchConfig"


def test_a_function_of_a_verb_too(capsys):
    assert main("predict a b --out c --engine spark".split()) == 2  # noqa: SIM905
    assert (
        capsys.readouterr().err
        == "segdistill: --engine spark: needs one of local, ray; see segdistill predict --help\n"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--config long.yaml --supervised.iterations 9", "--supervised.iterations 9 beside --iterations 300 (perhaps"),
        ("--iterations 8 --supervised.iterations=9", "give one: --iterations 9 in place of both"),
        ("--config long.yaml --epochs 1", "--epochs 1.0 beside --iterations 300 (perhaps of a --config)"),
        ("--config long.yaml --epochs 1 --iterations null", "x: no such file"),
        ("--epochs 2 --supervised.iterations=9", "--supervised.iterations 9 beside --epochs 2"),
        ("--config own.yaml --iterations 8", "x: no such file"),
        ("--supervised.iterations 8 --iterations 8", "x: no such file"),
        ("--method kdas --kdas.iterations 9 --iterations 8", "x: no such file"),  # its share of them
    ],
)
def test_a_length_is_said_once(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "long.yaml").write_text("iterations: 300\n", encoding="utf-8")
    (tmp_path / "own.yaml").write_text("supervised:\n  iterations: 300\n", encoding="utf-8")
    assert main(["train", "x", *words.split()]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("text", ["size: 32\nsize: 64\n", "supervised:\n  iterations: 5\n  iterations: 6\n"])
def test_a_settings_file_says_a_thing_once(text, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
    assert main(["train", "x", "--config", str(tmp_path / "c.yaml")]) == 2
    assert f"says {'size' if 'size' in text else 'iterations'} twice" in capsys.readouterr().err
