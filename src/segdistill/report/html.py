"""`report.html`: one self-contained file. No network, no script; light, dark, narrow and on paper."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..formats import replacing, resize_image, resize_labels
from ..metrics.polyp import POLYP_METRICS
from ..metrics.routing import describe_routing
from ..types import Remarks
from .cases import MOST, calibration, patients, sizes, worst_cases
from .compare import EXPLANATION, Comparison
from .figures import (
    CONFUSED,
    MAX_POINTS,
    MAX_TICKS,
    PREDICTION,
    REFERENCE,
    TINT,
    Panel,
    class_overlay,
    comparison,
    data_uri,
    dice_histogram,
    enlarged,
    log_panels,
    number,
    picture_size,
)
from .page import figure, interval, page_template
from .uncertainty import scale, uncertainty_map

KINDS = ("worst", "median", "best")  # the order in the report: what fails is seen first
SILENT = Remarks((), ())
WIDE = 1.8  # width / height above which a picture has a row of its own
POOR = 0.5  # Dice below which an image counts as poor in the words of the headline


@dataclass(frozen=True)
class Example:
    """One image to look at; label maps hold class indices."""

    name: str
    kind: str  # of KINDS
    caption: str  # e.g. "Dice 0.12, polyp"
    image: NDArray[np.uint8]  # (H, W, 3)
    reference: NDArray[np.uint8]  # (H, W)
    prediction: NDArray[np.uint8]  # (H, W)
    unsure: NDArray[np.uint8] | None = None  # (H, W) of uncertainty.uncertainty


@dataclass(frozen=True)
class ReportData:
    """All that a report shows. Empty collections and strings leave their part out."""

    title: str
    command: str
    facts: Mapping[str, str]  # what ran: method, data hash, seed, device, precision, versions, date, duration...
    config: str  # YAML
    classes: Sequence[str]  # background first
    colours: Sequence[tuple[int, int, int]]  # of the classes
    splits: Sequence[Mapping[str, object]]  # rows: split, images, labelled, patients
    mapping: str  # mask values -> classes, preformatted lines
    log: Sequence[Mapping[str, object]]  # lines of log.jsonl; empty where nothing was trained
    summary: Mapping[str, Any]  # of metrics.summarise, with "ece" where it is known
    scores: Sequence[Mapping[str, Any]]  # one row per image and class; "class" is an index or a name
    examples: Sequence[Example]
    student: Mapping[str, str]  # name, parameters, file size, ms per image + machine...
    warnings: Sequence[str]
    remarks: Remarks = SILENT  # of the method
    scored: str = "test"  # the split that was scored; anything else is said in the headline
    links: Mapping[str, str] = field(default_factory=dict)  # image as shown -> URI of its file from the report's place
    baseline: Comparison | None = None  # what changed against another run


def write_report(path: Path, data: ReportData) -> None:
    """Write the report to `path`: whole, or not at all. The same data gives the same bytes."""
    text = _render(data).encode("utf-8", errors="backslashreplace")  # file names may hold what UTF-8 does not
    with replacing(path) as file:
        file.write(text)


def _render(data: ReportData) -> str:
    kind, scored = data.summary["kind"], any(not np.isnan(number(row["dice"])) for row in data.scores)
    cases = worst_cases(data.scores, data.classes) if scored else []
    kinds = dict.fromkeys((*KINDS, *(example.kind for example in data.examples)))
    return page_template("template.html.j2").render(
        data=data,
        summary={"students": {}, "routing": None, **data.summary},
        sentences=list(_sentences(data)),
        routing=_routing(data.summary),
        parts=list(_parts(data.summary)),
        overview=list(_overview(data.summary)),
        polyp=POLYP_METRICS if "polyp" in data.summary else {},
        cases=cases[: MOST[kind]],
        hidden_cases=len(cases[MOST[kind] :]),
        sizes=list(sizes({name: _rows(data, name) for name in data.summary["classes"]}, kind)),
        patients=patients(data.scores),
        calibration=calibration(data.summary),
        panels=log_panels(data.log),
        remarked=[
            (caption, data_uri(enlarged(picture)), picture.shape[1] > WIDE * picture.shape[0])
            for caption, picture in data.remarks.pictures
        ],
        histograms=_histograms(data),
        examples=[
            (kind, [_pictures(example, data) for example in data.examples if example.kind == kind]) for kind in kinds
        ],
        legend=list(zip(data.classes, data.colours, strict=True))[1:],
        lines={"reference": REFERENCE, "prediction": PREDICTION, "confused": CONFUSED, "tint": TINT},
        limits={"ticks": MAX_TICKS, "points": MAX_POINTS},
        scale=scale() if any(example.unsure is not None for example in data.examples) else "",
        explanation=EXPLANATION,
        bits=math.log2(len(data.classes)),
    )


def _parts(summary: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(heading, summary) of all images together, then of each dataset where there are several."""
    datasets = summary.get("datasets") or {}
    yield ("All datasets" if datasets else ""), summary
    yield from datasets.items()


