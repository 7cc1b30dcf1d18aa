"""The README.md of a student, for whoever finds the folder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .card import Card

COLUMNS = {"dice": "Dice", "iou": "IoU", "precision": "precision", "recall": "recall", "hd95": "HD95", "nsd": "NSD"}

TEMPLATE = """\
# {folder}: a segmentation student

A `{name}` network, {made}. It segments an RGB image by itself: no prompt, no
teacher, no training code.

**Research use; not a medical device.** It knows only images like those it was trained on; the scores below say
nothing about others. Look at its output before you rely on it.

Licence: {licence}

## Input and output

- Image of any size, RGB; it is resized to {size[0]} x {size[1]} (height x width; {fit}) and the result is resized back.
- Normalisation: {normalisation}.
- Modalities: {modalities}.
- Decision: {decision}; post-processing: {postprocess}.

| index | class | colour |
|---|---|---|
{classes}

## Scores

{scores}
## Use

```
segdistill predict "{folder}" images/ -o masks/
segdistill export "{folder}" -o "{folder}.onnx"
```

Files: `student.safetensors` (weights), `student.json` (all of the above, for programs). Trained on data with the hash
`{data_hash}`; made with {versions}.
"""


def model_card(card: Card, folder: str) -> str:
    """Markdown; `folder` is the name under which the commands find the student."""
    return TEMPLATE.format(
        folder=folder,
        name=card.name,
        made=f"converted from {card.origin}" if card.origin else f"trained by segdistill's method `{card.method}`",
        licence=card.licence,
        size=card.size,
        fit="padded at the bottom and right to this shape first" if card.fit == "pad" else "squashed to this shape",
        normalisation=card.normalisation,
        modalities=", ".join(card.modalities) or "not named",
        decision=f"foreground where p >= {card.threshold}" if len(card.classes) == 2 else "the most probable class",
        postprocess="none" if card.postprocess == "none" else "the largest connected component of each class",
        classes="\n".join(f"| {i} | {_cell(c)} | {card.colours[i]} |" for i, c in enumerate(card.classes)),
        scores="\n".join(_section(*table) for table in _tables(card.scores, "")) or "Not scored.\n",
        data_hash=card.data_hash or "unknown",
        versions=", ".join(f"{name} {version}" for name, version in card.versions.items()) or "unknown versions",
    )


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
    lines = [
        *([f"### {title}\n"] if title else []),
        f"{summary.get('images', '?')} {kind}s; mean (95 % interval). {summary.get('note', '')}".rstrip() + "\n",
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
