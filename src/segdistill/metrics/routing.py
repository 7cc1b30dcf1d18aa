"""How well a student's classifier finds the modality of an image: accuracy and confusion, and in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


def summarise_routing(
    true: Sequence[str], probabilities: ArrayLike, modalities: Sequence[str], sure: float
) -> dict[str, Any]:
    """Count what the classifier would choose.

    "confusion" is true modality -> chosen modality -> images; "accuracy" the share of images at their own modality, of
    those whose modality the student knows ("n"), and "per_modality" that of each; "unsure" counts, per true modality,
    the images whose chosen one has a probability below `sure`. "unknown" are the true modalities that the student does
    not know, or "" where nobody does: their images were routed as chosen, all others as told.

    Args:
        true: Modality of each of N images or volumes.
        probabilities: (N, M) of the student's modalities.
        modalities: Their M names.
        sure: Probability from which on a choice counts as sure.
    """
    p = np.asarray(probabilities)
    chosen = [modalities[number] for number in p.argmax(1)]
    names = sorted(set(true))
    confusion = {name: dict.fromkeys(modalities, 0) for name in names}
    unsure = dict.fromkeys(names, 0)
    for name, other, confidence in zip(true, chosen, p.max(1), strict=True):
        confusion[name][other] += 1
        unsure[name] += int(confidence < sure)
    known = [name for name in names if name and name in modalities]  # without a name it may be any
    n, right = sum(sum(confusion[name].values()) for name in known), sum(confusion[name][name] for name in known)
    return {
        "accuracy": right / n if n else None,
        "n": n,
        "per_modality": {name: confusion[name][name] / sum(confusion[name].values()) for name in known},
        "confusion": confusion,
        "unsure": unsure,
        "sure_from": sure,
        "unknown": [name for name in names if name not in known],
    }


def describe_routing(block: Mapping[str, Any], kind: str) -> Iterator[str]:
    """The same as sentences; `kind` is "image" or "volume"."""
    unsure = block["unsure"]
    if block["n"]:
        known = sum(count for name, count in unsure.items() if name not in block["unknown"])
        yield (
            f"Told nothing, the student finds the modality of {block['accuracy']:.1%} of {block['n']:,} {kind}s"
            f"{f' (it is unsure of {known:,})' if known else ''}; the scores are those with the modality told."
        )
    for name in block["unknown"]:
        counts = sorted(block["confusion"][name].items(), key=lambda entry: -entry[1])
        listed = ", ".join(f"{other} {count:,}" for other, count in counts if count)
        doubt = f"unsure of {unsure[name]:,}" if unsure[name] else "unsure of none"
        yield (
            f"The student does not know the modality {name or 'of these images'}: each {kind} was segmented as the one "
            f"that its classifier found most likely: {listed}; {doubt}."
        )
