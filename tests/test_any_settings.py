"""Whatever a settings file, a run's config.yaml or a student's card says: a value, or one line; nothing in it runs."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from segdistill.api import train as api
from segdistill.api.options import TrainOptions, check_options
from segdistill.api.runs import config_text, read_config
from segdistill.cli import main
from segdistill.deploy.card import Card, card_json, card_values, parse_card
from segdistill.methods import METHODS
from segdistill.types import UserError

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["auto", "cpu", "0.5", "1e5", "64x64", "3patients", "10%", "../x", "A=1; B=2", ""])
)
VALUES = st.recursive(SCALARS, lambda one: st.lists(one, max_size=3) | st.dictionaries(SCALARS, one, max_size=3))
KEYS = st.sampled_from(["method", "data", "out", "resume", "config", *TrainOptions.__dataclass_fields__, *METHODS, "x"])
ODD = [
    "method: [a]\n",
    "method: {a: b}\n",
    "method: 5\n",
    "tolerance:\n",
    "method: 2001-13-45\n",
    "size: 2001-13-45\n",
    "? [a]\n: b\n",
    "&a [*a]\n",
    "&a {x: *a}\n",
    "[" * 5000,
    "size: " + "{a: " * 3000,
    "size: \udc80\n",  # as bytes no UTF-8
    "size: !!int x\n",
    "size: !!binary =\n",
    "size: !!timestamp x\n",
    "size: 1:99:99\n",
    "size: 0b_\n",
    "size: 0x\n",
    "size: 9" + "9" * 5000 + "\n",
    "\0",
    "\ufeff",
    "--- a\n--- b\n",
    "<<: 3\n",
    "config: {file}\n",
    "resume: x\n",
    "supervised: 3\n",
    "supervised: null\n",
    "supervised: {batch_size: 9223372036854775808}\n",
    "",
    "a",
    "- a\n",
    "5\n",
    "null\n",
]


@pytest.fixture(scope="module", autouse=True)
def _no_training() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "train", lambda data, out, options, config: check_options(options))
        patch.setattr(api, "resume", lambda run: None)
        yield


def settle(path: Path, text: str) -> int:
    """What the command line makes of a settings file."""
    path.write_bytes(text.replace("{file}", json.dumps(str(path))).encode("utf-8", "surrogatepass"))
    with redirect_stderr(io.StringIO()) as said:
        code = main(["train", "data", "--config", str(path)])
    assert (code, said.getvalue().count("\n")) in ((0, 0), (2, 1))
    assert not code or said.getvalue().startswith("segdistill: ")
    return code


def asked(read: Callable[[], Any]) -> Any | str:
    """What is read, or the one line that refuses it."""
    try:
        return read()
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_odd_settings(tmp_path: Path, text: str) -> None:
    settle(tmp_path / "c.yaml", text)
    resumed(tmp_path, text)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.text(max_size=60) | st.dictionaries(KEYS, VALUES, max_size=3).map(lambda one: yaml.safe_dump(one)))
def test_any_settings(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    settle(tmp_path_factory.getbasetemp() / "any.yaml", text)


def test_sound_settings_are_taken(tmp_path: Path) -> None:
    for name, method in METHODS.items():
        text = config_text([Path("data")], TrainOptions(method=name), method.Config())
        assert settle(tmp_path / "c.yaml", text) == 0


def resumed(folder: Path, text: str) -> bool:
    """Whether a run with this config.yaml can be resumed; a UserError of one line says why not."""
    (folder / "config.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    found = asked(lambda: read_config(folder))
    assert "\n" not in found if isinstance(found, str) else isinstance(found[1], TrainOptions)
    return not isinstance(found, str)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(max_size=60) | st.dictionaries(KEYS, VALUES, max_size=3))
def test_any_config_of_a_run(tmp_path_factory: pytest.TempPathFactory, given_: str | dict[str, Any]) -> None:
    folder = tmp_path_factory.getbasetemp() / "any run"
    folder.mkdir(exist_ok=True)
    plain = config_text([Path("data")], TrainOptions(), METHODS["supervised"].Config())
    assert resumed(folder, plain)
    resumed(folder, given_ if isinstance(given_, str) else yaml.safe_dump(yaml.safe_load(plain) | given_))


CARD = card_values(Card("unet", {"classes": 2}, "m", ("a", "b"), ((0, 0, 0), (1, 1, 1)), (32, 32), "none"))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(max_size=60) | st.dictionaries(st.sampled_from([*CARD]), VALUES, max_size=2))
@example({"size": [float("inf"), 3]})
@example({"colours": [[float("inf"), 0, 0]] * 2})
@example("[" * 100_000)
@example('{"format_version": 9' + "9" * 5000 + "}")
def test_any_card(text: str | dict[str, Any]) -> None:
    text = text if isinstance(text, str) else json.dumps(CARD | text, default=str)
    found = asked(lambda: parse_card(text, "the card")[0])
    assert ("the card" in found and "\n" not in found) if isinstance(found, str) else len(found.classes) > 1


def test_a_sound_card_is_taken() -> None:
    assert parse_card(card_json(CARD), "the card")[0].classes == ("a", "b")


def test_yaml_runs_nothing(tmp_path: Path) -> None:
    for tag in ("python/object/apply:os.mkdir", "python/object/new:os.mkdir", "python/name:os.mkdir"):
        payload = f"!!{tag} [{json.dumps(str(tmp_path / 'ran'))}]"
        for text in (payload, f"method: {payload}\n", f"size: {payload}\n", f"supervised: {payload}\n"):
            assert settle(tmp_path / "c.yaml", text) == 2
            assert not resumed(tmp_path, text)
    assert not (tmp_path / "ran").exists()
