"""What the pages of this folder are made of: templates, and how they write numbers."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from .figures import number

if TYPE_CHECKING:
    from jinja2 import Template


def page_template(name: str) -> Template:
    """A template of this folder; values are escaped, a name that is not given is an error."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    files = FunctionLoader(lambda file: resources.files(__package__).joinpath(file).read_text(encoding="utf-8"))
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=files
    )
    environment.filters.update(
        figure=figure,
        interval=interval,
        count=_count,
        svg=lambda p: Markup(p.svg),
        parted=lambda name: Markup("_<wbr>").join(str(name).split("_")),
    )
    return environment.get_template(name)


def figure(value: object, digits: int = 3) -> str:
    """A number for a table; a dash where there is none."""
    return "–" if np.isnan(number(value)) else f"{number(value):.{digits}f}"


def interval(block: Mapping[str, Any], digits: int = 3) -> str:
    """The interval of a statistic; empty where it has none."""
    ends = number(block["low"]), number(block["high"])
    return "" if np.isnan(ends).any() else "–".join(figure(end, digits) for end in ends)


def _count(value: object) -> str:
    """Whole numbers with separators; anything else as it is; a dash for None."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
