"""Every command that README and the how-to pages show is understood; the main ones of each page are run, in small."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import make_set, make_volumes

from segdistill import cli, parsing
from segdistill.api.options import TrainOptions, check_options, parse_size
from segdistill.deploy.measure import Cost

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "how-to").glob("*.md")), ROOT / "docs" / "metrics.md"]


def commands(page: Path) -> list[str]:
    """Lines of indented blocks and code in sentences that begin with segdistill, also behind torchrun and srun."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"^ {4,}(?:[A-Z_]+=\S+ |srun .*?|torchrun .*? -m )?(segdistill .+)$", text, re.MULTILINE)
    spans = [span for span in re.findall(r"`(segdistill [^`]+)`", text) if len(span.split()) > 2]
    return [
        re.sub(r"\s+#.*|\$\w+", lambda found: "0" if found[0][0] == "$" else "", line).strip()
        for line in [*blocks, *spans]
    ]


FOUND = [(page, line) for page in PAGES for line in commands(page)]


class Understood(Exception):  # noqa: N818
    """The command line was parsed."""


@pytest.fixture
def _only_parsed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Parse, judge the options of a training, go no further."""
    parse = parsing.parse

    def stop(parser: Any, words: list[str]) -> None:
        given = parse(parser, words)
        if parser.prog == "segdistill train":
            built = parser.instantiate(given)
            check_options(TrainOptions(**{name: built[name] for name in TrainOptions.__dataclass_fields__}))
        elif given.get("size") is not None:
            parse_size(given.size)
        raise Understood

    for module in (parsing, cli):
        monkeypatch.setattr(module, "parse", stop)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "recipes", "recipes")
    (tmp_path / "runs" / "plain_0").mkdir(parents=True)
    (tmp_path / "runs" / "plain_0" / "config.yaml").write_text("size: 64\n", encoding="utf-8")


@pytest.mark.usefixtures("_only_parsed")
@pytest.mark.parametrize(("page", "line"), FOUND, ids=[f"{page.stem}: {line}" for page, line in FOUND])
def test_a_command_is_understood(page: Path, line: str) -> None:
    with pytest.raises(Understood):
        cli.main(shlex.split(line)[1:])


def test_each_page_has_commands() -> None:
    assert {page for page, _ in FOUND} == set(PAGES)


@pytest.mark.usefixtures("_only_parsed")
@pytest.mark.parametrize(
    "line", ["train x --sizee 3", "train x --size 9", "predict a b", "export a -o b --precision 3"]
)
def test_a_wrong_command_is_not(line: str) -> None:
    assert cli.main(line.split()) == 2


# --- run ------------------------------------------------------------------------------------------------------------

SMALL = "--precision 32 --size 32 --iterations 2 --validate-every 2 --threads 1 --cache cache".split()  # noqa: SIM905
BATCH = {
    "supervised": ["--supervised.batch-size", "2"],
    "unimatch": ["--unimatch.labelled-batch", "2", "--unimatch.other-batch", "2"],
    "mean_teacher": ["--mean_teacher.labelled-batch", "2", "--mean_teacher.other-batch", "2"],
}
RUN = {  # page -> commands, in their order
    "own-folder": [
        "segdistill train my_folder --classes background,polyp --size 256 --out runs/first",
        "segdistill check my_folder --show-augment weak -o sheet.png",
        "segdistill predict runs/first new_images -o masks --overlays true",
        "segdistill export runs/first -o student.onnx",
        "segdistill predict student.onnx new_images -o masks",
        "segdistill train --resume runs/first",
    ],
    "check": [
        "segdistill check my_folder",
        "segdistill check my_folder --sheet sheet.png",
        "segdistill check my_folder --json found.json",
    ],
    "few-labels": [
        "segdistill train my_folder --classes background,polyp --out runs/labels",
        "segdistill train my_folder --classes background,polyp --method unimatch --out runs/unimatch",
        "segdistill compare runs/labels runs/unimatch --out runs/compared",
    ],
    "medical-formats": [
        "segdistill train brains --size 128 --out runs/brain",
        "segdistill predict runs/brain new_brains -o masks",
        "segdistill evaluate masks brains",
    ],
    "cluster": ["segdistill predict runs/unimatch_0 new_images -o masks"],
    "export": [
        "segdistill export runs/first --out small.onnx --precision int8",
        "segdistill export runs/first --out student.xml --format openvino --precision bf16",
    ],
    "trust-the-numbers": [
        "segdistill evaluate runs/plain_0 other_folder --classes background,polyp --out scores/elsewhere",
        "segdistill evaluate nnunet_masks my_folder --classes background,polyp --out scores/nnunet",
        "segdistill compare runs/plain_0 scores/nnunet",
        "segdistill train --config runs/plain_0/config.yaml --out runs/again",
    ],
    "several-datasets": ["segdistill check isic2018 kvasir_seg drive"],
    "README": ["segdistill evaluate runs/first other_folder"],
}
ELSEWHERE = {  # pages whose commands other tests run
    "compare": "test_compare.py",
    "convert": "test_convert.py",
    "metrics": "test_cli.py",
    "modalities": "test_modalities.py",
    "report": "test_reporting.py",
    "serve": "deploy/serve/test_process.py",
    "several-processes": "engine/test_distributed.py",
}


def small(words: list[str]) -> list[str]:
    """What makes a training a matter of a second; settings from a file are small already."""
    if words[0] != "train" or {"--resume", "--config"} & set(words):
        return []
    method = words[words.index("--method") + 1] if "--method" in words else "supervised"
    return [*SMALL, *BATCH[method]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folders that the pages speak of, and one finished run in the place of all."""
    folder = tmp_path_factory.mktemp("how-to")
    make_set(folder / "my_folder", count=24, size=40, unlabelled=6)
    for number, name in enumerate(("other_folder", "isic2018", "kvasir_seg", "drive"), 1):
        make_set(folder / name, count=6, size=40, seed=number)
    make_volumes(folder / "brains", count=5)
    shutil.copytree(folder / "my_folder" / "images", folder / "new_images")
    shutil.copytree(folder / "my_folder" / "masks", folder / "nnunet_masks")
    shutil.copytree(folder / "brains" / "images", folder / "new_brains")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        words = shlex.split(RUN["own-folder"][0])[1:]
        assert cli.main([*words, *small(words)]) == 0
        for name in ("plain_0", "unimatch_0"):
            shutil.copytree(folder / "runs" / "first", folder / "runs" / name)
        yield folder


