"""convert: weights that a paper's authors published become a student like those trained here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..data.labels import colours
from ..deploy.artefact import save_student
from ..deploy.card import Card
from ..types import UserError
from .options import parse_classes, parse_size
from .runs import versions
from .terminal import console

if TYPE_CHECKING:
    from torch import nn

Family = Literal["knowsam", "kdas", "esp_medsam"]
SIZES = {"knowsam": 256, "kdas": 352, "esp_medsam": 1024}  # input of the released networks, both sides
MOST = 255  # classes of a student: a mask holds them in bytes
LICENCE = "not stated here: that of the converted weights applies"


def convert(
    family: Family,
    files: Sequence[Path | str],
    out: Path | str,
    *,
    size: int | str | None = None,
    classes: str | None = None,
    separate_heads: bool = False,
) -> Path:
    """Write the network in official weights as a student; predict, evaluate, export and --kdas.teacher take it.

    Args:
        family: knowsam (SGDL_best_model.pth), kdas (KDAS's or Polyp-PVT's checkpoint) or esp_medsam.
        files: The file; of esp_medsam one per modality, as MODALITY=FILE.
        out: Folder of the student to write.
        size: Input size, as of train. None: that of the released network (256, 352, 1024).
        classes: Names, background first, separated by commas. None: background, foreground or class_1, class_2...
        separate_heads: Of esp_medsam: keep a decoder per modality where the files differ.

    Raises:
        UserError: A file of another kind, or names that do not fit it; nothing is written then.
    """
    if family not in SIZES:
        raise UserError(f"cannot convert {family!r}; choose one of {', '.join(SIZES)}")
    shape = parse_size(SIZES[family] if size is None else size)
    sources = _sources(family, files)
    if family == "esp_medsam":
        network, count = _esp_medsam(sources, separate_heads), 2
    else:
        if separate_heads:
            raise UserError(f"--separate-heads is for esp_medsam; leave it out with {family}")
        network, count = (_knowsam if family == "knowsam" else _kdas)(sources[""])
    origin = ", ".join(f"{path.name} (SHA-256 {_sha256(path)})" for path in sources.values())
    card = _card(family, network, _names(parse_classes(classes), count), shape, origin)
    save_student(Path(out), network, card)
    parameters = sum(p.numel() for p in network.parameters())
    console.print(f"{out}: {card.name}, {parameters:,} parameters, {', '.join(card.classes)}", markup=False)
    console.print(f"from {origin}", markup=False)
    if len(sources) > 1:
        console.print(
            "warning: these files do not say how to tell their modalities apart, so the student is unsure of each; "
            "tell it with predict --modality, evaluate --modality and export --modality",
            markup=False,
            style="yellow",
        )
    return Path(out)


def _sources(family: str, files: Sequence[Path | str]) -> dict[str, Path]:
    """Files by modality; one without a name unless they are ESP-MedSAM's."""
    if family != "esp_medsam":
        if len(files) != 1:
            raise UserError(f"convert {family} takes one file, not {len(files)}; convert each into its own folder")
        return {"": Path(files[0])}
    sources: dict[str, Path] = {}
    for text in map(str, files):
        name, _, file = text.partition("=")
        if not file or name in sources:
            raise UserError(f"{text}: needs MODALITY=FILE, each modality once, e.g. dermoscopy={file or text}")
        sources[name] = Path(file)
    return sources


def _knowsam(path: Path) -> tuple[nn.Module, int]:
    """The trio as released, its classes counted."""
    from ..models.aggregation import Trio
    from ..models.students import build_student
    from ..models.weights import read_weights

    refusal = f"{path} holds no KnowSAM trio ({{}}); give SGDL_best_model.pth as its code saves it"
    try:
        state = Trio.from_official(read_weights(path))
        classes = len(state["unet.head.bias"])
    except (KeyError, TypeError) as error:
        raise UserError(refusal.format(f"without {error}")) from None
    if not 2 <= classes <= MOST:  # before a network of as many is built: a tensor may say any number in a few bytes
        raise UserError(refusal.format(f"{classes} classes, needed 2 to {MOST}"))
    network = build_student("knowsam_trio", classes=classes, corrects=False)
    own = network.state_dict()
    state = {k: v for k, v in own.items() if k.endswith("num_batches_tracked")} | state  # old files lack these counters
    wrong = [k for k in own | state if k not in own or k not in state or own[k].shape != state[k].shape]
    if wrong:
        raise UserError(refusal.format(f"{len(wrong)} tensors differ, first {wrong[0]}"))
    network.load_state_dict(state)
    return network, classes


def _kdas(path: Path) -> tuple[nn.Module, int]:
    from ..models.polyp_pvt_official import load_polyp_pvt

    network = load_polyp_pvt(path)
    return network, network.heads[0].out_channels + 1  # type: ignore[operator, return-value]


def _esp_medsam(sources: Mapping[str, Path], separate_heads: bool) -> nn.Module:
    from ..models.esp_medsam_official import official_student
    from ..models.weights import read_weights

    return official_student({name: read_weights(path) for name, path in sources.items()}, separate_heads)


def _names(names: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """Class names, those given or made up."""
    if names is None:
        return ("background", "foreground") if count == 2 else ("background", *(f"class_{k}" for k in range(1, count)))
    if len(names) != count or len(set(names)) != count:
        raise UserError(f"--classes {','.join(names)}: the file has {count} classes; name each once, background first")
    return tuple(names)


def _card(family: str, network: nn.Module, names: tuple[str, ...], size: tuple[int, int], origin: str) -> Card:
    from ..models.students import student_spec

    spec = student_spec(network)
    return Card(
        name=spec.name,
        arguments=spec.arguments,
        method=family,
        classes=names,
        colours=tuple(colours(len(names))),
        size=size,
        licence=LICENCE,
        modalities=tuple(spec.arguments.get("modalities", ())),
        versions=versions(),
        origin=origin,
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
