"""Other people's weights behind a run, and their licences: what the card of its student must say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..deploy.artefact import read_card
from ..types import UserError

# As the models' pages on the hub say them.
LICENCES = {
    "facebook/sam-vit-base": "Apache-2.0",
    "facebook/sam-vit-large": "Apache-2.0",
    "facebook/sam-vit-huge": "Apache-2.0",
    "wanglab/medsam-vit-base": "Apache-2.0",
    "OpenGVLab/pvt_v2": "Apache-2.0",
}
# Settings of the methods that name weights, and what these are for.
FIELDS = {"teacher": "teacher", "sam": "teacher", "backbone_weights": "pretrained backbone", "init": "start"}
NONE = ("", "none", "tiny", "small")  # no weights of anybody's: not used, or random


def pretrained(config: Any) -> dict[str, str]:
    """What a method's settings take from others -> its name and licence, for `Card.pretrained`."""
    return dict(_named(asdict(config)))


def _named(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for field, role in FIELDS.items():
        name = settings.get(field, "none")
        if name in NONE or (field == "teacher" and settings.get("distil") == "none"):
            continue
        name = "OpenGVLab/pvt_v2" if (field, name) == ("backbone_weights", "hub") else name
        yield role, f"{Path(name).name if Path(name).exists() else name}: {_licence(name)}"


def _licence(name: str) -> str:
    """Of a hub's model that we know, or of a student of ours; else where to ask."""
    if name in LICENCES:
        return LICENCES[name]
    for folder in (Path(name), Path(name) / "student"):
        try:
            return read_card(folder)[0].licence
        except UserError:
            continue
    return "licence not known here; that of its source applies"
