"""Run a list of settings x seeds, one after the other, resumable run by run; print the table of what is finished.

    python benchmarks/campaign.py benchmarks/campaigns/few_labels.yaml --data ../shared/data --threads 2

The campaign file:

    options: {size: 128, labelled: 60}          # of every run: the fields of TrainOptions
    runs:
      - {name: unet, data: kvasir_seg, seeds: [0, 1, 2], options: {method: supervised}, config: {batch_size: 12}}
      - {name: six, data: [busi, drive], seeds: [0], options: {method: esp_medsam}}       # several data sets
      - {name: kd, data: kvasir_seg, seeds: [0], options: {method: kdas}, config: {teacher: "{runs}/unet_s{seed}"}}

A finished run leaves benchmarks/results/CAMPAIGN/NAME_sSEED.json (to be committed) and is skipped from then on; an
interrupted one goes on from its checkpoint. A run that fails is reported, and the others go on. `--only NAME_sSEED ...`
runs these, in this order, so that two calls can share the machine's cores.
"""

import argparse
import csv
import json
import statistics
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import yaml

from segdistill.api.evaluate import evaluate
from segdistill.api.options import TrainOptions
from segdistill.api.runs import machine, method_named, read_config, read_json, versions
from segdistill.api.train import resume, train
from segdistill.deploy.artefact import load_student
from segdistill.engine.interrupt import Interrupted
from segdistill.formats import replacing
from segdistill.types import UserError

RESULTS = Path(__file__).parent / "results"


def planned_runs(campaign: dict, only: list[str] | None = None) -> list[tuple[str, dict, int]]:
    """(result name, settings, seed) of every run, or of those named, in their order."""
    runs = [(f"{run['name']}_s{seed}", run, seed) for run in campaign["runs"] for seed in run["seeds"]]
    names = [name for name, _, _ in runs]
    if len(set(names)) != len(names):
        raise UserError("two runs of the campaign have one name and seed; give each its own name")
    if unknown := [name for name in only or () if name not in names]:
        raise UserError(f"--only {unknown[0]}: no run of this campaign; it has {', '.join(names)}")
    return [runs[names.index(name)] for name in only] if only else runs


def finish(settings: dict, common: dict, seed: int, data: Path, folder: Path, threads: int) -> None:
    """Train, or carry on, one run to its end. UserError where it was begun with other settings than the campaign's."""
    said, given = common | settings.get("options", {}) | {"seed": seed}, settings.get("config", {})
    if (folder / "config.yaml").exists():
        _, options, config = read_config(folder)
        plain = {
            name: value for name, value in given.items() if "{" not in str(value)
        }  # a run by name has become a path
        for held, planned in ((vars(options), said), (vars(config), plain)):
            for name in (name for name, value in planned.items() if held[name] != value):
                raise UserError(
                    f"{folder}: was begun with {name} {held[name]}, the campaign says {planned[name]}; remove that "
                    "folder, or give the row another name"
                )
        resume(folder)
        return
    options = TrainOptions(**(said | {"threads": threads}))
    filled = {k: v.format(runs=folder.parent, seed=seed) if isinstance(v, str) else v for k, v in given.items()}
    config = method_named(options.method).Config(**filled)
    train(folders_of(settings, data), folder, options, config)


def folders_of(settings: dict, data: Path) -> list[Path]:
    """A run's data sets."""
    names = settings["data"]
    return [data / name for name in ([names] if isinstance(names, str) else names)]


def result(folder: Path, data: Path, settings: dict, seed: int) -> dict:
    """What the tables are made from; Dice of the last weights too, on the sets' own test splits."""
    summary = read_json(folder / "summary.json")
    facts = {"machine": machine(), "versions": versions()}
    data_hash = read_json(folder / "data" / "data.json")["hash"]
    run = {"name": settings["name"], "data": settings["data"], "seed": seed, "data hash": data_hash}
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    for private in ("data", "cache"):
        config.pop(private)
    named = {name: value for name, value in settings.get("config", {}).items() if "{" in str(value)}
    config[config["method"]] |= named  # earlier runs by name, not by this machine's path
    last = evaluate(folder / "student_last", folders_of(settings, data))["mean"]["dice"]["mean"]
    parameters = sum(p.numel() for p in load_student(folder / "student").network.parameters())
    measured = {"last": last, "parameters": parameters, "images": image_dice(folder)}
    measured |= {"areas": image_areas(folder), "validation": validation_curve(folder)}
    return run | {"config": config, "summary": summary} | measured | facts


