"""Options as Python gives them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segdistill.api.options import TrainOptions, check_options, parse_classes, parse_size
from segdistill.types import UserError


@given(st.integers(32, 4096), st.integers(32, 4096))
def test_sizes(height, width):
    assert parse_size(f"{height}x{width}") == (height, width)
    assert parse_size(height) == parse_size(str(height)) == (height, height)


@given(st.text(max_size=12))
def test_any_other_size_is_refused(text):
    try:
        height, width = parse_size(text)
    except UserError:
        return
    assert 32 <= min(height, width) <= max(height, width) <= 4096


def test_classes():
    assert parse_classes("background, polyp") == ["background", "polyp"]
    assert parse_classes(None) is None


@pytest.mark.parametrize(
    "changes",
    [{"fit": "crop"}, {"device": "tpu"}, {"precision": "8"}, {"postprocess": "all"}, {"accumulate": 0}, {"epochs": 0.0},
     {"iterations": 5, "epochs": 1.0}, {"seed": -1}, {"tolerance": 0.0}, {"patience": 0}, {"threads": 0}],
)  # fmt: skip
def test_values_no_run_could_use(changes):
    with pytest.raises(UserError):
        check_options(TrainOptions(**changes))
    check_options(TrainOptions())


def test_an_onnx_file_needs_its_extra_before_training_starts(monkeypatch):
    check_options(TrainOptions(onnx=True))
    monkeypatch.setattr("segdistill.api.options.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install segdistill\[onnx\]"):
        check_options(TrainOptions(onnx=True))
