from __future__ import annotations

import math
from pathlib import Path

import pytest

from segdistill.metrics.paired import Difference
from segdistill.report.compare import COLUMNS, SCORES, Comparison, Group, Line, markdown, write_comparison

DICE, HD95, NSD, ALARMS = SCORES
NASTY = "a|b <script>alert(1)</script>"


def line(score=DICE, mean=0.1, half=0.02, *, pairs=60, groups=20, equal=False, label="polyp"):
    found = Difference(0.5, 0.5 + mean, mean, mean - half, mean + half, pairs=pairs, groups=groups, equal=equal)
    return Line(label, score, "px", found)


def comparison(*lines, other="kd", notes=("One training each.",)):
    return Comparison("supervised", other, "patient", lines or (line(),), notes)


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        (line(), "better"),
        (line(mean=-0.1), "worse"),
        (line(HD95, mean=-9, half=2), "better"),
        (line(ALARMS, mean=0.3, half=0.1), "worse"),
        (
            line(mean=0.01, half=0.031),
            "no difference can be told (the interval includes 0; "
            "between these two, 20 patients, about 3.1 Dice points are needed)",
        ),
        (
            line(HD95, mean=1, half=4),
            "no difference can be told (the interval includes 0; "
            "between these two, 20 patients, about 4.0 px are needed)",
        ),
        (line(groups=1, pairs=3), "too few for a claim (1 patient; at least 6 are needed)"),
        (line(mean=0, half=0, equal=True), "no difference: every score is the same"),
        (line(mean=math.nan, pairs=0, groups=0), "nothing to compare"),
    ],
)
def test_verdicts_in_words(shown, words):
    assert comparison().words(shown) == words


def test_a_row_of_the_table():
    assert comparison().cells(line()) == (
        "polyp", "Dice", "60 (20 patients)", "0.500", "0.600", "+0.100 [+0.080, +0.120]", "better",
    )  # fmt: skip
    assert comparison().cells(line(HD95, mean=-9, half=2))[1:6:4] == ("HD95 [px]", "-9.0 [-11.0, -7.0]")
    assert comparison().cells(line(mean=math.nan, pairs=0, groups=0))[3:6] == ("0.500", "–", "–")
    assert comparison().cells(line(mean=-0.0001, half=0, equal=False))[5] == "0.000 [0.000, 0.000]"


def test_markdown_tables_have_their_columns_whatever_the_names():
    groups = [Group(NASTY, ["runs/a"], [], [0.7]), Group("kd", ["x0", "x1"], [0, 1], [0.7, 0.8])]
    text = markdown(groups, [comparison(line(), line(HD95), other=NASTY)])
    tables = [row.replace(r"\|", "") for row in text.splitlines() if row.startswith("|")]
    assert [row.count("|") for row in tables] == [len(COLUMNS) + 1] * 4 + [6] * 4
    assert "| kd | 0, 1 | 0.700, 0.800 | 0.750 ± 0.071 | x0, x1 |" in text
    assert "\n<" not in text.replace(r"\<", "")
    assert "- One training each." in text


def test_the_page_is_whole_escaped_and_repeatable(tmp_path: Path) -> None:
    groups = [Group("supervised", ["runs/a"], [0], [0.7])]
    shown = [comparison(line(), line(NSD, mean=math.nan, pairs=0, groups=0), other=NASTY)]
    write_comparison(tmp_path / "größe", groups, shown)
    page = (tmp_path / "größe" / "compare.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "http" not in page
    assert page.count("<svg") == 1
    assert "▲" in page
    assert "--accent" in page
    first = {path.name: path.read_bytes() for path in (tmp_path / "größe").iterdir()}
    assert first.keys() == {"compare.md", "compare.html"}
    write_comparison(tmp_path / "größe", groups, shown)
    assert {path.name: path.read_bytes() for path in (tmp_path / "größe").iterdir()} == first


@pytest.mark.parametrize(
    ("score", "mean", "expected"), [(DICE, 0.1, 75), (DICE, -0.9, 0), (HD95, 10, 75), (NSD, 0, 50)]
)
def test_the_bar_shows_the_mean(score, mean, expected):
    low, middle, high = line(score, mean, half=0.1 * score.point).place
    assert middle == pytest.approx(expected)
    assert 0 <= low <= middle <= high <= 100
