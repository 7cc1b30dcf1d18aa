"""What a training run may choose besides its method's own settings. Imports no torch: the command line reads it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..engine.settings import Settings
from ..types import UserError


@dataclass(frozen=True)
class TrainOptions(Settings):
    """Data and output of a training run; the loop's settings (seed, precision, iterations, ...) are those of Settings.

    Of several data sets, classes, threshold, labelled and modality may say a value for each: `--modality A=xray
    --modality B=fundus`, or as one text "A=xray; B=fundus". A value without a name is for all that are not named.

    Attributes:
        method: supervised, mean_teacher, unimatch, bcp, knowsam, kdas, esp_medsam, or an installed one; its own
            settings are the group of that name: `train --method knowsam --help` shows them.
        size: Training size, "128" or "128x192" (height x width).
        fit: "squash" images to that size, or "pad" them to its shape first.
        neighbours: 1: the three channels are the slices below, at and above; for volumes in grey.
        classes: Class names, background first, separated by commas.
        threshold: Mask values above it are foreground; for JPEG or grey-level masks.
        modality: What made the images; wins over the manifest's column.
        balance: 0: training images are drawn alike; 1: every modality equally often; between, a modality of n images
            n^(1 - balance) times as often. None: 0 for one data set, 0.5 for several.
        labelled: Label budget of the training split: "10%", "60" images or "7patients". None: all masks.
            Of several data sets, each one's.
        split_seed: Seed that draws the splits and the label budget. None: `seed`. With one, runs of several seeds train
            on the same masks, so that what differs between them is what training again changes.
        val: Share (or number of images) for validation where the data have no split.
        test: Share (or number of images) for testing where the data have no split.
        tolerance: Distance up to which a boundary counts as met (NSD); in mm where the spacing is known, else pixels.
        allow_leakage: Train although the test or validation split shares images or patients with training.
        postprocess: "none", or "largest": keep the largest component of each class.
        licence: One line that travels with the student.
        onnx: Write the student as RUN/student.onnx too, at the end; see `export`.
        baseline: Run folder, or one that evaluate wrote: the report compares with it on the images that both scored.
        threads: CPU threads of each process. None: all that torch takes, shared by the processes of a host.
        cache: Folder of decoded images. None: the user's cache folder.
    """

    method: str = "supervised"
    size: int | str = 256
    fit: Literal["squash", "pad"] = "squash"
    neighbours: Literal[0, 1] = 0
    classes: str | None = None
    threshold: int | str | None = None
    modality: str | None = None
    balance: float | None = None
    labelled: int | str | None = None
    split_seed: int | None = None
    val: float = 0.15
    test: float = 0.15
    tolerance: float = 2.0
    allow_leakage: bool = False
    postprocess: Literal["none", "largest"] = "none"
    licence: str = "not stated: the licences of the data and of any pretrained weights apply"
    onnx: bool = False
    baseline: Path | None = None
    threads: int | None = None
    cache: Path | None = None

    @property
    def drawn_by(self) -> int:
        """The seed of the splits and the label budget."""
        return self.seed if self.split_seed is None else self.split_seed


def parse_size(text: int | str) -> tuple[int, int]:
    """(height, width) of "128" or "128x192"; UserError for anything else, or a side out of 32..4096."""
    match = re.fullmatch(r"(\d{1,4})(?:x(\d{1,4}))?", str(text).strip())
    size = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not all(32 <= side <= 4096 for side in size):
        raise UserError(f"--size {text}: needs one side or HEIGHTxWIDTH, each 32 to 4096, e.g. 256 or 256x320")
    return size


def parse_classes(text: str | None) -> list[str] | None:
    """Names separated by commas."""
    return [name.strip() for name in text.split(",")] if text else None


def parse_threshold(text: str | None) -> int | None:
    """A whole number; UserError for anything else."""
    if text is not None and not re.fullmatch(r"\d{1,8}", text):
        raise UserError(f"--threshold {text}: needs a whole number, as 127")
    return None if text is None else int(text)


def check_config(method: str, config: Any) -> None:
    """Refuse numbers that no method could train with, before the data are read."""
    for name, value in vars(config).items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        option = f"--{method}.{name} {value}"
        if name.endswith(("iterations", "batch_size")) or name == "labelled_batch":
            if value < 1:
                raise UserError(f"{option}: needs a number of at least 1")
        elif (name.endswith("learning_rate") and not value > 0) or (name == "other_batch" and value < 0):
            raise UserError(f"{option}: needs a number {'of at least' if name == 'other_batch' else 'above'} 0")


def check_options(options: TrainOptions) -> None:
    """Refuse values that no run could use, before anything is written."""
    if options.onnx and not (find_spec("onnxscript") and find_spec("onnxruntime")):
        raise UserError("--onnx true needs onnx; install it with: pip install segdistill[onnx]")
    for name, hint in get_type_hints(TrainOptions).items():
        if getattr(options, name) is None and type(None) not in get_args(hint):
            raise UserError(f"--{name}: needs a value; leave the line out of the settings for the default")
        if get_origin(hint) is Literal and getattr(options, name) not in get_args(hint):
            raise UserError(f"--{name} {getattr(options, name)}: choose {' or '.join(map(str, get_args(hint)))}")
    parse_size(options.size)
    for name in ("iterations", "validate_every", "patience", "accumulate", "threads", "devices", "nodes"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: needs a number of at least 1")
    if options.epochs is not None and options.epochs <= 0:
        raise UserError(f"--epochs {options.epochs}: needs a number above 0")
    if options.epochs is not None and options.iterations is not None:
        raise UserError(
            f"--epochs {options.epochs} beside --iterations {options.iterations} (perhaps of a --config), which says "
            "the same in another unit; give one, and --iterations null in place of a file's"
        )
    if options.balance is not None and not 0 <= options.balance <= 1:
        raise UserError(
            f"--balance {options.balance}: needs a number from 0 (as many images as there are) to 1 (alike)"
        )
    if options.split_seed is not None and options.split_seed < 0:
        raise UserError(f"--split_seed {options.split_seed}: needs a whole number from 0")
    if options.seed < 0 or options.tolerance <= 0:
        raise UserError(f"--seed {options.seed} --tolerance {options.tolerance}: seed from 0, tolerance above 0")
