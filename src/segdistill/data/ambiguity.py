"""Which raw mask values do not say what classes they mean, and the way out that fits them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from ..types import UserError

if TYPE_CHECKING:
    from .labels import MaskValues

MAX_VALUES = 32  # unless more classes are named: more are grey levels or instance numbers
END = 1 << 24  # raw values lie below
GREY_LEVELS = "pass --threshold 127 to make what is above it foreground"
NUMBERED = "pass --threshold 0 to make all above 0 foreground"
_EITHER = (
    "pass --threshold 0 if they number objects, which are then foreground, or --threshold 127 if they are grey levels"
)
WHITE = 0xFFFFFF


def most_values(named: int) -> int:
    """How many values may be classes, of which `named` have names."""
    return max(MAX_VALUES, named)


def threshold_for(values: Sequence[int], in_colour: bool) -> str:
    """The way out of so many (ascending) values: of numbered objects --threshold 127 would lose the first 127."""
    if in_colour:
        return _EITHER
    dense = len(values) > 0.9 * (values[-1] - values[0])  # a few of the objects may be gone
    if values[-1] > 255 or values[-1] <= 127 or (dense and values[-1] < 255):
        return NUMBERED
    return _EITHER if dense else GREY_LEVELS


def check_values(found: MaskValues, classes: Sequence[str] | None) -> None:
    """Stop where the values do not say which classes they mean.

    Raises:
        UserError: ambiguous values that are not all named, or none that could be foreground.
    """
    raw, listed = found.values, found.listed()
    all_named = classes is not None and len(classes) == len(raw)
    if raw[0] < 0 or raw[-1] >= END:
        raise UserError(f"mask values {listed}: class ids must lie in 0..{END - 1}; renumber them")
    if found.jpeg and len(raw) > 2:
        raise UserError(f"mask values {listed} in JPEG files, whose values are not exact; {GREY_LEVELS}")
    if classes is None and len(raw) == 1:
        # 1, or what is above a threshold, is foreground once named; another value is not known for that
        full = "--classes background,polyp" + (" --threshold 0" if raw[0] > 1 else "")
        raise UserError(
            f"all {found.masks} masks hold only the value {listed}, so there is no foreground to learn; give masks "
            f"that show some beside background; if that is right, name the classes with {full}"
        )
    if all_named:
        return
    if found.packed_rgb and raw[0] != 0:
        raise UserError(f"mask colours {listed}: none is black (background); name all in this order with --classes")
    if found.packed_rgb:
        if found.white_apart and len(raw) == 3 and raw[-1] == WHITE:
            raise UserError(
                f"mask colours {listed}: no mask holds both {found.shown(raw[1])} and white, so they may be one class "
                "saved in two ways; name all in this order with --classes, or pass --threshold 0 to make all but black "
                "foreground"
            )
        return
    if len(raw) < 3:
        return
    if raw == (*range(len(raw) - 1), 255):
        raise UserError(
            f"mask values {listed}: 255 beside small ids is ambiguous; name all in this order with --classes, or pass "
            "--threshold 0 to make all but 0 foreground, or rewrite 255"
        )
    if all(value < 16 or 240 <= value <= 255 for value in raw) and raw[0] < 16 <= raw[-1]:
        raise UserError(
            f"mask values {listed} scatter around 0 and 255; {GREY_LEVELS}, or name all in this order with --classes"
        )
    if {255, 65535} <= {*raw}:
        raise UserError(
            f"mask values {listed}: 255 beside 65535, so masks of 8 and of 16 bits may mean one class by both; "
            f"{GREY_LEVELS}, or name all in this order with --classes"
        )
    if _smooth(raw):
        raise UserError(
            f"mask values {listed} lie between 0 and 255 as in masks that were resized smoothly; {GREY_LEVELS}, or "
            "name all in this order with --classes"
        )


def _smooth(raw: Sequence[int]) -> bool:
    """Whether grey levels are rather what resizing makes of 0 and 255 than classes: two or more between, unevenly."""
    if len(raw) < 4 or (raw[0], raw[-1]) != (0, 255):
        return False
    steps = [high - low for low, high in pairwise(raw)]
    # Means over n pixels, 2x2, 3x3, ..., are even, too, but for rounding; classes at 0, 51, ..., 255 are none of them
    n = len(raw) - 1
    square = math.isqrt(n) ** 2 == n
    means = square and all(abs(value - 255 * i / n) < 1 for i, value in enumerate(raw))
    return means or max(steps) - min(steps) > 1
