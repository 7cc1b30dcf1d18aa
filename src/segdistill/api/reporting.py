"""From a run folder and its scores to the report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data.labels import colours
from ..data.rows import Row
from ..data.several import Source
from ..data.volumes import read_neighbours, with_neighbours
from ..deploy.predictor import Predictor, TorchPredictor, open_predictor
from ..engine.evaluator import Evaluation, extremes, told_modality
from ..formats import read_image, read_mask
from ..report.html import Example, ReportData, write_report
from ..report.links import link_to
from ..report.uncertainty import uncertainty
from ..types import Remarks, UserError
from .compare import against
from .data import describe_sources, scored_rows, split_table
from .runs import machine, read_config, read_json
from .scored import read_run
from .terminal import console


def training_report(
    run: Path,
    evaluation: Evaluation,
    rows: Sequence[Row],
    sources: Mapping[str, Source],
    warnings: Sequence[str],
    remarks: Remarks,
) -> None:
    """`report.html` of a finished training run."""
    _, options, _ = read_config(run)
    made, data = read_json(run / "run.json"), read_json(run / "data" / "data.json")
    outcome = evaluation.summary["run"]
    facts = {
        "method": options.method,
        "data": data["name"],
        "data hash": data["hash"],
        "training size": str(options.size),
        "seed": str(options.seed),
        "device": options.device,
        "precision": outcome["precision"],
        "machine": made["machine"],
        "started": made["started"],
        "training time": f"{outcome['training seconds'] / 60:.1f} minutes",
        "scored split": outcome["scored split"],
        **{f"{name} version": number for name, number in made["versions"].items()},
    }
    predictor = open_predictor(run / "student")
    report = ReportData(
        title=f"{data['name']}: {options.method}",
        command=made["command"],
        facts=facts,
        config=(run / "config.yaml").read_text(encoding="utf-8"),
        classes=predictor.card.classes,
        colours=colours(len(predictor.card.classes)),
        splits=split_table(rows),
        mapping=describe_sources(sources),
        log=read_log(run),
        summary=evaluation.summary,
        scores=evaluation.scores,
        examples=list(examples(evaluation, predictor, sources, scored_rows(rows)[1], rows)),
        student=student_facts(run / "student", predictor, evaluation.summary),
        warnings=warnings,
        remarks=remarks,
        scored=outcome["scored split"],
        links=links(evaluation, run),
    )
    if options.baseline:
        report = beside_baseline(report, options.baseline, run)
    write_report(run / "report.html", report)


def beside_baseline(report: ReportData, baseline: Path, folder: Path) -> ReportData:
    """The report with what changed against a baseline, from the scores in both folders; why not, where that cannot be.

    It is too late to stop here: the scores are there, and a training is behind them.
    """
    try:
        return replace(report, baseline=against(read_run(baseline), read_run(folder)))
    except UserError as error:
        line = f"not compared with the baseline: {error}"
        console.print(f"warning: {line}", markup=False, style="yellow")
        return replace(report, warnings=[*report.warnings, line])


def links(evaluation: Evaluation, folder: Path) -> dict[str, str]:
    """Name of an image or volume as shown -> where its file is, seen from the report's folder."""
    return {name: link_to(row.image, folder) for name, row in evaluation.names.items()}


def examples(
    evaluation: Evaluation,
    predictor: Predictor,
    sources: Mapping[str, Source],
    rows: Sequence[Row],
    among: Sequence[Row],
) -> Iterator[Example]:
    """Worst, median and best images (a slice of each such volume) with both masks, predicted once more."""
    around = with_neighbours(rows, among) if predictor.card.neighbours else {}
    for kind, name, dice in extremes(evaluation):
        row = evaluation.names[name]
        mapping = sources[row.dataset].mapping
        if row.mask is None or mapping is None:
            continue
        image = read_image(row.image)
        seen = read_neighbours(around[row.image]) if around else image
        reference = mapping.apply(read_mask(row.mask))
        caption = f"Dice {dice:.3f}" + (f" of the volume; slice {row.slice}" if row.volume else "")
        found = predictor.predict(seen, told_modality(predictor, row))
        yield Example(name, kind, caption, image, reference, found.labels, uncertainty(found.probabilities))


def student_facts(path: Path, predictor: Predictor, summary: dict[str, Any]) -> dict[str, str]:
    """Size and speed of a student, for the report."""
    card = predictor.card
    facts = {"network": card.name, "classes": ", ".join(card.classes), "input": "x".join(map(str, card.size))}
    weights = path / "student.safetensors" if path.is_dir() else path
    facts["file"] = f"{weights.stat().st_size / 1e6:.1f} MB"
    if isinstance(predictor, TorchPredictor):
        facts["parameters"] = f"{sum(p.numel() for p in predictor.student.parameters()):,}"
    if summary.get("ms_per_image") is not None:
        facts["per image"] = f"{summary['ms_per_image']:.0f} ms (median, {machine()}, original size in and out)"
    return facts


def read_log(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's log.jsonl."""
    with (run / "log.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
