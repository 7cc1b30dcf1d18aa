"""The README.md of a student, for whoever finds the folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .card import Card

COLUMNS = {"dice": "Dice", "iou": "IoU", "precision": "precision", "recall": "recall", "hd95": "HD95", "nsd": "NSD"}
FEW = 100  # labelled training images below which the limits say so

TEMPLATE = """\
# {folder}: a segmentation student

A `{name}` network, {made}. It segments an RGB image by itself: no prompt, no
teacher, no training code.

## Intended use

**Research use; not a medical device.** To mark {found} in images like those it was trained on, for a person who looks
at the result. Not for diagnosis or treatment, not for images of another kind, and not before you have measured it on
your own: `segdistill evaluate "{folder}" YOUR_DATA`.

## Limits

{limits}

## Licences

- These weights: {licence}
{pretrained}
- The training data have a licence of their own, which may bind the weights.

## Data

{data}

## Scores

{scores}
## Input and output

- Image of any size, RGB; it is resized to {size[0]} x {size[1]} (height x width; {fit}) and the result is resized back.
- Normalisation: {normalisation}.
- Modalities: {modalities}.
- Decision: {decision}; post-processing: {postprocess}.

| index | class | colour |
|---|---|---|
{classes}

## Use

```
segdistill predict "{folder}" images/ -o masks/
segdistill export "{folder}" -o "{folder}.onnx"
```

Files: `student.safetensors` (weights), `student.json` (all of the above, for programs). Made with {versions}.
"""


def model_card(card: Card, folder: str) -> str:
    """Markdown; `folder` is the name under which the commands find the student."""
    return TEMPLATE.format(
        folder=folder,
        name=card.name,
        made=f"converted from {card.origin}" if card.origin else f"trained by segdistill's method `{card.method}`",
        found=", ".join(map(_cell, card.classes[1:])),
        limits="\n".join(f"- {line}" for line in _limits(card)),
        licence=card.licence,
        pretrained="\n".join(_pretrained(card)),
        data="\n".join(_data(card)),
        size=card.size,
        fit="padded at the bottom and right to this shape first" if card.fit == "pad" else "squashed to this shape",
        normalisation=card.normalisation,
        modalities=", ".join(filter(None, card.modalities)) or "not named",
        decision=f"foreground where p >= {card.threshold}" if len(card.classes) == 2 else "the most probable class",
        postprocess="none" if card.postprocess == "none" else "the largest connected component of each class",
        classes="\n".join(f"| {i} | {_cell(c)} | {card.colours[i]} |" for i, c in enumerate(card.classes)),
        scores="\n".join(_section(*table) for table in _tables(card.scores, "")) or "Not scored.\n",
        versions=", ".join(f"{name} {version}" for name, version in card.versions.items()) or "unknown versions",
    )


def _limits(card: Card) -> Iterator[str]:
    """What nobody may conclude from the scores."""
    tables = [summary for _, summary in _tables(card.scores, "")]
    if not tables:
        yield "Never scored: nothing is known of how good it is."
    for summary in tables:
        if summary.get("note"):
            yield summary["note"]
        scored = summary.get("run", {}).get("scored split", "test")
        if scored != "test":
            yield f"Scored on the {scored} split, which chose these weights: the scores flatter it."
        present = [name for name, row in summary["classes"].items() if row.get("empty_reference") == 0]
        if present:
            yield (
                f"Every scored {summary.get('kind', 'image')} shows {', '.join(map(_cell, present))}: how often the "
                "student finds something where there is nothing is not known."
            )
        if tables[0].get("ece") is not None:
            yield f"Its probabilities are off by {tables[0]['ece']:.3f} on average over pixels (ECE)."
    yield from (f"The data check found {leak}." for leak in card.data.get("leaks", ()))
    labelled = sum(row["labelled"] for row in card.data.get("splits", ()) if row["split"] == "train")
    if 0 < labelled < FEW:
        yield f"It learned from {labelled} masks; what they do not show, it has not seen labelled."
    if not any(card.modalities):
        yield "What made the training images (their modality) is not known; on images of another one it will fail."
    yield "Nothing is known of other hospitals, devices or populations than those in the data."
    if tables:
        yield "One training: another seed gives other weights and other scores."


def _pretrained(card: Card) -> Iterator[str]:
    if card.origin:
        yield "- They are converted ones: the licence of their authors applies."
        return
    for role, text in card.pretrained.items():
        yield f"- {role.capitalize()}: {_cell(text)}"
    if not card.pretrained:
        yield "- Teacher or other pretrained weights: none."


def _data(card: Card) -> Iterator[str]:
    """Names, counts per split and the hash of the contents; never a path or a patient."""
    splits: Sequence[dict[str, Any]] = card.data.get("splits", ())
    yield (
        f"Trained on {_cell(card.data.get('name', '')) or 'data that are not known'}; hash of the contents of images "
        f"and masks: `{card.data_hash or 'unknown'}`."
    )
    if "start" in card.pretrained:
        yield "Its first weights come from other data: those of the student that it started from."
    if not splits:
        return
    yield from ("", "| " + " | ".join(splits[0]) + " |", "|---" * len(splits[0]) + "|")
    yield from ("| " + " | ".join(_cell(str(value)) for value in row.values()) + " |" for row in splits)
    yield ""
    yield 'labelled: with a mask that training could see. patients: "–" where they are not known.'


def _tables(scores: dict[str, Any], title: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The evaluator's summaries in the scores: it is one, or has one per split."""
    if "classes" in scores:
        yield title, scores
    else:
        for key, value in scores.items():
            if isinstance(value, dict):
                yield from _tables(value, key)


def _section(title: str, summary: dict[str, Any]) -> str:
    """One summary of `metrics.summarise` as a table: mean (95 % interval)."""
    kind = summary.get("kind", "image")
    rows = summary["classes"] | {"mean": summary["mean"]}
    columns = [key for key in COLUMNS if any(key in row for row in rows.values())]
    heads = [f"{COLUMNS[key]} ({summary.get('unit', 'px')})" if key == "hd95" else COLUMNS[key] for key in columns]
    split = summary.get("run", {}).get("scored split")
    lines = [
        *([f"### {title}\n"] if title else []),
        f"{summary.get('images', '?')} {kind}s{f' of the {split} split' if split else ''}; mean (95 % interval).\n",
        "| class | " + " | ".join(heads) + " |",
        "|---" * (1 + len(columns)) + "|",
        *(f"| {_cell(name)} | " + " | ".join(_score(row.get(k)) for k in columns) + " |" for name, row in rows.items()),
    ]
    return "\n".join(lines) + "\n"


def _score(statistic: dict[str, Any] | None) -> str:
    if statistic is None or statistic["mean"] is None:
        return "undefined"
    if statistic.get("low") is None or statistic.get("high") is None:
        return f"{statistic['mean']:.3f}"
    return f"{statistic['mean']:.3f} ({statistic['low']:.3f} to {statistic['high']:.3f})"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