@pytest.mark.parametrize("page", RUN)
def test_the_commands_of_a_page_run(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], page: str
) -> None:
    """Each ends with 0, or with 1 where it is `check` that found something."""
    monkeypatch.setattr("segdistill.deploy.variants.measure", lambda path, threads: Cost(1.0, None))
    monkeypatch.setattr("segdistill.deploy.variants.MAX_DROP", 0.2)  # after two updates all is near p = .5
    place = shutil.copytree(world, tmp_path / "a place")
    monkeypatch.chdir(place)
    shown = {line for path, line in FOUND if path.stem == page}
    for line in RUN[page]:
        assert line in shown
        words = shlex.split(line)[1:]
        if words[-1] == "runs/first" and words[0] == "train" and "--out" in words:
            continue  # the world has it
        assert cli.main([*words, *small(words)]) in ((0, 1) if words[0] == "check" else (0,)), capsys.readouterr().err
        for option in {"-o", "--out", "--sheet", "--json"} & set(words):
            assert (place / words[words.index(option) + 1]).exists()


def test_each_page_is_run_somewhere() -> None:
    assert RUN.keys() | ELSEWHERE.keys() == {page.stem for page in PAGES}
    for file in ELSEWHERE.values():
        assert (ROOT / "tests" / file).is_file()
