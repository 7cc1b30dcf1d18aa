"""Threats that cross files; docs/security.md lists all, and each test it names exists."""

from __future__ import annotations

import ast
import csv
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import make_set
from PIL import Image
from volumes import SECRET, save_series

from segdistill.cli import main
from segdistill.data.cache import open_cache
from segdistill.data.labels import build_mapping, scan_values
from segdistill.data.manifest import load_manifest
from segdistill.models.weights import read_weights
from segdistill.types import UserError

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "segdistill"
FAST = "--size 32 --iterations 2 --validate-every 2 --precision 32 --supervised.batch-size 2".split()  # noqa: SIM905


class Payload:
    """Code that a careless reader would run: it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


SAVERS = {
    "zip": lambda value, path: torch.save(value, path),
    "legacy": lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=False),
    "plain": lambda value, path: path.write_bytes(pickle.dumps(value)),
}


@pytest.mark.parametrize("saver", SAVERS)
def test_a_payload_in_foreign_weights_does_not_run(
    tmp_path: Path, saver: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ran, path = tmp_path / "ran", tmp_path / "weights.pth"
    for value in (Payload(ran), {"a": Payload(ran)}, {"a": torch.zeros(2), Payload(ran): 1}):
        SAVERS[saver](value, path)
        with pytest.raises(UserError, match=r"weights\.pth"):
            read_weights(path)
        for family, file in (("knowsam", path), ("kdas", path), ("esp_medsam", f"xray={path}")):
            assert main(["convert", family, str(file), "-o", str(tmp_path / "student")]) == 2
            assert capsys.readouterr().err.count("\n") == 1
    assert not ran.exists()
    pickle.loads(pickle.dumps(Payload(ran)))  # it would have
    assert ran.exists()


def test_paths_in_a_zip_of_weights_go_nowhere(tmp_path: Path) -> None:
    """torch reads entries into memory; whatever they are called, no file is made."""
    path = tmp_path / "in" / "weights.pth"
    path.parent.mkdir()
    torch.save({"a": torch.ones(3)}, path)
    whole, before = path.read_bytes(), sorted(tmp_path.rglob("*"))
    for name in ("../slipped", "../../slipped", "/tmp/slipped-by-segdistill", "weights/../../slipped"):
        path.write_bytes(whole)
        with zipfile.ZipFile(path, "a") as file:
            file.writestr(name, "x")
        with suppress(UserError):  # torch refuses some of them
            assert read_weights(path)["a"].tolist() == [1, 1, 1]
        assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/tmp/slipped-by-segdistill").exists()


def test_no_archive_is_ever_unpacked() -> None:
    """So there is no path in one to leave its folder by."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            modules = {getattr(node, "module", None) or "", *names}
            assert not modules & {"zipfile", "tarfile", "unpack_archive"}, path
            assert not (isinstance(node, ast.Attribute) and node.attr in ("unpack_archive", "extractall")), path


