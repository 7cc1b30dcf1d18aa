"""evaluate: a student on a data set, or another tool's masks beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from ..data.findings import Named
from ..data.labels import LabelMapping, build_mapping, scan_values
from ..data.manifest import load_manifest
from ..data.rows import Manifest, Row
from ..data.several import Source, into_classes
from ..data.volumes import expand
from ..deploy.predictor import Predictor, open_predictor
from ..engine.evaluator import Evaluation, Part, cases_of, evaluate_cases, predicted_cases, write_scores
from ..formats import IMAGE_SUFFIXES, is_volume, read_mask, split_address, stem_of
from ..report.html import ReportData, write_report
from ..types import UserError
from .data import describe_sources, load_sets, named_sets
from .options import parse_classes, parse_threshold
from .reporting import beside_baseline, examples, links, student_facts
from .runs import provenance
from .scored import read_run
from .terminal import bar, console, show_scores

Split = Literal["auto", "train", "val", "test", "all"]
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
        student: A student's folder, an .onnx file, or a folder of predicted masks.
        data: Data folder or manifest, for a student also several; beside predicted masks also a plain folder of
            reference masks.
        out: Folder for scores.csv, summary.json and, for a student, report.html if jinja2 and matplotlib are installed.
        split: Split to score, of each set; "auto" is the test split where there is one, else all images.
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
    student, folders = Path(student), [Path(one) for one in ([data] if isinstance(data, str | Path) else data)]
    if student.is_dir() and not (student / "student.json").exists() and not (student / "student").exists():
        if len(folders) > 1:
            raise UserError(f"{student}: a folder of masks is scored against one data set; give one, or a student")
        if metrics:
            raise UserError(f"--metrics {metrics} needs probabilities, and {student} holds masks; leave it out")
        if baseline:
            raise UserError(f"--baseline {baseline}: masks get no report; use segdistill compare {baseline} OUT")
        above = parse_threshold(None if threshold is None else str(threshold))
        evaluation = _evaluate_masks(student, folders[0], split, parse_classes(classes), above, tolerance)
        report = None
    else:
        if baseline:
            _require_baseline(Path(baseline), out)
        if (student / "student" / "student.json").exists():
            student = student / "student"
        predictor = open_predictor(student, device, threads)
        sets = load_sets(folders, modality)
        if metrics == "polyp":
            _require_polyp(predictor.card.classes, sets)
        sources = sources_of(sets, split, predictor.card.classes, named_sets(sets, classes, threshold))
        rows = [row for one in sets for row in labelled_rows(one.rows, split, one.root)]
        evaluation = _evaluate_student(predictor, rows, sources, tolerance, polyp=metrics == "polyp")
        drawn = out is not None and _can_draw()
        report = _report(student, predictor, sets, sources, rows, split, evaluation) if drawn else None
    if out:
        Path(out).mkdir(parents=True, exist_ok=True)
        write_scores(Path(out), evaluation)
        if report:
            report = replace(report, links=links(evaluation, Path(out)))
            if baseline:
                report = beside_baseline(report, Path(baseline), Path(out))
            write_report(Path(out) / "report.html", report)
            console.print(f"report: {Path(out) / 'report.html'}", markup=False)
    show_scores(f"{', '.join(one.name for one in folders)}, original resolution", evaluation.summary)
    return evaluation.summary


def _evaluate_student(
    predictor: Predictor, rows: Sequence[Row], sources: dict[str, Source], tolerance: float, *, polyp: bool
) -> Evaluation:
    with bar("scoring") as progress:
        return evaluate_cases(
            predicted_cases(predictor, rows, sources, polyp=polyp),
            classes=predictor.card.classes,
            dataset="",
            modalities=predictor.card.modalities,
            tolerance=tolerance,
            on_progress=lambda done: progress(done, len(rows)),
        )


def _can_draw() -> bool:
    """Whether what a report needs is installed; if not, the terminal says so."""
    missing = [name for name in DRAWING if find_spec(name) is None]
    if missing:
        needed = " ".join(missing)
        console.print(f"no report.html: it needs {' and '.join(missing)} (pip install {needed})", markup=False)
    return not missing


def _report(
    student: Path,
    predictor: Predictor,
    sets: Sequence[Manifest],
    sources: dict[str, Source],
    rows: Sequence[Row],
    split: Split,
    evaluation: Evaluation,
) -> ReportData:
    made, names = provenance(), ", ".join(sources)
    return ReportData(
        title=f"{names}: {predictor.card.method} student",
        command=made["command"],
        facts={"data": names, "split": split, "machine": made["machine"], **made["versions"]},
        config="",
        classes=predictor.card.classes,
        colours=predictor.card.colours,
        splits=[],
        mapping=describe_sources(sources),
        log=[],
        summary=evaluation.summary,
        scores=evaluation.scores,
        examples=list(examples(evaluation, predictor, sources, rows)),
        student=student_facts(student, predictor, evaluation.summary),
        warnings=[],
        scored=", ".join(sorted({_resolved(one.rows, split) for one in sets})),
    )


def _require_baseline(baseline: Path, out: Path | str | None) -> None:
    """Before anything is scored: there are scores to compare with, and a report to say so."""
    read_run(baseline)
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


def sources_of(
    sets: Sequence[Manifest], split: Split, classes: tuple[str, ...], said: dict[str, Named]
) -> dict[str, Source]:
    """What the scored masks of each data set mean in the student's classes."""
    sources = {}
    for one in sets:
        masks = [row.mask for row in labelled_rows(one.rows, split, one.root) if row.mask]
        names, threshold = said[one.name].classes, said[one.name].threshold
        try:
            mapping = _mapping(masks, names or classes, threshold)
            sources[one.name] = Source(one.name, one.root, into_classes(mapping, classes) if names else mapping)
        except UserError as error:
            raise UserError(f"{one.name}: {error}" if len(sets) > 1 else str(error)) from None
    return sources


