from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from segdistill.deploy.predictor import OnnxPredictor, TorchPredictor, open_predictor
from segdistill.types import UserError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("shape", [(90, 131), (33, 200)])
def test_onnx_predicts_what_torch_predicts(unet_folder, onnx_file, image, shape):
    a, b = open_predictor(unet_folder), open_predictor(onnx_file, threads=1)
    assert isinstance(a, TorchPredictor)
    assert isinstance(b, OnnxPredictor)
    assert a.card == b.card
    first, second = a.predict(image(*shape)), b.predict(image(*shape))
    assert first.labels.dtype == second.labels.dtype == np.uint8
    assert first.probabilities.dtype == second.probabilities.dtype == np.float32
    assert first.probabilities.shape == (len(a.card.classes), *shape)
    np.testing.assert_allclose(first.probabilities, second.probabilities, atol=1e-4)
    assert (first.labels == second.labels).mean() > 0.999
    assert len(np.unique(first.labels)) == len(a.card.classes)
    if a.card.postprocess == "largest":
        assert (first.labels != a.raw(image(*shape)).labels).any()


@pytest.mark.parametrize("threads", [0, -1])
def test_no_thread_is_one_line(folder, tmp_path, threads):
    for name in ("a.onnx", "a.xml"):
        (tmp_path / name).touch()
    for student in (folder, tmp_path / "a.onnx", tmp_path / "a.xml"):
        with pytest.raises(UserError, match=f"--threads {threads}: needed 1 or more"):
            open_predictor(student, threads=threads)


def test_any_layout_of_the_array_is_taken(folder, image):
    predictor = open_predictor(folder)
    turned = image(40, 50)[::-1, ::-1]
    turned.flags.writeable = False
    np.testing.assert_array_equal(predictor.predict(turned).labels, predictor.predict(turned.copy()).labels)


def test_predicting_from_onnx_imports_no_torch(onnx_file, image, tmp_path):
    from PIL import Image

    Image.fromarray(image(60, 70)).save(tmp_path / "a.png")
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from segdistill.deploy.predictor import open_predictor\n"
        "from segdistill.deploy.predict import predict_files\n"
        "from segdistill.deploy.stages import Extras\n"
        "predictor = open_predictor(Path(sys.argv[2]))\n"
        "inputs, out = [sys.argv[3]], Path(sys.argv[4])\n"
        "for tile in (False, True):\n"
        "    s = predict_files(predictor, inputs, out, Extras(True, True, tile), overwrite=True)\n"
        "    assert s.written == 1, s\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    arguments = [str(ROOT / "src"), str(onnx_file), str(tmp_path / "a.png"), str(tmp_path / "out")]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, timeout=120)
    written = {f.name for f in (tmp_path / "out").iterdir()}
    assert written == {"a.png", "a_prob.npz", "a_overlay.png", "areas.csv", "predicted.jsonl"}


def test_what_is_no_student_is_one_line(tmp_path, folder):
    with pytest.raises(UserError, match="does not exist"):
        open_predictor(tmp_path / "missing")
    with pytest.raises(UserError, match="is not a student"):
        open_predictor(folder / "student.json")
    with pytest.raises(UserError, match=r"is not a student: cannot read student\.json"):
        open_predictor(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        open_predictor(tmp_path / "missing.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"not a graph")
    with pytest.raises(UserError, match="cannot be loaded") as error:
        open_predictor(tmp_path / "bad.onnx")
    assert "\n" not in str(error.value)


def test_devices_that_are_not_there_are_one_line(onnx_file):
    import onnxruntime

    for device in ("tpu",) if "CUDAExecutionProvider" in onnxruntime.get_available_providers() else ("tpu", "cuda:0"):
        with pytest.raises(UserError, match=f"device '{device}' cannot be used"):
            open_predictor(onnx_file, device)


def test_an_onnx_file_of_someone_else_is_refused(tmp_path):
    from onnx import TensorProto, helper, save

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", value[:1], value[1:])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "other.onnx")
    with pytest.raises(UserError, match="does not say what it predicts"):
        open_predictor(tmp_path / "other.onnx")


def test_an_image_too_long_to_pad_is_one_line(card, network):
    from segdistill.deploy.student import Student

    c = card(fit="pad")
    with pytest.raises(UserError, match="too long to pad"):
        TorchPredictor(Student(network(c), c)).predict(np.zeros((1, 30_000, 3), np.uint8))
