"""Every recipe names settings that exist, and says how to run itself."""

from pathlib import Path

import pytest
import yaml

from segdistill.api.options import TrainOptions, check_options
from segdistill.methods import METHODS

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))


def head(path):
    return path.read_text(encoding="utf-8").partition("\n")[0]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_can_be_used(path):
    text = path.read_text(encoding="utf-8")
    assert f"--config {path.relative_to(ROOT).as_posix()}" in text
    values = yaml.safe_load(text)
    method = METHODS[values["method"]]
    config = method.Config(**values.pop(values["method"], {}))
    check_options(TrainOptions(**values))
    changed = {key for key in vars(config) if getattr(config, key) != getattr(method.Config(), key)}
    assert changed or values.keys() - {"method"}  # else it would be no recipe


PUBLISHED = [path for path in RECIPES if path.stem == "knowsam_published" or "published settings" in head(path)]


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_a_published_recipe_sets_every_field_that_the_default_changed(path):
    """Fields whose comment in the config names another published value."""
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    source = (ROOT / "src" / "segdistill" / "methods" / f"{recipe['method']}.py").read_text(encoding="utf-8")
    differing = {line.split(":")[0].strip() for line in source.splitlines() if "# published: " in line}
    assert differing
    assert differing <= recipe[recipe["method"]].keys()