def _evaluate_masks(
    predicted: Path, data: Path, split: Split, classes: list[str] | None, threshold: int | None, tolerance: float
) -> Evaluation:
    """Masks against masks, matched by their path below the folder without suffix."""
    rows, names, root = _references(data, split)
    found = {_name(path, predicted): path for path in _masks_below(predicted)}
    missing = sorted(set(names.values()) - found.keys())
    if missing:
        listed = ", ".join(missing[:3])
        raise UserError(
            f"{predicted}: no mask for {len(missing)} of {len(set(names.values()))} references ({listed}); "
            "each needs a mask of the same name"
        )
    truth = _mapping([row.mask for row in rows if row.mask], classes, threshold)
    guessed = {row.image: _like(found[names[row.image]], row) for row in rows}
    guess = _mapping([guessed[row.image] for row in rows], truth.classes, threshold)

    def look(row: Row) -> Part:
        assert row.mask
        return Part(guess.apply(read_mask(guessed[row.image])), truth.apply(read_mask(row.mask)))

    return evaluate_cases(
        cases_of(rows, look, {"": root}), classes=truth.classes, dataset=data.name, tolerance=tolerance
    )


def _references(data: Path, split: Split) -> tuple[list[Row], dict[Path, str], Path]:
    """Labelled rows, the name of each one's file, and their folder; of a data set, or of a plain folder of masks."""
    try:
        manifest = load_manifest(data)
    except UserError:
        plain = expand([Row(path, path) for path in _masks_below(data)], data) if data.is_dir() else []
        if not plain:
            raise
        return plain, {row.image: _name(split_address(row.image)[0], data) for row in plain}, data
    rows = labelled_rows(manifest.rows, split, data)
    return rows, {row.image: stem_of(Path(split_address(row.image)[0].name)) for row in rows}, manifest.root


def _like(found: Path, row: Row) -> Path:
    """The predicted mask of a row: of a slice in a file of many, the same slice of the predicted file."""
    slice = split_address(row.image)[1]
    return found.with_name(f"{found.name}#{slice}") if slice is not None and is_volume(found) else found


def labelled_rows(rows: Sequence[Row], split: Split, data: Path) -> list[Row]:
    """The labelled rows of a split."""
    labelled = [row for row in rows if row.mask]
    wanted = _resolved(labelled, split)
    chosen = [row for row in labelled if wanted in ("all", row.split)]
    if not chosen:
        have = ", ".join(sorted({row.split or "none" for row in labelled})) or "no masks at all"
        raise UserError(f"{data}: no labelled image in split {wanted!r} (there are: {have}); choose another --split")
    return chosen


def _resolved(rows: Sequence[Row], split: Split) -> str:
    """What "auto" means for these rows."""
    has_test = any(row.split == "test" and row.mask for row in rows)
    return split if split != "auto" else "test" if has_test else "all"


def _mapping(masks: list[Path], classes: Sequence[str] | None, threshold: int | None) -> LabelMapping:
    with bar("reading masks") as progress:
        return build_mapping(scan_values(masks, None, progress, threshold), classes)


def _masks_below(folder: Path) -> list[Path]:
    outputs = ("_overlay",)  # what predict writes beside its masks
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    masks = (path for path in files if is_volume(path) or path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path for path in masks if not stem_of(path).endswith(outputs))


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_name(stem_of(path)).as_posix()