def _routing(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What the classifier of modalities does, in words and as a table; empty where the student has none."""
    block = summary.get("routing")
    if not block:
        return {}
    chosen = list(next(iter(block["confusion"].values())))
    lines = [
        (name or "unknown", [counts[other] for other in chosen], chosen.index(name) if name in chosen else None)
        for name, counts in block["confusion"].items()
    ]
    shares = [block["per_modality"].get(name) for name in block["confusion"]]
    return {
        "sentences": list(describe_routing(block, summary["kind"])),
        "chosen": chosen,
        "lines": list(zip(lines, shares, block["unsure"].values(), strict=True)),
        "sure_from": block["sure_from"],
    }


def _overview(summary: Mapping[str, Any]) -> Iterator[tuple[str, list[tuple[str, int | None, Mapping[str, Any]]]]]:
    """(heading, lines of name, images and mean scores): each modality and their mean, then each dataset."""
    for heading, groups in (("Modality", summary.get("modalities")), ("Dataset", summary.get("datasets"))):
        if groups:
            lines = [(name or "unknown", part["images"], part["mean"]) for name, part in groups.items()]
            macro = [("mean of modalities", None, summary["macro"])] if heading == "Modality" else []
            yield heading, [*lines, *macro]


def _sentences(data: ReportData) -> Iterator[str]:
    """What the headline means, and what it does not."""
    summary, mean = data.summary, data.summary["mean"]["dice"]
    if np.isnan(number(mean["mean"])):
        yield f"No {summary['kind']} could be scored: reference and prediction are empty everywhere."
        return
    yield "Dice is 1 where the student's mask equals the reference and 0 where they do not meet."
    if interval(mean):
        yield (
            f"For {summary['grouped_by']}s like these the true mean is likely between {figure(mean['low'])} and "
            f"{figure(mean['high'])} (95 % bootstrap interval over {summary['grouped_by']}s)."
        )
    for name, block in summary["classes"].items():
        yield from _class_sentences(name, block, [number(row["dice"]) for row in _rows(data, name)], summary["kind"])
    if "macro" in summary:
        macro, worst = summary["macro"]["dice"], _worst(summary["modalities"])
        yield (
            f"With each of {macro['n']} modalities counted once, however many {summary['kind']}s it has, the mean "
            f"Dice is {figure(macro['mean'])}{worst}."
        )
    yield (
        "The interval says nothing about other hospitals, devices or populations, nor about training again with "
        "another seed."
    )
    if data.baseline:
        yield data.baseline.headline
    if data.scored != "test":
        yield (
            f"These are not test {summary['kind']}s (split: {data.scored}): the scores flatter a student that was "
            "trained on them or chosen by them."
        )
    if summary.get("note"):
        yield summary["note"]  # of a small set it says a usual difference; a comparison says these two runs' own


def _worst(modalities: Mapping[str, Mapping[str, Any]]) -> str:
    """The modality of the lowest mean Dice, in words; nothing where none has one."""
    means = {name: mean for name, part in modalities.items() if (mean := part["mean"]["dice"]["mean"]) is not None}
    if not means:
        return ""
    name = min(means, key=lambda one: means[one])
    return f"; the lowest is {name or 'unknown'} with {figure(means[name])}"


def _class_sentences(name: str, block: Mapping[str, Any], dice: Sequence[float], kind: str) -> Iterator[str]:
    present = block["images"] - block["empty_reference"]
    missed = block["empty_prediction"] - block["both_empty"]
    alarms = block["empty_reference"] - block["both_empty"]
    scored = [value for value in dice if not np.isnan(value)]
    told = []
    if scored:
        told.append(
            f"{sum(value < POOR for value in scored):,} of {len(scored):,} scored {kind}s have a Dice below {POOR}"
        )
    if missed:
        told.append(f"nothing was found in {missed:,} of the {present:,} {kind}s that show it")
    if alarms:
        told.append(f"something was found in {alarms:,} of the {block['empty_reference']:,} {kind}s without it")
    if told:
        yield f"{name}: {'; '.join(told)}."


def _rows(data: ReportData, name: str) -> list[Mapping[str, Any]]:
    """The score rows of a class."""
    return [row for row in data.scores if row["class"] in (name, data.classes.index(name))]


def _histograms(data: ReportData) -> list[Panel]:
    panels = []
    for name, block in data.summary["classes"].items():
        dice = [number(row["dice"]) for row in _rows(data, name)]
        if not np.isnan(dice).all():
            panels.append(
                Panel(name, f"median {figure(block['dice']['median'])}", dice_histogram(dice, data.summary["kind"]))
            )
    return panels


def _pictures(example: Example, data: ReportData) -> dict[str, Any]:
    """The overlays of one example as (title, data URI), drawn at the size at which they are shown."""
    size = picture_size(*example.reference.shape)
    image = resize_image(example.image, size, "squash")
    reference, prediction = (resize_labels(a, size, "squash") for a in (example.reference, example.prediction))
    pictures = [("Image", image)]
    if len(data.classes) > 2:  # outlines alone do not say which class
        pictures.append(("Reference", class_overlay(image, reference, data.colours)))
        pictures.append(("Prediction", class_overlay(image, prediction, data.colours)))
    pictures.append(("Comparison", comparison(image, reference, prediction)))
    if example.unsure is not None:
        pictures.append(("Uncertainty", uncertainty_map(example.unsure, reference, size)))
    shown = [(title, data_uri(picture)) for title, picture in pictures]
    return {"name": example.name, "caption": example.caption, "pictures": shown, "size": size}
