"""A file of any precision and format: it says what the student says, or it is not written."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import onnx
import pytest
from helpers import assert_batches
from PIL import Image

from segdistill.cli import main
from segdistill.deploy import variants
from segdistill.deploy.artefact import read_card
from segdistill.deploy.low_precision import metadata
from segdistill.deploy.measure import Cost, measure
from segdistill.deploy.openvino_file import write_openvino
from segdistill.deploy.predict import predict_files
from segdistill.deploy.predictor import Prediction, open_predictor
from segdistill.deploy.variants import Sample, export_student
from segdistill.types import UserError

SUFFIX = {"onnx": ".onnx", "openvino": ".xml"}
SHAPES = [(64, 96), (48, 64), (1, 1), (1, 300), (17, 13), (300, 30), (333, 501)]


@pytest.fixture
def quick(onnx_file, monkeypatch):
    """The fp32 graph is exported once for all tests; costs are not measured."""
    monkeypatch.setattr(variants, "export_onnx", lambda folder, out, *_: shutil.copy(onnx_file, out))
    monkeypatch.setattr(variants, "measure", lambda path, threads: Cost(1.0, None))


@pytest.fixture
def paths(image, tmp_path):
    folder = tmp_path / "Bilder ä"
    folder.mkdir()
    for seed in range(4):
        Image.fromarray(image(70, 90, seed)).save(folder / f"{seed}.png")
    return sorted(folder.iterdir())


def listing(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("file_format", ["onnx", "openvino"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_every_variant_predicts_as_any_file(
    quick, unet_folder, paths, image, tmp_path, monkeypatch, precision, file_format
):
    out = tmp_path / "neu ü" / f"s{SUFFIX[file_format]}"
    samples = [Sample(lambda path=path: np.asarray(Image.open(path))) for path in paths]
    given = {"images": paths} if precision == "bf16" else {"labelled": samples}  # both ways in
    monkeypatch.setattr(variants, "MAX_DROP", 0.2)  # a student that was not trained is sure of nothing
    found = export_student(unet_folder, out, precision=precision, file_format=file_format, **given)
    assert listing(out.parent) == {out.name} | ({"s.bin"} if file_format == "openvino" else set())
    last = found.variants[-1]
    assert (found.variants[0].name, found.variants[0].equal, found.variants[0].dice) == ("torch fp32", 1.0, 1.0)
    assert last.name == f"{'onnxruntime' if file_format == 'onnx' else 'openvino'} {precision}"
    assert last.bytes == sum(file.stat().st_size for file in out.parent.iterdir())
    assert last.dice > 0.8
    assert last.equal > (0.9999 if precision == "fp32" else 0.9)
    predictor, torch_ = open_predictor(out, threads=1), open_predictor(unet_folder)
    assert predictor.card == read_card(unet_folder)[0]
    limit = {"fp32": 1e-3, "bf16": 0.1, "int8": 0.4}[precision]
    for seed, shape in enumerate(SHAPES):
        a, b = torch_.raw(image(*shape, seed)), predictor.raw(image(*shape, seed))
        assert np.abs(a.probabilities - b.probabilities).max() < limit, shape
        assert (b.labels.shape, b.labels.dtype) == (shape, np.uint8)
    if file_format == "onnx":
        assert metadata(out)["precision"] == precision
        assert_batches(out, [image(40, 50, seed) for seed in range(3)])
    assert predict_files(predictor, [paths[0].parent], tmp_path / "masks")[:3] == (4, 0, [])
    mask = np.asarray(Image.open(tmp_path / "masks" / "0.png"))
    np.testing.assert_array_equal(mask, predictor.predict(np.asarray(Image.open(paths[0]))).labels)


@pytest.fixture
def labelled(unet_folder, paths):
    """Masks that torch predicts, so that its own Dice is 1."""
    torch_ = open_predictor(unet_folder)
    images = [np.asarray(Image.open(path)) for path in paths]
    return [Sample(lambda i=i: i, lambda shape, i=i: torch_.predict(i).labels) for i in images]


@pytest.mark.parametrize("file_format", ["onnx", "openvino"])
def test_what_costs_dice_is_not_written(quick, unet_folder, labelled, tmp_path, monkeypatch, file_format):

    def wrong(source, out, images):
        model = onnx.load(source)
        bias = next(t for t in model.graph.initializer if t.name.endswith("network.head.bias"))
        values = onnx.numpy_helper.to_array(bias) + np.arange(len(onnx.numpy_helper.to_array(bias)), dtype=np.float32)
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
        onnx.helper.set_model_props(model, metadata(source) | {"precision": "int8"})
        onnx.save(model, out)

    monkeypatch.setattr(variants, "quantise", wrong)
    out = tmp_path / f"s{SUFFIX[file_format]}"
    for name in ("s.onnx", "s.xml", "s.bin"):
        (tmp_path / name).write_bytes(b"earlier")
    before = listing(tmp_path)
    with pytest.raises(
        UserError, match=r"nothing written: in int8 the Dice on 4 images is 0\.\d+, not 1\.0000"
    ) as error:
        export_student(unet_folder, out, labelled=labelled, precision="int8", file_format=file_format)
    assert "\n" not in str(error.value)
    assert listing(tmp_path) == before
    assert all((tmp_path / name).read_bytes() == b"earlier" for name in ("s.onnx", "s.xml", "s.bin"))


def test_half_a_point_is_allowed_and_no_more():
    for drop, allowed in ((-0.1, True), (0.0, True), (0.00499, True), (0.00501, False), (float("nan"), False)):
        worth = {"torch fp32": (1.0, 0.8), "onnxruntime int8": (0.9, 0.8 - drop)}
        if allowed:
            variants._require_dice("onnxruntime int8", worth, 3)
        else:
            with pytest.raises(UserError, match="in int8 the Dice on 3 images"):
                variants._require_dice("onnxruntime int8", worth, 3)


def test_dice_and_agreement_of_hand_sized_masks(card):
    class Says:
        def __init__(self, labels):
            self.card, self.labels = card(3), np.array(labels, np.uint8)

        def predict(self, image):
            return Prediction(self.labels, np.zeros((3, 1, 4), np.float32))

    reference = np.array([[1, 1, 0, 0]], np.uint8)
    samples = [Sample(lambda: np.zeros((1, 4, 3), np.uint8), lambda shape: reference)]
    found = variants._worth(Says([[1, 0, 0, 0]]), {"b": Says([[1, 0, 0, 2]])}, samples)
    assert found["torch fp32"] == (1.0, pytest.approx((2 / 3 + 1) / 2))  # class 2 is nowhere: right
    assert found["b"] == (0.75, pytest.approx((2 / 3 + 0) / 2))  # class 2 is a false alarm
    only = [samples[0]._replace(scored=(1,))]
    assert variants._worth(Says([[1, 0, 0, 0]]), {"b": Says([[1, 0, 0, 2]])}, only)["b"][1] == pytest.approx(2 / 3)
    alone = [samples[0]._replace(reference=None)]
    assert variants._worth(Says([[1, 0, 0, 0]]), {"b": Says([[1, 1, 0, 0]])}, alone)["b"] == (
        0.75,
        pytest.approx(5 / 6),
    )


def test_what_calibrates_and_what_is_measured_on(quick, unet_folder, paths, labelled, image, tmp_path, monkeypatch):
    assert (variants.CALIBRATED, variants.MEASURED) == (32, 200)
    monkeypatch.setattr(variants, "CALIBRATED", 5)
    monkeypatch.setattr(variants, "MEASURED", 7)
    seen = []

    def noted(source, out, images):
        seen.append(list(images))
        shutil.copy(source, out)

    monkeypatch.setattr(variants, "quantise", noted)
    for given in ({"images": paths[:3]}, {"labelled": labelled}, {"images": paths[:3], "labelled": labelled * 3}):
        found = export_student(unet_folder, tmp_path / "s.onnx", precision="int8", **given)
    assert [len(images) for images in seen] == [3, 4, 3]
    np.testing.assert_array_equal(seen[0][2], np.asarray(Image.open(paths[2])))
    assert (found.images, found.labelled) == (7, True)
    export_student(unet_folder, tmp_path / "s.onnx", precision="int8", labelled=labelled * 3)
    assert len(seen[-1]) == 5


def test_what_cannot_be_is_said_at_once(folder, tmp_path, monkeypatch):
    for changes, match in (
        ({"precision": "int8"}, r"--precision int8 is measured on images .* --images FOLDER, or --data"),
        ({"file_format": "openvino"}, r"give a name that ends in \.xml"),
    ):
        with pytest.raises(UserError, match=match):
            export_student(folder, tmp_path / "s.onnx", **changes)
    with pytest.raises(UserError, match=r"ends in \.onnx, or --format openvino"):
        export_student(folder, tmp_path / "s.xml")
    monkeypatch.setattr(variants, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs openvino; install it with: pip install segdistill\[openvino\]"):
        export_student(folder, tmp_path / "s.xml", file_format="openvino")
    assert listing(tmp_path) == {folder.name}


def test_openvino_files_that_do_not_fit_are_one_line(onnx_file, tmp_path):
    for name in ("a", "b"):
        write_openvino(onnx_file, tmp_path / f"{name}.xml", metadata(onnx_file), half=name == "b")
    assert listing(tmp_path) == {"a.xml", "a.bin", "b.xml", "b.bin"}
    with pytest.raises(UserError, match="run on the CPU here; use cpu"):
        open_predictor(tmp_path / "a.xml", "cuda")
    shutil.copy(tmp_path / "b.bin", tmp_path / "a.bin")
    with pytest.raises(UserError, match=r"a\.xml and a\.bin are not of one export|a\.xml is no student") as error:
        open_predictor(tmp_path / "a.xml")
    (tmp_path / "c.xml").write_text("<net>", encoding="utf-8")
    with pytest.raises(UserError, match=r"c\.xml is no student that OpenVINO can load") as error:
        open_predictor(tmp_path / "c.xml")
    assert "\n" not in str(error.value)


def test_openvino_calls_nobody(onnx_file, tmp_path):
    """Importing it sends a message to Google Analytics, and leaves an identifier in the home folder."""
    write_openvino(onnx_file, tmp_path / "s.xml", metadata(onnx_file), half=False)
    code = """if True:
        import socket, sys, time
        from pathlib import Path
        from segdistill.deploy.predictor import open_predictor
        called = []
        socket.getaddrinfo = lambda *address, **more: called.append(address)
        open_predictor(Path(sys.argv[1]))
        time.sleep(0.3)  # it calls from a thread
        assert not called, called
        assert not sys.modules.keys() & {"torch", "onnx", "openvino_telemetry.main"}
    """
    home = {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path)}
    command = [sys.executable, "-c", code, str(tmp_path / "s.xml")]
    subprocess.run(command, check=True, env=os.environ | home)
    assert listing(tmp_path) == {"s.xml", "s.bin"}


def test_the_cost_is_that_of_a_process(onnx_file):
    cost = measure(onnx_file)
    assert 0 < cost.ms < 1000
    assert cost.peak is None or 3e7 < cost.peak < 4e8  # without torch


@pytest.mark.skipif(sys.platform == "win32", reason="it ends a process without asking it")
def test_sigterm_leaves_nothing_half_written(folder, tmp_path, monkeypatch, capsys):
    def stopped(*given, **how):
        given[1].write_bytes(b"half")
        assert [path.name[:3] for path in tmp_path.iterdir() if path != folder] == [".a."]
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(variants, "export_onnx", stopped)
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *signalled: heard.append(signalled))  # else it would end the tests
    try:
        assert main(["export", str(folder), "-o", str(tmp_path / "a.onnx")]) == 128 + signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)
        assert len(heard) == 1  # and none of the first one
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err == "segdistill: stopped\n"
    assert [*tmp_path.iterdir()] == [folder]
