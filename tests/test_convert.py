"""convert: files in the official layouts become students; oracle: the loaders, parity-tested in tests/models."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from reference.fill import fill

from segdistill.cli import main
from segdistill.deploy.artefact import load_student
from segdistill.models.aggregation import Trio
from segdistill.models.esp_medsam_official import official_student
from segdistill.models.polyp_pvt_official import load_polyp_pvt
from segdistill.models.students import build_student

FOLDER = Path(__file__).parent / "reference"


def recorded(name):
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def filled(keys):
    return {key: torch.from_numpy(fill(key, tuple(shape))) for key, shape in keys.items()}


def trio(classes):
    keys = recorded("knowsam_fusion.json")["cases"][f"c{classes}"]["keys"]
    subnets = recorded("knowsam_subnets.json")["cases"]
    return filled(keys | subnets[f"UNet_c{classes}"]["keys"] | subnets[f"VNet_c{classes}"]["keys"])


@pytest.fixture(scope="module")
def files(module_path):
    """A folder with what the authors' programs write."""
    folder = module_path / "official ä"
    folder.mkdir()
    for classes in (2, 4):
        torch.save(trio(classes), folder / f"SGDL{classes}.pth")
    esp = filled(recorded("espmedsam.json")["keys"])
    torch.save({f"module.{key}": value for key, value in esp.items()}, folder / "derm.pth")
    other = esp | {"patch_decoder.0.bias": esp["patch_decoder.0.bias"] + 1}
    torch.save(other, folder / "xray.pth")
    torch.save({"weight": torch.zeros(2)}, folder / "foreign.pth")
    torch.save({k: v for k, v in trio(2).items() if "VNet" not in k}, folder / "half.pth")
    torch.save({k: v for k, v in trio(2).items() if "out_conv" not in k}, folder / "headless.pth")
    torch.save(trio(2) | {"VNet.block_ten.conv.0.weight": torch.zeros(1)}, folder / "odd.pth")
    torch.save({"UNet.out_conv.bias": torch.zeros(1).as_strided((10**9,), (0,))}, folder / "endless.pth")
    (folder / "text.pth").write_text("no weights", encoding="utf-8")
    return folder


def converted(tmp_path, *words):
    assert main(["convert", *map(str, words), "-o", str(tmp_path / "student ü")]) == 0
    return load_student(tmp_path / "student ü")


def same_output(network, student, size=64):
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return torch.equal(network.eval()(image), student.network(image))


@pytest.mark.parametrize("classes", [2, 4])
def test_knowsam(files, tmp_path, capsys, classes):
    path = files / f"SGDL{classes}.pth"
    student = converted(tmp_path, "knowsam", path)
    expected = build_student("knowsam_trio", classes=classes, corrects=False)
    expected.load_state_dict(Trio.from_official(trio(classes)), strict=False)
    assert same_output(expected, student)
    names = ("background", "foreground") if classes == 2 else ("background", "class_1", "class_2", "class_3")
    assert (student.card.name, student.card.classes, student.card.size) == ("knowsam_trio", names, (256, 256))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert student.card.origin == f"{path.name} (SHA-256 {sha256})"
    assert sha256 in "".join(capsys.readouterr().out.split())
    assert sha256 in (tmp_path / "student ü" / "README.md").read_text(encoding="utf-8")


def test_kdas(files, kdas_file, tmp_path):
    student = converted(tmp_path, "kdas", kdas_file, "--size", "64x96", "--classes", "background,polyp")
    assert same_output(load_polyp_pvt(kdas_file), student)
    assert (student.card.classes, student.card.size) == (("background", "polyp"), (64, 96))


@pytest.fixture(scope="module")
def kdas_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("kdas") / "KDAS.pth"
    torch.save(filled(recorded("polyp_pvt_tiny.json")["keys"]), path)
    return path


def test_esp_medsam(files, tmp_path, capsys):
    student = converted(tmp_path, "esp_medsam", f"derm={files / 'derm.pth'}", "--size", "64")
    assert same_output(official_student({"derm": filled(recorded("espmedsam.json")["keys"])}), student)
    assert student.card.modalities == ("dermoscopy",)
    assert "warning" not in capsys.readouterr().out


def test_esp_medsam_merges_files_and_says_what_it_cannot(files, tmp_path, capsys):
    given = [f"derm={files / 'derm.pth'}", f"xray={files / 'xray.pth'}"]
    assert main(["convert", "esp_medsam", *given, "-o", str(tmp_path / "s")]) == 2
    assert "(--separate-heads)" in capsys.readouterr().err
    student = converted(tmp_path, "esp_medsam", *given, "--separate-heads")
    assert student.card.modalities == ("dermoscopy", "xray")
    assert len(student.network.heads) == 2
    assert "derm.pth" in student.card.origin
    assert "xray.pth" in student.card.origin
    assert "warning: these files do not say how to tell their modalities apart" in capsys.readouterr().out


def test_the_student_predicts_as_any(files, tmp_path):
    from PIL import Image

    converted(tmp_path, "knowsam", files / "SGDL2.pth", "--size", "64")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)).save(tmp_path / "a.png")
    assert main(["predict", str(tmp_path / "student ü"), str(tmp_path / "a.png"), "-o", str(tmp_path / "out")]) == 0
    assert Image.open(tmp_path / "out" / "a.png").size == (70, 50)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["knowsam", "foreign.pth"], "holds no KnowSAM trio"),
        (["knowsam", "half.pth"], "holds no KnowSAM trio"),
        (["knowsam", "headless.pth"], "holds no KnowSAM trio"),
        (["knowsam", "odd.pth"], "holds no KnowSAM trio"),
        (["knowsam", "endless.pth"], "1000000000 classes, needed 2 to 255"),
        (["knowsam", "text.pth"], "text.pth"),
        (["knowsam", "missing.pth"], "missing.pth is not a file"),
        (["knowsam", "SGDL2.pth", "SGDL4.pth"], "takes one file"),
        (["knowsam", "SGDL2.pth", "--classes", "background,a,b"], "the file has 2 classes"),
        (["knowsam", "SGDL4.pth", "--classes", "background,a,b,a"], "name each once"),
        (["knowsam", "SGDL2.pth", "--size", "9"], "--size 9"),
        (["knowsam", "SGDL2.pth", "--separate-heads"], "--separate-heads is for esp_medsam"),
        (["kdas", "SGDL2.pth"], "Polyp-PVT"),
        (["esp_medsam", "derm.pth"], "needs MODALITY=FILE"),
        (["esp_medsam", "derm=derm.pth", "derm=xray.pth"], "each modality once"),
        (["esp_medsam", "mri=derm.pth"], "no modality 'mri'"),
        (["esp_medsam", "derm=foreign.pth"], "not a ESP-MedSAM checkpoint"),
        (["sam", "SGDL2.pth"], "sam"),
    ],
)
def test_wrong_files_are_one_line(files, tmp_path, monkeypatch, capsys, words, expected):
    monkeypatch.chdir(files)
    assert main(["convert", *words, "-o", str(tmp_path / "student")]) == 2
    message = capsys.readouterr().err
    assert message.startswith("segdistill: ")
    assert message.count("\n") == 1
    assert expected in message
    assert not (tmp_path / "student").exists()
