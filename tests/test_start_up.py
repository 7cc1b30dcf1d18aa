"""Start-up is fast because nothing heavy is imported before it is used; predicting from a file never needs torch."""

import json
import os
import re
import subprocess
import sys
import time
import tomllib
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from bright import write_bright
from packaging.requirements import Requirement
from PIL import Image

from segdistill.cli import TRAINING

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture
def bright_file(tmp_path):
    """A student that finds what is bright, and an image of which the right half is."""
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, 30:] = 200
    Image.fromarray(image).save(tmp_path / "image.png")
    return write_bright(tmp_path / "bright.onnx")


def words(file):
    return [
        "predict",
        str(file),
        str(file.with_name("image.png")),
        "-o",
        str(file.with_name("out")),
        "--overwrite=true",
    ]


def require_mask(file):
    mask = np.asarray(Image.open(file.parent / "out" / "image.png"))
    assert mask[:, 30:].all()
    assert not mask[:, :30].any()


def modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize(
    "code",
    [
        "import segdistill",
        "import segdistill.formats",
        "from segdistill.cli import main; main(['--help'])",
        "from segdistill.api import use, options, serve",
        "import segdistill.data.manifest, segdistill.data.labels, segdistill.data.cache",
    ],
)
def test_no_torch(code):
    assert not modules_after(code) & {"torch", "lightning_fabric", "matplotlib", "onnxruntime", "scipy"}


def test_help_is_instant():
    assert took("from segdistill.cli import main; main(['--help'])") < 0.5


def test_the_python_api_has_the_verbs():
    import segdistill

    for name in segdistill.__all__:
        assert callable(getattr(segdistill, name))
    with pytest.raises(AttributeError):
        _ = segdistill.no_such_verb


def test_predicting_from_a_file_imports_nothing_heavy(bright_file):
    """By the command line, which looks up the types that an option's hint names."""
    found = modules_after(f"from segdistill.cli import main; assert main({words(bright_file)}) == 0")
    assert "onnxruntime" in found
    assert not found & {*TRAINING, "scipy", "onnx", "nibabel", "pydicom", "h5py"}
    require_mask(bright_file)


def test_a_prediction_takes_less_than_a_second_from_a_cold_start(bright_file):
    assert took(f"from segdistill.cli import main; main({words(bright_file)})") < 1


def took(code):
    """Seconds that a process computes, the best of three: other work on the machine hardly lengthens them.

    Windows does not tell: there they are those of the clock.
    """
    seconds = []
    for _ in range(3):
        before, start = os.times(), time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        after, clock = os.times(), time.perf_counter() - start
        computed = after.children_user - before.children_user + after.children_system - before.children_system
        seconds.append(computed or clock)
    return min(seconds)


def installed_with(extra):
    """Names of all distributions that `pip install segdistill[extra]` brings, by pyproject.toml."""
    names, todo = set(), [Requirement(r) for r in PROJECT["dependencies"] + PROJECT["optional-dependencies"][extra]]
    while todo:
        requirement = todo.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        asked = [(name, extra) for extra in (requirement.extras or {""})]
        if set(asked) <= names:
            continue
        names |= set(asked)
        for needed in map(Requirement, metadata.requires(name) or ()):
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for _, extra in asked):
                todo.append(needed)
    return {name for name, _ in names}


# Stands for a fresh environment: what other packages of this one offer cannot be imported, and they have no version.
ONLY = """if True:
    import json, re, sys
    from importlib.machinery import PathFinder
    from importlib.metadata import MetadataPathFinder
    class Others:
        def find_distributions(self, *context):
            for one in MetadataPathFinder.find_distributions(*context):
                if re.sub("[-_.]+", "-", one.name).lower() in there:
                    yield one
        def find_spec(self, name, path=None, target=None):
            return None if name.split(".")[0] in hidden else PathFinder.find_spec(name, path, target)
    hidden, there = map(set, json.loads(sys.argv[1]))
    sys.meta_path[sys.meta_path.index(PathFinder)] = Others()
    from segdistill.cli import main
    sys.exit(main(json.loads(sys.argv[2])))
"""