def validation_curve(folder: Path) -> dict[str, float]:
    """Dice by stage and iteration."""
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [entry for entry in map(json.loads, lines) if "validation" in entry]
    return {f"{e['stage']} {e['iteration']}": round(e["validation"]["dice"], 5) for e in entries}


def image_dice(folder: Path) -> dict[str, float]:
    """Test Dice by image, the mean of its classes that are there: what paired differences are made from."""
    found: dict[str, list[float]] = {}
    for name, row in scores(folder):
        if row["empty_reference"] == "False":
            found.setdefault(name, []).append(float(row["dice"]))
    return {name: round(statistics.mean(values), 5) for name, values in found.items()}


def image_areas(folder: Path) -> dict[str, float]:
    """Share of each test image that its mask's classes cover, to see what the worst cases have in common."""
    found: dict[str, float] = {}
    for name, row in scores(folder):
        tp, fp, fn, tn = (int(row[key]) for key in ("tp", "fp", "fn", "tn"))
        found[name] = found.get(name, 0.0) + (tp + fn) / (tp + fp + fn + tn)
    return {name: round(share, 5) for name, share in found.items()}


def scores(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Image and row, of every row of scores.csv."""
    with (folder / "scores.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            yield f"{row['dataset']}/{row['image']}", row


def table(results: Path) -> str:
    """Markdown: a row per name, over its finished seeds."""
    rows: dict[str, list[dict]] = {}
    for path in sorted(results.glob("*_s*.json")):
        entry = json.loads(path.read_text(encoding="utf-8"))
        rows.setdefault(entry["name"], []).append(entry)
    lines = [
        "| run | seeds | test Dice, mean (min to max over seeds) | HD95 | best val Dice |",
        "|---|---|---|---|---|",
    ]
    for name, entries in rows.items():
        dice = [e["summary"]["mean"]["dice"]["mean"] for e in entries]
        hd95 = statistics.mean(e["summary"]["mean"]["hd95"]["mean"] for e in entries)
        best = statistics.mean(e["summary"]["run"]["best validation Dice"] for e in entries)
        spread = f"{statistics.mean(dice):.3f} ({min(dice):.3f} to {max(dice):.3f})"
        lines.append(f"| {name} | {len(entries)} | {spread} | {hd95:.1f} | {best:.3f} |")
    return "\n".join(lines)


def main(words: list[str] | None = None) -> int:
    """Run what is not finished; 1 if a run failed, 128 + signal if it was stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("campaign", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the run folders go")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", metavar="NAME_sSEED", help="these runs, in this order")
    given = parser.parse_args(words)
    campaign = yaml.safe_load(given.campaign.read_text(encoding="utf-8"))
    results, failed = given.results / given.campaign.stem, []
    try:
        runs = planned_runs(campaign, given.only)
    except UserError as error:
        parser.error(str(error))
    results.mkdir(parents=True, exist_ok=True)
    for name, settings, seed in runs:
        target, folder = results / f"{name}.json", given.runs / given.campaign.stem / name
        if target.exists():
            continue
        print(f"== {name}", flush=True)
        try:
            finish(settings, campaign.get("options", {}), seed, given.data, folder, given.threads)
        except Interrupted as stop:
            print(stop, file=sys.stderr)
            return stop.exit_code
        except Exception as error:  # one run must not end the campaign
            failed.append(name)
            print(f"failed: {error}" if isinstance(error, UserError) else traceback.format_exc(), file=sys.stderr)
            continue
        with replacing(target) as file:
            file.write((json.dumps(result(folder, given.data, settings, seed), indent=1) + "\n").encode())
    print(table(results))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
