"""Every recipe names settings that exist, and says how to run itself."""

from pathlib import Path

import pytest
import yaml

from segdistill.api.options import TrainOptions, check_options
from segdistill.methods import METHODS

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))


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


def test_the_published_recipe_sets_every_field_that_the_default_changed():
    """Fields whose comment in the config names another published value."""
    source = (ROOT / "src" / "segdistill" / "methods" / "knowsam.py").read_text(encoding="utf-8")
    differing = {line.split(":")[0].strip() for line in source.splitlines() if "# published: " in line}
    recipe = yaml.safe_load((ROOT / "recipes" / "knowsam_published.yaml").read_text(encoding="utf-8"))
    assert differing
    assert differing <= recipe["knowsam"].keys()