def run_with_only(extra, arguments):
    there = installed_with(extra) | {"segdistill"}
    offered = metadata.packages_distributions().items()
    hidden = [m for m, found in offered if not {re.sub(r"[-_.]+", "-", d).lower() for d in found} & there]
    assert {"torch", "transformers", "pytest"} <= set(hidden)
    command = [sys.executable, "-c", ONLY, json.dumps([hidden, sorted(there)]), json.dumps(arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8")


def test_the_onnx_extra_is_enough_to_predict(bright_file):
    done = run_with_only("onnx", words(bright_file))
    assert done.returncode == 0, done.stderr
    require_mask(bright_file)


def test_a_cluster_without_its_extra_is_one_line(bright_file):
    done = run_with_only("onnx", [*words(bright_file), "--engine", "ray"])
    assert done.returncode == 2
    expected = "segdistill: --engine ray needs Ray Data; install it with: pip install segdistill[ray]\n"
    assert done.stderr == expected


@pytest.fixture
def scored_words(bright_file):
    """evaluate, of that student on that image with its right mask."""
    for name, values in (("images", [0, 200]), ("masks", [0, 255])):
        (bright_file.parent / "data" / name).mkdir(parents=True)
        Image.fromarray(np.repeat(np.uint8([values]), 30, 1).repeat(40, 0)).save(
            bright_file.parent / "data" / name / "a.png"
        )
    return ["evaluate", str(bright_file), str(bright_file.parent / "data")]


def require_scores(folder):
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["classes"]["bright"]["dice"]["mean"] == 1
    assert (folder / "scores.csv").is_file()


def test_the_onnx_extra_is_enough_to_evaluate(bright_file, scored_words):
    """Without a report, and it says so."""
    folder = bright_file.parent / "scores"
    done = run_with_only("onnx", [*scored_words, "-o", str(folder)])
    assert done.returncode == 0, done.stderr
    require_scores(folder)
    assert {file.name for file in folder.iterdir()} == {"scores.csv", "summary.json"}
    assert "no report.html: it needs jinja2 and matplotlib (pip install jinja2 matplotlib)" in done.stdout
    done = run_with_only("onnx", [*scored_words, "-o", str(folder) + "2", "--baseline", str(folder)])
    assert done.returncode == 2
    assert "the report needs jinja2 and matplotlib; install segdistill[train]" in done.stderr
    assert not Path(str(folder) + "2").exists()


def test_evaluating_a_file_imports_no_torch(bright_file, scored_words):
    """Nor, where a report is drawn, what only training needs."""
    folder = bright_file.parent / "scores"
    found = modules_after(f"from segdistill.cli import main; assert main({scored_words}) == 0")
    assert not found & {*TRAINING, "onnx"}
    found = modules_after(f"from segdistill.cli import main; assert main({[*scored_words, '-o', str(folder)]}) == 0")
    assert found & {*TRAINING} == {"jinja2", "matplotlib"}
    require_scores(folder)
    assert (folder / "report.html").is_file()


@pytest.mark.parametrize(
    "arguments", [["train", "data"], ["predict", ".", "a.png", "-o", "out"], ["demo"]], ids=lambda a: a[0]
)
def test_what_needs_torch_says_so(arguments, bright_file):
    image = str(bright_file.with_name("image.png"))
    done = run_with_only("onnx", [image if word == "a.png" else word for word in arguments])
    assert done.returncode == 2
    assert re.fullmatch(rf"segdistill: {arguments[0]} needs \w+; .*pip install segdistill\[train\] .*\n", done.stderr)


def test_the_names_of_the_extra_are_those_of_its_modules():
    wanted = {Requirement(r).name.replace("-", "_") for r in PROJECT["optional-dependencies"]["train"]}
    assert wanted == set(TRAINING)
