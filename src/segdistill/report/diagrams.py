"""Charts of what scores depend on: the size of the object, the student's own probability. As figures.py draws them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..metrics.breakdown import SizeThird
from .figures import ACCENT, BAND, INK, MAX_TICKS, _svg, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDE_RANGE = 8  # largest / smallest share from which on the axis is logarithmic
DOT = 2.4  # points


def size_chart(shares: Sequence[float], dice: Sequence[float], thirds: Sequence[SizeThird], kind: str = "image") -> str:
    """SVG: Dice of single images over the share of the image that the reference covers, and the mean of each third."""
    x, y = 100 * np.array(shares, dtype=np.float64), np.array(dice, dtype=np.float64)

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

        for third in thirds:
            ends = 100 * third.low, 100 * third.high
            if not math.isnan(number(third.dice["low"])):
                axes.fill_between(ends, third.dice["low"], third.dice["high"], color=BAND, linewidth=0)
            axes.plot(ends, [third.dice["mean"]] * 2, color=INK, linewidth=1.4)
        keep = np.linspace(0, len(x) - 1, min(len(x), MAX_TICKS)).astype(int)
        nothing = np.full(len(keep), math.nan)  # one path for all dots, interrupted by NaN: small
        dots = np.stack([x[keep], x[keep] * (1 + 1e-4), nothing], 1).ravel()
        heights = np.stack([y[keep], y[keep], nothing], 1).ravel()
        axes.plot(dots, heights, color=ACCENT, linewidth=DOT, solid_capstyle="round")
        if x.max() > WIDE_RANGE * x.min():
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            axes.locator_params(axis="x", nbins=5)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set(ylim=(-0.03, 1.03), xlabel=f"reference, % of the {kind}", ylabel="Dice")

    return _svg(draw)


def reliability_chart(table: Sequence[Mapping[str, float]]) -> str:
    """SVG of `Calibration.table`: share of right pixels over the probability of the chosen class, with the diagonal."""
    confidence, accuracy = _columns(table)

    def draw(axes: Axes) -> None:
        start = math.floor(10 * min(confidence.min(), accuracy.min(), 0.9)) / 10
        axes.plot([start, 1], [start, 1], color=INK, linewidth=1, linestyle=(0, (4, 2)))
        axes.vlines(confidence, confidence, accuracy, color=BAND, linewidth=4)
        axes.plot(confidence, accuracy, color=ACCENT, linewidth=1.2, marker="o", markersize=3)
        low = math.floor(10 * min(float(confidence.min()), 0.9)) / 10
        axes.set(xlim=(low, 1.01), ylim=(start, 1.01))
        axes.set(xlabel="probability of the chosen class", ylabel="share that is right")

    return _svg(draw)


def confidence_chart(table: Sequence[Mapping[str, float]]) -> str:
    """SVG of `Calibration.table`: percent of pixels over the probability of the chosen class, logarithmic."""
    confidence, _ = _columns(table)
    count = np.array([row["count"] for row in table], dtype=np.float64)
    percent = 100 * count / count.sum()

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

        floor = 10 ** math.floor(math.log10(percent.min()) - 0.01)
        axes.bar(confidence, percent - floor, width=0.02, bottom=floor, color=ACCENT)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=5))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        low = math.floor(10 * min(float(confidence.min()), 0.9)) / 10
        axes.set(xlim=(low, 1.01), ylim=(floor, 100), xlabel="probability of the chosen class", ylabel="% of pixels")
        axes.grid(visible=False, axis="x")

    return _svg(draw)


def _columns(table: Sequence[Mapping[str, float]]) -> tuple[np.ndarray, np.ndarray]:
    """(confidence, accuracy) of the bins."""
    return np.array([row["confidence"] for row in table]), np.array([row["accuracy"] for row in table])