def test_objects_in_a_cache_are_not_unpickled(tmp_path: Path) -> None:
    rows = load_manifest(make_set(tmp_path / "data", count=3, size=32)).rows
    mapping = build_mapping(scan_values([row.mask for row in rows if row.mask]))
    whole = np.array(open_cache(rows, mapping, size=(32, 32), fit="squash", folder=tmp_path / "cache").images)
    for name in ("images", "masks", "crc"):
        (file,) = tmp_path.glob(f"cache/*/{name}.npy")
        np.save(file, np.array([Payload(tmp_path / "ran")], dtype=object), allow_pickle=True)
        again = open_cache(rows, mapping, size=(32, 32), fit="squash", folder=tmp_path / "cache")
        np.testing.assert_array_equal(again.images, whole)
        del again  # its files are mapped, and are written over next
    assert not (tmp_path / "ran").exists()


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three patients' DICOM series with PNG masks and a manifest; file names are not the patients'."""
    folder = tmp_path_factory.mktemp("patients")
    rng = np.random.default_rng(0)
    lines = ["image,mask,split,volume,slice"]
    for number, split in enumerate(("train", "val", "test")):
        (folder / f"v{number}").mkdir()
        volume = rng.integers(0, 900, (4, 24, 28)).astype(np.uint16)
        files = save_series(
            folder / f"v{number}",
            volume,
            SeriesInstanceUID=f"1.2.3.4.{number}",
            PatientComments=SECRET,
            PatientAddress=SECRET,
            InstitutionName=SECRET,
            StudyDescription=SECRET,
        )
        for k, file in enumerate(files):
            mask = np.zeros((24, 28), np.uint8)
            mask[4 : 12 + k, 5:20] = 1
            Image.fromarray(mask).save(file.with_suffix(".png"))
            name = f"v{number}/{file.stem}"
            lines.append(f"{name}.dcm,{name}.png,{split},v{number},{k}")
    (folder / "list.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_no_patient_in_logs_reports_scores_or_models(
    patients: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = str(patients / "list.csv")
    assert main(["check", data, "--json", "found.json", "--sheet", "sheet.png"]) in (0, 1)
    assert main(["train", data, "--out", "run", "--cache", "cache", *FAST]) == 0
    assert main(["evaluate", "run", data, "--out", "scores"]) == 0
    assert main(["predict", "run", str(patients / "v0"), "-o", "masks", "--overlays", "true"]) == 0
    assert main(["export", "run", "-o", "student.onnx"]) == 0
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"report.html", "student.onnx", "found.json", "summary.json", "student.json", "areas.csv"} <= names
    said = capfd.readouterr()
    texts = {"terminal": said.out + said.err} | {str(path): path.read_bytes().decode("latin-1") for path in files}
    for secret in (SECRET, "SecretID", "19700101", "20200101", "1.2.3.4", "1.2.3.5"):
        assert not [where for where, text in texts.items() if secret in text], secret


def test_masks_and_names_of_every_alphabet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spaces, accents, quotes, commas, another alphabet, and names that differ by case: each image has its own mask."""
    monkeypatch.chdir(tmp_path)
    source = make_set(tmp_path / "Größe, 画像 & co", count=9, size=32)
    names = ["a b", "ä'ö", "数 据", "x,y", "z;z", "#1", "100%", "Case", "case"]
    if (source / "IMAGES").exists():  # a file system where case does not count holds only one of the two
        names[-1] = "other"
    for number, name in enumerate(names):
        for kind in ("images", "masks"):
            (source / kind / f"{number:03}.png").rename(source / kind / f"{name}.png")
    assert main(["train", str(source), "--out", "a run", "--cache", "c", *FAST]) == 0
    assert main(["predict", "a run", str(source / "images"), "-o", "mäsks"]) == 0
    masks = {path.name.casefold() for path in (tmp_path / "mäsks").glob("*.png")}
    assert len(masks) == len(names)
    with (tmp_path / "mäsks" / "areas.csv").open(encoding="utf-8", newline="") as file:
        assert len({row["image"] for row in csv.DictReader(file)}) == len(names)


def test_every_test_that_the_page_names_exists() -> None:
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:\w+/)*test_\w+\.py)(?:::(\w+))?`", text)
    assert len(named) > 25
    for file, test in named:
        found = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert not test or f"def {test}(" in found, (file, test)


def test_a_cache_with_a_damaged_header_is_made_anew(tmp_path: Path) -> None:
    rows = load_manifest(make_set(tmp_path / "data", count=2, size=32)).rows
    mapping = build_mapping(scan_values([row.mask for row in rows if row.mask]))
    whole = np.array(open_cache(rows, mapping, size=(32, 32), fit="squash", folder=tmp_path / "cache").images)
    (file,) = tmp_path.glob("cache/*/images.npy")
    content = file.read_bytes()
    for old, new in ((b"descr", b"\x81(\n{{"), (b"False", b"True "), (b"|u1", b"|i1"), (b"(2, 32", b"(9, 32")):
        assert old in content
        file.write_bytes(content.replace(old, new, 1))
        again = np.array(open_cache(rows, mapping, size=(32, 32), fit="squash", folder=tmp_path / "cache").images)
        np.testing.assert_array_equal(again, whole)


@pytest.mark.parametrize("name", ["a\nb.png", "a\x1b[2J.png", "a\u202egnp.png", "a\x85b.png"])
def test_a_message_is_one_line_and_moves_no_cursor(tmp_path: Path, name: str) -> None:
    """A manifest may name any file."""
    (tmp_path / "list.csv").write_text(f'image\n"{name}"\n', encoding="utf-8", newline="")
    with pytest.raises(UserError) as error:
        load_manifest(tmp_path / "list.csv")
    assert str(error.value).isprintable()
    assert name.encode("unicode_escape").decode() in str(error.value)
