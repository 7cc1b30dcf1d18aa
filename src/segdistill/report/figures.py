"""The report's pictures: charts as inline SVG, overlays as JPEG data URIs. The same data gives the same bytes.

Charts carry no text but numbers (names are HTML, where they are escaped, wrap, and need no font of matplotlib's), and
their colours are CSS variables of the page, so that they follow its light and dark scheme.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..formats import jpeg_of_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE_SIDE = 320  # pixels, the longer side of an overlay
MAX_POINTS = 200  # per line of a chart; longer series are averaged in bins
MAX_TICKS = 1000  # images drawn one by one below a histogram

# Outlines and tints. Cyan and yellow differ for every kind of colour blindness and stand out from tissue and from grey.
REFERENCE = (0, 229, 255)
PREDICTION = (255, 214, 0)
CONFUSED = (255, 64, 200)
TINT = 0.4

# matplotlib wants colours, the page has variables: these stand for them until the SVG is written.
INK, FAINT, ACCENT, BAND = "#010101", "#020202", "#030303", "#040404"
SERIES = (ACCENT, "#050101", "#050202", "#050303", "#050404", "#050505")  # lines of one chart; more of them repeat
SMALL, LARGE = (3.4, 1.9), (5.4, 2.4)  # inches: three and two charts in a row
HIDDEN = "Dice on training images whose masks the budget hides"
_VARIABLES = {INK: "var(--muted)", FAINT: "var(--line)", ACCENT: "var(--accent)", BAND: "var(--band)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(SERIES[1:], 1)
}
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "segdistill",
    "svg.fonttype": "none",
    "font.size": 8,
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, so the layout is the same everywhere
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": FAINT,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.linewidth": 0.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.limits": (-3, 5),
}


@dataclass(frozen=True)
class Panel:
    """One small chart and what stands above it."""

    name: str
    note: str
    svg: str
    legend: tuple[tuple[str, str, str], ...] = ()  # of several lines: (name, last value, CSS colour)


def dice_histogram(values: Sequence[float], kind: str = "image") -> str:
    """SVG: histogram of the Dice of single images (or volumes) in 20 bins, a tick for each, a line at the median."""
    dice = _finite(values)

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        counts, _, _ = axes.hist(dice, bins=20, range=(0, 1), color=ACCENT, rwidth=0.9)
        top = max(1.0, float(np.max(counts)))
        if len(dice) <= MAX_TICKS:  # one path for all ticks, interrupted by NaN: small
            x = np.repeat(np.sort(dice), 3)
            y = np.tile([-0.1 * top, -0.03 * top, math.nan], len(dice))
            axes.plot(x, y, color=INK, linewidth=0.6)
        if len(dice):
            axes.axvline(float(np.median(dice)), color=INK, linewidth=1, linestyle=(0, (4, 2)))
        axes.set(xlim=(0, 1), ylim=(-0.12 * top, 1.05 * top), xlabel=f"Dice of one {kind}", ylabel=f"{kind}s")
        axes.set_yticks([t for t in MaxNLocator(4, integer=True).tick_values(0, top) if 0 <= t <= top])
        axes.grid(visible=False, axis="x")

    return _svg(draw)


def log_panels(log: Sequence[Mapping[str, object]]) -> dict[str, list[Panel]]:
    """Charts of log.jsonl by stage: validation scores, loss, each term, learning rate, over the stage's iterations."""
    stages: dict[str, list[Mapping[str, object]]] = {}
    for line in log:
        stages.setdefault(str(line["stage"]), []).append(line)
    return {stage: _validation_panels(lines) + _training_panels(lines) for stage, lines in stages.items()}


