from __future__ import annotations

import base64
import io
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segdistill.metrics.routing import summarise_routing
from segdistill.report.html import write_report
from segdistill.types import Remarks, UserError

from .reports import calibrated, comparison, example, full_report, report, score, statistic, summary

VOID = {"wbr", "meta", "img", "br", "path", "use", "link", "input", "hr"}
NASTY = "<script>alert(1)</script>.png"


class Page(HTMLParser):
    """Tags, attributes, text by section; complains of tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: dict[str, str] = {}
        self.rows: list[list[str]] = []
        self.section = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = dict(attributes)["id"] or ""
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text[self.section] = self.text.get(self.section, "") + data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data if "small" not in self.open else f" [{data}]"

    def sections(self) -> list[str | None]:
        return [attributes["id"] for tag, attributes in self.tags if tag == "section"]


def render(tmp_path: Path, **changes: Any) -> tuple[str, Page]:
    path = tmp_path / "bericht ü" / "report.html"
    path.parent.mkdir(exist_ok=True)
    write_report(path, report(**changes))
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    text = path.read_bytes().decode("utf-8")
    return text, Page(text)


def test_all_parts_are_there_in_order(tmp_path: Path) -> None:
    text, page = render(tmp_path)
    assert page.sections() == [
        *("headline", "warnings", "scores", "examples", "cases", "distribution", "training", "student", "run"),
    ]
    assert text.startswith("<!DOCTYPE html>")
    assert "<title>supervised on kvasir</title>" in text
    for section, expected in {
        "headline": ["0.713", "0.663–0.763", "8 images, 4 patients", "Small set: careful.", "other hospitals"],
        "warnings": ["4 test images are also in the training split"],
        "training": ["main", "validation Dice", "best 0.710 at 30", "loss", "seg", "kd", "learning rate"],
        "student": ["unet", "7.3 MB"],
        "run": [
            "segdistill train kvasir --labelled 60",
            "abc123",
            "1,200",
            "255 -> polyp",
            "method: supervised\nseed: 0",
        ],
    }.items():
        for phrase in expected:
            assert phrase in page.text[section], phrase


def test_headline_tells_what_failed(tmp_path: Path) -> None:
    _, page = render(tmp_path)
    told = page.text["headline"]
    assert "polyp: 2 of 4 scored images have a Dice below 0.5" in told
    assert "nothing was found in 2 of the 5 images that show it" in told
    assert "something was found in 1 of the 3 images without it" in told


def test_the_headline_calls_only_test_scores_test_scores(tmp_path: Path) -> None:
    assert "Mean test Dice" in render(tmp_path)[1].text["headline"]
    told = render(tmp_path, scored="val")[1].text["headline"]
    assert "Mean Dice (val)" in told
    assert "These are not test images (split: val)" in told
    assert "Mean test Dice" not in told


def test_tables_hold_the_numbers(tmp_path: Path) -> None:
    _, page = render(tmp_path)
    rows = [[" ".join(cell.split()) for cell in row] for row in page.rows]
    dice = "0.713 [0.663–0.763]"
    assert ["polyp", "6", dice, "0.713", "0.713", *[dice] * 4] in rows
    distances = ["40.0 [37.5–42.5]", "10.0 [9.5–10.5]"]
    assert ["polyp", *distances, dice, dice, "8", "2", "1 [33.3 % of 3]", "2"] in rows
    header = next(row for row in rows if row[0] == "Boundary and empty masks")
    assert header[1:4] == ["HD95 (mm)", "ASSD (mm)", "NSD at 2 mm"]


def test_several_classes_and_datasets(tmp_path: Path) -> None:
    scored = summary(polyp=0.8, tool=0.6)
    scored["datasets"] = {"north": summary(polyp=0.9, tool=0.7), "south": summary(polyp=0.5, tool=None)}
    _, page = render(
        tmp_path,
        summary=scored,
        classes=["background", "polyp", "tool"],
        colours=[(0, 0, 0), (255, 0, 0), (0, 255, 0)],
        scores=[score("a", "polyp", 0.8), score("a", "tool", 0.6)],
        examples=[example("a", "worst", classes=3)],
    )
    assert [row[0] for row in page.rows].count("mean of classes") == 6
    assert all(name in page.text["scores"] for name in ("All datasets", "north", "south"))
    images = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert images == [f"{t} of a, worst case" for t in ("Image", "Reference", "Prediction", "Comparison")]
    assert "wrong class" in page.text["examples"]


def test_worst_comes_first(tmp_path: Path) -> None:
    _, page = render(tmp_path)
    shown = page.text["examples"]
    assert shown.index("w.png") < shown.index("m.png") < shown.index("b.png")
    assert "Dice 0.12, polyp" in shown


def test_nothing_is_loaded_and_nothing_runs(tmp_path: Path) -> None:
    whole = full_report("a.png", "../a.png")
    write_report(tmp_path / "full.html", whole)
    page = Page((tmp_path / "full.html").read_text(encoding="utf-8"))
    assert not {"script", "link", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "srcset", "action"):
                assert value
                assert value.startswith(("data:image/jpeg;base64,", "#")) or (tag, value) == ("a", "../a.png")
    targets = {attributes.get("id") for _, attributes in page.tags}
    assert {str(a["href"])[1:] for tag, a in page.tags if tag == "a"} <= targets | {"./a.png"}


def test_pictures_are_small_and_decodable(tmp_path: Path) -> None:
    _, page = render(tmp_path, examples=[example("a", "worst", shape=(600, 900)), example("b", "best", shape=(40, 60))])
    sources = [str(attributes["src"]) for tag, attributes in page.tags if tag == "img"]
    sizes = [Image.open(io.BytesIO(base64.b64decode(s.partition(",")[2]))).size for s in sources]
    assert sizes == [(320, 213)] * 4


def test_names_cannot_inject(tmp_path: Path) -> None:
    quote = '"><img src=x onerror=alert(1)>'
    text, page = render(
        tmp_path,
        title=NASTY,
        command=NASTY,
        facts={NASTY: quote},
        config=NASTY,
        classes=["background", NASTY],
        splits=[{NASTY: NASTY}],
        mapping=NASTY,
        log=[
            {"stage": NASTY, "iteration": 1, "loss": 1.0, "lr": 0.1, "terms": {quote: 1.0}},
            {"stage": NASTY, "iteration": 1, "validation": {"dice": 0.1, NASTY: 0.1, quote: 0.2}},
        ],
        summary=summary(**{NASTY: 0.5}) | {"note": NASTY, "datasets": {quote: summary(**{NASTY: 0.5})}},
        scores=[score(NASTY, NASTY, 0.5)],
        examples=[replace(example(quote, "worst"), caption=NASTY), example(NASTY, "best")],
        student={quote: NASTY},
        warnings=[NASTY, quote],
    )
    assert "<script" not in text
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert sum(tag == "img" for tag, _ in page.tags) == 4
    assert NASTY in page.text["examples"]


def test_dollars_and_foreign_scripts_in_names(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    name = r"$\frac{ 息肉 %s {{ x }}"
    _, page = render(
        tmp_path,
        classes=["background", name],
        summary=summary(**{name: 0.5}),
        scores=[score("a", 1, 0.5)],
        log=[{"stage": name, "iteration": 1, "loss": 1.0, "lr": 0.1, "terms": {name: 1.0}}],
    )
    for section in ("headline", "scores", "distribution", "training"):
        assert name in page.text[section]
    assert not recwarn.list


def test_file_names_that_utf8_cannot_hold(tmp_path: Path) -> None:
    text, _ = render(tmp_path, examples=[example("bad\udcff.png", "worst")])
    assert "bad\\udcff.png" in text


def test_undefined_scores_are_dashes(tmp_path: Path) -> None:
    empty = summary(polyp=None)
    empty["classes"]["polyp"]["false_positive_rate"] = None
    text, page = render(tmp_path, summary=empty, scores=[score("a", 1, math.nan)])
    assert "No image could be scored" in page.text["headline"]
    assert "No image has a Dice" in page.text["distribution"]
    row = next(row for row in page.rows if row[0] == "polyp")
    assert [cell.strip() for cell in row[1:]] == ["0", *"–" * 7]
    assert "None" not in text
    assert "nan" not in " ".join(page.text.values()).split()


def test_evaluation_without_training_or_pictures(tmp_path: Path) -> None:
    _, page = render(
        tmp_path, log=[], examples=[], student={}, warnings=[], splits=[], mapping="", config="", facts={}, command=""
    )
    assert page.sections() == ["headline", "scores", "examples", "cases", "distribution", "run"]
    assert "No overlays were made" in page.text["examples"]


def test_log_with_broken_values(tmp_path: Path) -> None:
    log: list[Mapping[str, object]] = [
        {"stage": "main", "iteration": 1, "loss": math.nan, "lr": 0.1, "terms": {"seg": math.inf, "kd": None}},
        {"stage": "main", "iteration": 2, "loss": 1.0, "lr": 0.1, "terms": {"seg": 1.0}},
        {"stage": "main", "iteration": 2, "validation": {"dice": None, "polyp": math.nan}},
    ]
    _, page = render(tmp_path, log=log)
    assert "1 not finite" in page.text["training"]
    assert "kd" not in page.text["training"]
    assert "validation Dice" not in page.text["training"]


def test_what_the_method_says_is_shown_and_cannot_inject(tmp_path: Path) -> None:
    cells = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    quote = '"><img src=x onerror=alert(1)>'
    said = Remarks(
        ("SAM was 3 points better than the student.", NASTY), ((quote, cells), ("wide", cells.repeat(12, 1)))
    )
    text, page = render(tmp_path, remarks=said)
    assert page.sections().index("remarks") == page.sections().index("training") + 1
    for phrase in (*said.sentences, quote, "wide"):
        assert phrase in page.text["remarks"]
    assert "<script" not in text
    sources = [a["src"] for tag, a in page.tags if tag == "img" and a["alt"] in (quote, "wide")]
    sizes = [Image.open(io.BytesIO(base64.b64decode(str(s).partition(",")[2]))).size for s in sources]
    assert sizes == [(360, 240), (720, 40)]  # the small one by whole pixels
    assert "remarks" not in render(tmp_path)[1].sections()


def test_other_students_stand_beside_the_first(tmp_path: Path) -> None:
    row = {"dice": statistic(0.7), "hd95": statistic(12.0, spread=2.0), "parameters": 1_813_764}
    _, page = render(
        tmp_path,
        summary=summary(polyp=0.7126) | {"students": {"unet": row, NASTY: row | {"hd95": statistic(None)}}},
        student={"parameters": "5,250,857"},
    )
    rows = [[" ".join(cell.split()) for cell in row] for row in page.rows]
    assert ["the student above", "0.713 [0.663–0.763]", "40.0 [37.5–42.5]", "5,250,857"] in rows
    assert ["unet", "0.700 [0.650–0.750]", "12.0 [10.0–14.0]", "1,813,764"] in rows
    assert [NASTY, "0.700 [0.650–0.750]", "–", "1,813,764"] in rows
    assert "students" not in render(tmp_path)[1].sections()


def test_calibration_error_is_told_where_known(tmp_path: Path) -> None:
    assert "ECE" not in render(tmp_path)[1].text["scores"]
    assert "(ECE) 0.031" in render(tmp_path, summary=summary(polyp=0.5) | {"ece": 0.0312})[1].text["scores"]


def test_what_the_classifier_of_modalities_confuses(tmp_path: Path) -> None:
    routing = summarise_routing(["a", "a", NASTY], [[0.9, 0.1], [0.3, 0.7], [0.6, 0.4]], ("a", "b"), 0.8)
    _, page = render(tmp_path, summary=summary(polyp=0.7) | {"routing": routing})
    rows = [[" ".join(cell.split()) for cell in row] for row in page.rows]
    assert ["Modality", "taken for a", "taken for b", "right", "unsure"] in rows
    assert ["a", "1", "1", "0.500", "1"] in rows
    assert [NASTY, "1", "0", "–", "1"] in rows
    assert "50.0% of 2 images" in page.text["routing"]
    assert "routing" not in render(tmp_path)[1].sections()


def test_same_data_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "a.html", tmp_path / "b.html"
    write_report(first, report())
    write_report(second, report())
    assert first.read_bytes() == second.read_bytes()


def test_a_failure_leaves_the_old_report(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(KeyError):
        write_report(path, report(log=[{"iteration": 1}]))
    assert path.read_text(encoding="utf-8") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(UserError, match="cannot be written"):
        write_report(tmp_path / "missing" / "report.html", report())


def test_a_large_run_stays_small_and_quick(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = [f"term {i}" for i in range(6)]
    log = [
        {"stage": "main", "iteration": i, "loss": 1.0, "lr": 0.1, "terms": dict(zip(names, rng.random(6), strict=True))}
        for i in range(1, 10_001)
    ]
    examples = [example(f"{i}.png", "worst", shape=(480, 640), seed=i) for i in range(9)]  # noise: worst for JPEG
    began = time.perf_counter()
    scores = [score(f"{i}.png", 1, d) for i, d in enumerate(rng.random(100).tolist())]
    text, _ = render(tmp_path, log=log, examples=examples, scores=scores)
    assert time.perf_counter() - began < 10
    assert len(text.encode()) < 3_000_000


def test_the_worst_images_are_listed_with_links_to_their_files(tmp_path: Path) -> None:
    scores = [score(f"{i}.png", 1, i / 100) for i in range(30)]
    links = {"0.png": "../data%20%C3%BC/0.png", "w.png": "w%23.png"}
    _, page = render(tmp_path, scores=scores[::-1], links=links)
    rows = [[" ".join(cell.split()) for cell in row] for row in page.rows]
    at = rows.index(["Image", "polyp: Dice", "HD95 (mm)"])
    assert rows[at + 1 : at + 11] == [[f"{i}.png", f"{i / 100:.3f}", "12.0"] for i in range(10)]
    assert "20 more are in scores.csv" in page.text["cases"]
    found = [attributes["href"] for tag, attributes in page.tags if tag == "a" and "%" in str(attributes["href"])]
    assert found == ["w%23.png", "../data%20%C3%BC/0.png"]


def test_volumes_are_listed_whole_and_classes_that_they_lack_are_dashes(tmp_path: Path) -> None:
    scores = [score("a", "polyp", 0.9), score("b", "polyp", 0.2), score("b", "tool", 0.4), score("c", "tool", None)]
    _, page = render(
        tmp_path,
        summary=summary(polyp=0.5, tool=0.4) | {"kind": "volume"},
        classes=["background", "polyp", "tool"],
        colours=[(0, 0, 0)] * 3,
        scores=scores,
        examples=[],
    )
    rows = [[" ".join(cell.split()) for cell in row] for row in page.rows]
    at = next(i for i, row in enumerate(rows) if row[0] == "Volume")
    assert [row[0] for row in rows[at + 1 : at + 4]] == ["b", "a", "c"]
    assert rows[at + 2] == ["a", "0.900", "12.0", "–", "–"]


def test_dice_by_size_and_by_patient(tmp_path: Path) -> None:
    scores = [score(f"{i}", 1, i / 10, f"p{i % 3}", 100 * (i + 1)) for i in range(9)]
    _, page = render(tmp_path, scores=scores)
    rows = [[" ".join(cell.split()) for cell in row] for row in page.rows]
    sizes = [row for row in rows if row[0] in ("1–3 %", "4–6 %", "7–9 %")]
    assert [row[1:3:1][0] for row in sizes] == ["3", "3", "3"]
    assert [row[2].partition(" ")[0] for row in sizes] == ["0.100", "0.400", "0.700"]
    assert all("[" in row[2] for row in sizes)
    assert [row for row in rows if row[0] in ("p0", "p1", "p2")] == [
        ["p0", "3", "0.300", "0.000", "0"],
        ["p1", "3", "0.400", "0.100", "1"],
        ["p2", "3", "0.500", "0.200", "2"],
    ]
    assert "mean Dice is 0.400 (95 % interval over patients" in page.text["patients"]
    assert not {"sizes", "patients"} & set(render(tmp_path)[1].sections())


def test_calibration_is_drawn_where_known(tmp_path: Path) -> None:
    text, page = render(tmp_path, summary=summary(polyp=0.5) | calibrated())
    assert "0.060 more sure than right" in page.text["calibration"]
    assert "1,000 pixels" in page.text["calibration"]
    assert '<a href="#calibration">' in text
    assert "calibration" not in render(tmp_path, summary=summary(polyp=0.5) | {"calibration": []})[1].sections()


def test_the_baseline_stands_in_the_headline_and_in_a_table(tmp_path: Path) -> None:
    _, page = render(tmp_path, baseline=comparison(NASTY))
    assert f"kd against {NASTY}, Dice of polyp +0.100 [+0.080, +0.120]: better." in page.text["headline"]
    rows = [[" ".join(cell.split()) for cell in row] for row in page.rows]
    row = next(row for row in rows if row[:2] == ["polyp", "Dice"])
    assert row[2:6] == ["60 [20 patients]", "0.500", "0.600", "+0.100 [[+0.080, +0.120]]"]
    assert "One training each." in page.text["baseline"]


def test_uncertainty_stands_beside_each_overlay_with_its_scale(tmp_path: Path) -> None:
    unsure = np.zeros((50, 80), np.uint8)
    text, page = render(tmp_path, examples=[replace(example("a", "worst"), unsure=unsure)])
    assert [a["alt"] for tag, a in page.tags if tag == "img"] == [
        f"{title} of a, worst case" for title in ("Image", "Comparison", "Uncertainty")
    ]
    assert "to 1 bit (all classes alike)" in page.text["examples"]
    assert "linear-gradient(to right, rgb(" in text
    assert "entropy" not in render(tmp_path)[1].text["examples"]


def test_the_sections_of_a_full_report(tmp_path: Path) -> None:
    write_report(tmp_path / "full.html", full_report("a.png", "../a.png"))
    page = Page((tmp_path / "full.html").read_text(encoding="utf-8"))
    assert page.sections() == [
        *("headline", "warnings", "scores", "baseline", "examples", "cases", "distribution", "sizes", "patients"),
        *("calibration", "training", "remarks", "student", "run"),
    ]
