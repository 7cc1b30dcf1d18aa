"""What each seed says of a difference, and what the first of them say together; used by results_tables.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Entry = dict[str, Any]  # a file of benchmarks/results
FEWEST = 3  # seeds of a claim


def seeds_table(pairs: dict[str, tuple[dict[int, Entry], dict[int, Entry]]], gap: Callable[..., str]) -> str:
    """Markdown: a row per seed, then one for the first three, four, ... together.

    Args:
        pairs: By title, (runs, their controls) by seed.
        gap: (runs, controls) -> their difference with its interval over images and seeds.
    """
    seeds = [seed for seed in next(iter(pairs.values()))[0] if all(seed in c for _, c in pairs.values())]
    titles = [f"{title}, {kind}" for title in pairs for kind in ("test", "validation")]
    lines = [f"| seeds | {' | '.join(titles)} |", "|---" * (1 + len(titles)) + "|"]
    for seed in seeds:
        cells = [f"{of(runs[seed]) - of(controls[seed]):+.3f}" for runs, controls in pairs.values() for of in KINDS]
        lines.append(f"| {seed} | {' | '.join(cells)} |")
    for count in range(FEWEST, len(seeds) + 1):
        first = seeds[:count]
        cells = [gap({s: runs[s] for s in first}, controls) + " |" for runs, controls in pairs.values()]
        lines.append(f"| {first[0]} to {first[-1]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def of_test(run: Entry) -> float:
    """Its test Dice."""
    return float(run["summary"]["mean"]["dice"]["mean"])


def of_validation(run: Entry) -> float:
    """Its best validation Dice."""
    return float(run["summary"]["run"]["best validation Dice"])


KINDS = (of_test, of_validation)
