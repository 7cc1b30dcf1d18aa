"""docs/results.md says what benchmarks/results hold."""

import sys

import numpy as np
import pytest
from helpers import benchmark


@pytest.fixture(scope="module")
def tables():
    return benchmark("results_tables")


def test_the_document_is_what_the_results_say(tables, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["results_tables.py", "--check"])
    assert tables.main() == 0


def test_a_document_that_says_something_else_is_found(tables, monkeypatch, tmp_path):
    text = tables.DOCUMENT.read_text(encoding="utf-8")
    (tmp_path / "results.md").write_text(text.replace("| trio |", "| trio (better) |"), encoding="utf-8")
    monkeypatch.setattr(tables, "DOCUMENT", tmp_path / "results.md")
    monkeypatch.setattr(sys, "argv", ["results_tables.py", "--check"])
    assert tables.main() == 1
    monkeypatch.setattr(sys, "argv", ["results_tables.py"])
    assert tables.main() == 0
    assert (tmp_path / "results.md").read_text(encoding="utf-8") == text


def entry(dice, seconds=60.0):
    """As campaign.py writes it."""
    mean = {"mean": float(np.mean([*dice.values()])), "low": 0.1, "high": 0.9}
    summary = {
        "mean": {"dice": mean, "hd95": {"mean": 12.0}},
        "ms_per_image": 7.0,
        "run": {"training seconds": seconds},
        "students": {"unet": {"dice": {"mean": 0.25}, "hd95": {"mean": 20.0}, "parameters": 1_000_000}},
    }
    return {"summary": summary, "images": dice, "last": 0.4, "parameters": 2_500_000}


def test_a_row_is_paired_by_seed_and_image(tables):
    rng = np.random.default_rng(0)
    names = [f"set/{i}.png" for i in range(40)]
    base = {seed: entry(dict(zip(names, rng.random(40) / 2, strict=True))) for seed in (0, 1, 2)}
    better = {
        seed: entry({name: dice + 0.1 for name, dice in reversed(base[seed]["images"].items())}) for seed in (0, 2)
    }
    cells = [cell.strip() for cell in tables.row("ours", better, base).strip("|").split("|")]
    means = [better[seed]["summary"]["mean"]["dice"]["mean"] for seed in (0, 2)]
    assert cells == [
        "ours",
        "0, 2",
        f"{np.mean(means):.3f} ({min(means):.3f} to {max(means):.3f})",
        "+0.100 [+0.100, +0.100]",
        "12.0",
        "0.400",
        "2.5",
        "7",
        "1",
    ]
    assert tables.row("ours", {1: base[1]}, base).count("[0.100, 0.900]") == 1
    assert tables.parts(better) == ["| – its unet alone | 0, 2 | 0.250 (0.250 to 0.250) | | 20.0 | | 1.0 | | |"]
    assert tables.gap({7: base[0]}, base) == "no seed in common"
