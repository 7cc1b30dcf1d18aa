"""evaluate: a student on a data set, or another tool's masks beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..data.rows import Manifest, Row
from ..data.several import Source
from ..deploy.predictor import Predictor, open_predictor
from ..engine.evaluator import Evaluation, evaluate_cases, predicted_cases, write_scores
from ..report.html import ReportData, write_report
from ..types import UserError
from .data import describe_sources, load_sets, named_sets, run_around
from .evaluate_masks import evaluate_masks
from .references import Split, labelled_rows, resolved, sources_of, with_saved_splits
from .reporting import beside_baseline, examples, links, student_facts
from .runs import provenance
from .scored import read_run, require_tolerance
from .terminal import bar, console, show_scores
from .use import student_path

DRAWING = ("jinja2", "matplotlib")  # what a report needs; who only runs an exported file may lack them


def evaluate(
    student: Path | str,
    data: Path | str | Sequence[Path | str],
    out: Path | str | None = None,
    *,
    split: Split = "auto",
    classes: str | None = None,
    threshold: int | str | None = None,
    modality: str | None = None,
    tolerance: float = 2.0,
    baseline: Path | str | None = None,
    metrics: Literal["polyp"] | None = None,
    device: str = "cpu",
    threads: int | None = None,
) -> dict[str, Any]:
    """Score a student, or a folder of masks that any tool made, and print the table.

    Args:
        student: A student's or a run's folder, an exported file (.onnx, .xml), or a folder of predicted masks.
        data: Data folder or manifest, for a student also several; beside predicted masks also a plain folder of
            reference masks.
        out: Folder for scores.csv, summary.json and, for a student, report.html if jinja2 and matplotlib are installed.
        split: Split to score, of each set; "auto" is the test split where there is one, else all images. A run's own
            data have the splits that the run drew.
        classes: Class names of the masks, background first, separated by commas; a student's are found by name. Several
            sets: "A=background,polyp; B=background,lung". None: a student's own.
        threshold: Mask values above it are foreground; or as "A=127; B=0".
        modality: What made the images; or as "A=xray; B=fundus". Scores are also per modality, and a student with
            controllers per modality uses those of this one; of one that it does not know, those that its classifier
            chooses for each image.
        tolerance: Distance up to which a boundary counts as met (NSD); in mm where the spacing is known, else pixels.
        baseline: Run folder, or one that evaluate wrote: the report compares with it on the images that both scored.
        metrics: "polyp": also the polyp literature's scores, from a student's probabilities; for one foreground class.
        device: Where a student runs: cpu or cuda.
        threads: CPU threads.

    Returns:
        The summary, as in summary.json.

    Raises:
        UserError: Input that cannot be used.
    """
    if out is not None:
        _require_folder(Path(out))
    student, folders = Path(student), [Path(one) for one in ([data] if isinstance(data, str | Path) else data)]
    report = None
    if _holds_masks(student):
        _require_masks(student, folders, metrics, baseline)
        evaluation = evaluate_masks(
            student, folders[0], split, tolerance, classes=classes, threshold=threshold, modality=modality
        )
    else:
        if baseline:
            _require_baseline(Path(baseline), out, tolerance)
        predictor = open_predictor(student_path(student), device, threads)
        sets = with_saved_splits(student, load_sets(folders, modality), modality)
        if metrics == "polyp":
            _require_polyp(predictor.card.classes, sets)
        images = _Images(
            rows=[row for one in sets for row in labelled_rows(one.rows, split, one.root)],
            among=[row for one in sets for row in one.rows],
            sources=sources_of(sets, predictor.card, named_sets(sets, classes, threshold), student),
            split=", ".join(sorted({resolved(one.rows, split) for one in sets})),
        )
        evaluation = _evaluate_student(predictor, images, tolerance, polyp=metrics == "polyp")
        if out is not None and _can_draw():
            report = _report(student_path(student), predictor, images, evaluation)
    if out:
        _write(Path(out), evaluation, report, baseline)
    part = evaluation.summary["run"]["scored split"]
    show_scores(f"{', '.join(one.name for one in folders)}, split {part}, original resolution", evaluation.summary)
    return evaluation.summary


class _Images(NamedTuple):
    """What a student is scored on: `rows` of all that lie in its data sets (`among`), each from one of the sources."""

    rows: Sequence[Row]
    among: Sequence[Row]
    sources: dict[str, Source]
    split: str


def _holds_masks(given: Path) -> bool:
    return given.is_dir() and not (given / "student.json").exists() and not (given / "student").exists()


def _require_folder(out: Path) -> None:
    """Before anything is scored: a folder can be there."""
    there = next((one for one in (out, *out.parents) if one.exists()), out)
    if not there.is_dir() and there.exists():
        raise UserError(f"--out {out}: {there} is a file; give a folder")


def _write(out: Path, evaluation: Evaluation, report: ReportData | None, baseline: Path | str | None) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_scores(out, evaluation)
    if report is None:
        return
    report = replace(report, links=links(evaluation, out))
    if baseline:
        report = beside_baseline(report, Path(baseline), out)
    write_report(out / "report.html", report)
    console.print(f"report: {out / 'report.html'}", markup=False)


def _evaluate_student(predictor: Predictor, images: _Images, tolerance: float, *, polyp: bool) -> Evaluation:
    with bar("scoring") as progress:
        evaluation = evaluate_cases(
            predicted_cases(predictor, images.rows, images.sources, among=images.among, polyp=polyp),
            classes=predictor.card.classes,
            modalities=predictor.card.modalities,
            tolerance=tolerance,
            on_progress=lambda done: progress(done, len(images.rows)),
        )
    evaluation.summary["run"] = {"scored split": images.split}
    return evaluation


def _can_draw() -> bool:
    """Whether what a report needs is installed; if not, the terminal says so."""
    missing = [name for name in DRAWING if find_spec(name) is None]
    if missing:
        needed = " ".join(missing)
        console.print(f"no report.html: it needs {' and '.join(missing)} (pip install {needed})", markup=False)
    return not missing


def _report(student: Path, predictor: Predictor, images: _Images, evaluation: Evaluation) -> ReportData:
    made, names = provenance(), ", ".join(images.sources)
    return ReportData(
        title=f"{names}: {predictor.card.method} student",
        command=made["command"],
        facts={"data": names, "scored split": images.split, "machine": made["machine"], **made["versions"]},
        config="",
        classes=predictor.card.classes,
        colours=predictor.card.colours,
        splits=[],
        mapping=describe_sources(images.sources),
        log=[],
        summary=evaluation.summary,
        scores=evaluation.scores,
        examples=list(examples(evaluation, predictor, images.sources, images.rows, images.among)),
        student=student_facts(student, predictor, evaluation.summary),
        warnings=[],
        scored=images.split,
    )


def _require_masks(masks: Path, folders: Sequence[Path], metrics: str | None, baseline: Path | str | None) -> None:
    """Before anything is scored: it is a folder of masks, and nothing is asked that only a student has."""
    if (masks / "config.yaml").is_file() and run_around(masks) == masks:
        raise UserError(
            f"{masks}: a run without a student, as its training has not ended; go on with segdistill train "
            f"--resume {masks}, or give a folder of masks"
        )
    if len(folders) > 1:
        raise UserError(f"{masks}: a folder of masks is scored against one data set; give one, or a student")
    if metrics:
        raise UserError(f"--metrics {metrics} needs probabilities, and {masks} holds masks; leave it out")
    if baseline:
        raise UserError(f"--baseline {baseline}: masks get no report; use segdistill compare {baseline} OUT")


def _require_baseline(baseline: Path, out: Path | str | None, tolerance: float) -> None:
    """Before anything is scored: there are scores to compare with, and a report to say so."""
    require_tolerance(read_run(baseline), tolerance)
    if any(find_spec(name) is None for name in DRAWING):
        raise UserError(f"--baseline {baseline}: the report needs {' and '.join(DRAWING)}; install segdistill[train]")
    if out is None or Path(out).resolve() == baseline.resolve():
        raise UserError(f"--baseline {baseline}: the report compares with it; give another folder with --out")


def _require_polyp(classes: Sequence[str], sets: Sequence[Manifest]) -> None:
    """The polyp literature scores images with one thing to find."""
    if len(classes) != 2:
        names = ", ".join(classes[1:])
        raise UserError(f"--metrics polyp needs a student of one foreground class, not of {names}; leave it out")
    if any(row.volume for one in sets for row in one.rows):
        raise UserError("--metrics polyp is defined for images, not for volumes; leave it out")