def comparison(
    image: NDArray[np.uint8], reference: NDArray[np.uint8], prediction: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Draw both outlines into `image` (H, W, 3) and tint what differs; label maps (H, W).

    Where the outlines agree, the prediction's is drawn narrow on top of the reference's, so that both are seen.
    Tints: REFERENCE where only the reference has an object (missed), PREDICTION where only the prediction has one
    (added), CONFUSED where both have one, of different classes.
    """
    out = image.astype(np.float32)
    has, found = reference > 0, prediction > 0
    tints = ((has & ~found, REFERENCE), (found & ~has, PREDICTION), (has & found & (reference != prediction), CONFUSED))
    for where, colour in tints:
        out[where] = (1 - TINT) * out[where] + TINT * np.array(colour)
    edge, line = grow(outline(reference)), outline(prediction)
    out[grow(edge) | grow(grow(line))] *= 0.35  # a dark rim: light lines are seen on light tissue too
    out[grow(line)] = PREDICTION
    out[edge] = REFERENCE
    out[line] = PREDICTION
    return out.round().astype(np.uint8)


def class_overlay(
    image: NDArray[np.uint8], labels: NDArray[np.uint8], colours: Sequence[tuple[int, int, int]]
) -> NDArray[np.uint8]:
    """Draw the label map (H, W) into `image` (H, W, 3) in the colours of its classes: tint and outline."""
    out = image.astype(np.float32)
    palette = np.array(colours, dtype=np.float32)[labels]
    inside = labels > 0
    out[inside] = (1 - TINT) * out[inside] + TINT * palette[inside]
    edge = grow(outline(labels))
    out[grow(edge) & ~edge & ~inside] *= 0.35
    out[edge & inside] = palette[edge & inside]
    return out.round().astype(np.uint8)


def outline(labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The pixels of objects that touch another class or the border of the picture, by a side; (H, W)."""
    padded = np.pad(labels, 1)
    inner = padded[1:-1, 1:-1]
    vertical = (padded[:-2, 1:-1] != inner) | (padded[2:, 1:-1] != inner)
    horizontal = (padded[1:-1, :-2] != inner) | (padded[1:-1, 2:] != inner)
    return np.asarray((inner > 0) & (vertical | horizontal))


def grow(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask and all pixels beside it, by a side; (H, W)."""
    out = mask.copy()
    out[1:] |= mask[:-1]
    out[:-1] |= mask[1:]
    out[:, 1:] |= mask[:, :-1]
    out[:, :-1] |= mask[:, 1:]
    return out


def picture_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) of the overlay of such an image: its longer side has PICTURE_SIDE pixels.

    Small images are enlarged, because lines drawn at their own size would cover the objects.
    """
    scale = PICTURE_SIDE / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def enlarged(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A small picture (H, W, 3) with each pixel repeated, so that its longer side has at least PICTURE_SIDE pixels."""
    times = max(1, -(-PICTURE_SIDE // max(image.shape[:2])))
    return image.repeat(times, 0).repeat(times, 1)


def data_uri(image: NDArray[np.uint8]) -> str:
    """JPEG data URI of (H, W, 3). Without colour subsampling, which would blur thin coloured lines."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg_of_image(image)).decode("ascii")


def number(value: object) -> float:
    """`value` as a float; NaN where it is no finite number."""
    return float(value) if isinstance(value, Real) and math.isfinite(value) else math.nan


def _finite(values: Sequence[float]) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    return array[np.isfinite(array)]


def _training_panels(lines: Sequence[Mapping[str, object]]) -> list[Panel]:
    points: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        if "loss" not in line:
            continue
        terms = line.get("terms")
        named = {"loss": line["loss"], **(terms if isinstance(terms, Mapping) else {}), "learning rate": line.get("lr")}
        for name, value in named.items():
            points.setdefault(name, []).append((number(line["iteration"]), number(value)))
    return [panel for name, values in points.items() if (panel := _curve_panel(name, values))]


def _validation_panels(lines: Sequence[Mapping[str, object]]) -> list[Panel]:
    """The scored network's curves, what was watched beside its mean, and all of them where the truth was hidden."""
    scored, watched, hidden = (_scores(lines, kind) for kind in ("validation", "watched", "hidden"))
    if len(scored) == 2 and "dice" in scored:  # the mean and the only class: one curve
        scored = {"dice": scored["dice"]}
    panels = []
    if watched and "dice" in scored and len(_finite_points(scored["dice"])[0]):
        panels.append(_several_panel("validation Dice", {"student": scored.pop("dice")} | watched))
    names = {name: "validation Dice" if name == "dice" else f"validation Dice, {name}" for name in scored}
    panels += [_curve_panel(names[name], values, score=True) for name, values in scored.items()]
    if hidden:
        panels.append(_several_panel(HIDDEN, hidden))
    return [panel for panel in panels if panel]


def _scores(lines: Sequence[Mapping[str, object]], kind: str) -> dict[str, list[tuple[float, float]]]:
    """The (iteration, score) points of an entry of the log, by name; the student first."""
    points: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        scores = line.get(kind)
        for name, value in scores.items() if isinstance(scores, Mapping) else ():
            points.setdefault(name, []).append((number(line["iteration"]), number(value)))
    return dict(sorted(points.items(), key=lambda item: item[0] != "student"))


def _curve_panel(name: str, points: Sequence[tuple[float, float]], *, score: bool = False) -> Panel | None:
    """The curve of (iteration, value) points; None where no value is finite."""
    x, y = _finite_points(points)
    if not len(x):
        return None
    missing = len(points) - len(x)
    best = (float(x[y.argmax()]), float(y.max())) if score else None
    note = f"best {best[1]:.3f} at {best[0]:,.0f}" if best else f"last {y[-1]:.3g}"
    return Panel(name, note + f", {missing:,} not finite" * (missing > 0), _curves([(x, y)], score=score, ring=best))


def _several_panel(name: str, scores: Mapping[str, Sequence[tuple[float, float]]]) -> Panel | None:
    """Scores in one chart, with their last values; the best of the scored one is marked. None without a finite one."""
    finite = {label: curve for label, points in scores.items() if len((curve := _finite_points(points))[0])}
    if not finite:
        return None
    legend = tuple(
        (label, f"{y[-1]:.3f}", _VARIABLES[SERIES[i % len(SERIES)]]) for i, (label, (_, y)) in enumerate(finite.items())
    )
    if name == HIDDEN:
        alone = f"last {legend[0][1]}" if len(finite) == 1 else ""
        return Panel(name, alone, _curves(list(finite.values()), score=True), legend if not alone else ())
    x, y = finite["student"]
    best = (float(x[y.argmax()]), float(y.max()))
    note = f"best of the student {best[1]:.3f} at {best[0]:,.0f}"
    return Panel(name, note, _curves(list(finite.values()), score=True, ring=best), legend)


def _finite_points(points: Sequence[tuple[float, float]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = np.array(points, dtype=np.float64).T
    keep = np.isfinite(x) & np.isfinite(y)
    return x[keep], y[keep]


def _curves(
    curves: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]],
    *,
    score: bool = False,
    ring: tuple[float, float] | None = None,
) -> str:
    """SVG of curves y over the iteration x, the first on top; of scores the axis is 0..1."""

    def draw(axes: Axes) -> None:
        for i, (x, y) in reversed(list(enumerate(curves))):
            colour = SERIES[i % len(SERIES)]
            if len(x) <= MAX_POINTS:
                axes.plot(x, y, color=colour, linewidth=1.2, marker="." if len(x) <= 40 else "", markersize=4)
                continue
            bins = list(zip(np.array_split(x, MAX_POINTS), np.array_split(y, MAX_POINTS), strict=True))
            middle = [float(a.mean()) for a, _ in bins]
            if len(curves) == 1:
                low, high = np.array([np.percentile(b, (10, 90)) for _, b in bins]).T
                axes.fill_between(middle, low, high, color=BAND, linewidth=0)
            axes.plot(middle, [float(b.mean()) for _, b in bins], color=colour, linewidth=1.2)
        if ring:
            axes.plot(*ring, marker="o", markersize=6, markerfacecolor="none", markeredgecolor=INK)
        if score:
            axes.set_ylim(0, 1)
        axes.set_xlabel("iteration")
        axes.locator_params(nbins=5)

    return _svg(draw, SMALL if len(curves) == 1 else LARGE)


def _svg(draw: Callable[[Axes], None], size: tuple[float, float] = SMALL) -> str:
    """One small chart to be placed inline: scales with its frame; no prolog, metadata, or ids that nothing uses."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a matplotlibrc of the user's must not change the report
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    view = re.search(r'viewBox="[^"]*"', text)
    body = text[text.index(">", text.index("<svg")) + 1 :]
    body = re.sub(r'<style type="text/css">.*?</style>|<!--.*?-->|(?<=<g) id="[^"]*"|\n *', "", body, flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, variable)
    return f'<svg {view.group() if view else ""} aria-hidden="true">{body}'
