"""The folder tree is a sentence; imports follow it in one direction."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "segdistill"
LEFT = {"types", "formats", "losses", "metrics", "transforms", "models"}
ALLOWED = {
    "types": set(),
    "formats": {"types"},
    "losses": {"types"},
    "metrics": {"types"},
    "transforms": {"types"},
    "models": {"types"},
    "data": {"types", "formats", "losses", "metrics", "transforms", "models"},
    "methods": LEFT,
    "deploy": {"types", "formats", "metrics", "models"},
    "report": {"types", "formats", "losses", "metrics", "transforms", "models"},
    "engine": LEFT | {"data", "deploy", "report"},
    "api": LEFT | {"data", "deploy", "report", "engine", "methods"},
    "parsing": {"types"},
    "cli": LEFT | {"parsing", "api", "engine"},
    "__main__": {"cli"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def shelf(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_shelves(path: Path) -> set[str]:
    depth = len(path.relative_to(PACKAGE).parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            found |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {name.split(".")[1] for name in names if name.startswith("segdistill.")}
    return found


@pytest.mark.parametrize("path", [p for p in FILES if shelf(p) != "__init__"], ids=lambda p: p.stem)
def test_imports_go_one_way(path):
    own = shelf(path)
    assert imported_shelves(path) <= ALLOWED[own] | {own}


def test_every_shelf_is_known():
    assert {shelf(path) for path in FILES} - {"__init__"} == ALLOWED.keys()


@pytest.mark.parametrize("path", sorted((PACKAGE / "formats").glob("*.py")), ids=lambda p: p.stem)
def test_formats_import_no_torch(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not [name for name in names if name.split(".")[0] == "torch"]


@pytest.mark.parametrize("path", sorted((PACKAGE / "methods").glob("*.py")), ids=lambda p: p.stem)
def test_a_method_does_not_import_another(path):
    parts = {
        "sam_distillation",
        "standing",
        "ugda",
        "modality_transfer",
        "teacher_embeddings",
        "kdas_remarks",
    }  # of a method, or of several
    names = {p.stem for p in (PACKAGE / "methods").glob("*.py")} - {"__init__"} - parts
    if path.stem == "__init__":
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    beside = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level == 1}
    assert not beside & names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_unpickles_or_needs_torchvision(path):
    text = path.read_text(encoding="utf-8")
    assert not any(word in text for word in ("import pickle", "import torchvision", "import timm"))
    if path.relative_to(PACKAGE).as_posix() == "models/weights.py":  # the one reader of foreign checkpoints
        assert text.count("torch.load(") == text.count("weights_only=True") == 1
    else:
        assert "torch.load(" not in text
