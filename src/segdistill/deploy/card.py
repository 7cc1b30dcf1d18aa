"""What a student says about itself: everything that predicting and exporting need, as JSON. Imports no torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..types import UserError

FORMAT_VERSION = 1
FITS = ("squash", "pad")
POSTPROCESSES = ("none", "largest")
MAX_SIDE = 4096  # of the network's input, as of a training; more would take any memory
MEANINGS = "mask values"  # in `data`: what they meant in each data set of the training
LATER = ("origin", "data", "pretrained")  # entries that older students lack

RGB = tuple[int, int, int]


@dataclass(frozen=True)
class Card:
    """A student without its weights. Raises ValueError for values that contradict each other."""

    name: str  # of build_student
    arguments: dict[str, Any]  # of build_student
    method: str
    classes: tuple[str, ...]  # with the background, which is class 0
    colours: tuple[RGB, ...]  # one per class
    size: tuple[int, int]  # (height, width) of the network's input
    licence: str  # one line
    fit: str = "squash"
    modalities: tuple[str, ...] = ()
    neighbours: int = 0  # 1: the channels are the slices below, at and above, in grey; only volumes can be predicted
    threshold: float = 0.5  # two classes: foreground where p[1] >= threshold; more classes: argmax
    postprocess: str = "none"  # "largest": per foreground class the largest 8-connected component
    normalisation: str = "inside the network: it takes RGB in [0, 1]"
    scores: dict[str, Any] = field(default_factory=dict)  # the evaluator's summary
    data_hash: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    origin: str = ""  # where converted weights are from: file names and their SHA-256
    data: dict[str, Any] = field(
        default_factory=dict
    )  # of the training data: "name", "splits" (rows of counts), "leaks", MEANINGS
    pretrained: dict[str, str] = field(default_factory=dict)  # what was taken from others -> its name and licence
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        """Checks what a hand-edited file gets wrong."""
        if not 2 <= len(self.classes) <= 255 or len(self.colours) != len(self.classes):
            raise ValueError(f"{len(self.classes)} classes and {len(self.colours)} colours; needed 2 to 255, as many")
        if not all(0 <= part <= 255 for colour in self.colours for part in colour):
            raise ValueError(f"colours {self.colours}; needed red, green and blue, each 0 to 255")
        if len(self.size) != 2 or not all(1 <= side <= MAX_SIDE for side in self.size):
            raise ValueError(f"size {self.size}; needed (height, width), each up to {MAX_SIDE}")
        if self.neighbours not in (0, 1):
            raise ValueError(f"neighbours {self.neighbours}; needed 0 or 1")
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold {self.threshold}; needed a number between 0 and 1")
        if self.fit not in FITS or self.postprocess not in POSTPROCESSES:
            raise ValueError(f"fit {self.fit!r}, postprocess {self.postprocess!r}; needed {FITS}, {POSTPROCESSES}")


def card_values(card: Card) -> dict[str, Any]:
    """The card as JSON values."""
    return asdict(card)


def card_json(values: dict[str, Any]) -> str:
    """Strict JSON; raises ValueError for a score that is not finite (the evaluator writes None)."""
    return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def parse_card(text: str, where: str) -> tuple[Card, dict[str, Any]]:
    """The card in a JSON text, and the values that are not the card's; `where` names the text in a UserError."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({error}); copy or write the student again") from None
    version = values.get("format_version") if isinstance(values, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(f"{where} has format version {version!r}, needed {FORMAT_VERSION}; update segdistill")
    names = {f.name for f in fields(Card)}
    try:
        card = _card({key: value for key, value in values.items() if key in names})
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise UserError(f"{where} does not describe a student: {error}; copy or write the student again") from None
    return card, {key: value for key, value in values.items() if key not in names}


def _card(values: dict[str, Any]) -> Card:
    missing = [f.name for f in fields(Card) if f.name not in values and f.name not in LATER]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing")
    return Card(
        **values
        | {
            "arguments": dict(values["arguments"]),
            "classes": tuple(map(str, values["classes"])),
            "colours": tuple((int(r), int(g), int(b)) for r, g, b in values["colours"]),
            "size": tuple(map(int, values["size"])),
            "modalities": tuple(map(str, values["modalities"])),
        }
    )
