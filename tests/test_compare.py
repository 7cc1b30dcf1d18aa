"""compare: from folders to verdicts. Scores are made up here; one test goes from training to the comparison."""

import csv
import json

import numpy as np
import pytest
import yaml
from helpers import make_set

from segdistill.api.compare import compare
from segdistill.api.evaluate import _require_baseline
from segdistill.api.scored import read_run
from segdistill.cli import main
from segdistill.engine.evaluator import FLAGS, TABLE
from segdistill.types import UserError

SIZE = 10_000  # pixels of every image


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def row(image, dice, *, patient="", false_positive=None, label="polyp", dataset="kvasir", reference=500, nsd=0.5):
    """A line of scores.csv; `false_positive` makes the reference empty."""
    line = dict.fromkeys(TABLE + FLAGS, "") | {"image": image, "dataset": dataset, "patient": patient, "class": label}
    if false_positive is None:
        line |= {
            "dice": dice,
            "hd95": 100 * (1 - dice),
            "nsd": nsd,
            "tp": reference // 2,
            "fn": reference - reference // 2,
        }
    else:
        line |= {"tp": 0, "fn": 0} | ({"dice": 0, "hd95": 141.4, "nsd": 0} if false_positive else {})
    line["fp"] = 7 if false_positive else 0
    return line | {"tn": SIZE - line["tp"] - line["fn"] - line["fp"]}


def folder(path, rows, *, seed=None, config=None, summary=None):
    """A folder of scores; with a seed, a run folder."""
    path.mkdir(parents=True)
    with (path / "scores.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, TABLE + FLAGS)
        writer.writeheader()
        writer.writerows(rows)
    (path / "summary.json").write_text(json.dumps({"unit": "px", "tolerance": 2.0} | (summary or {})), encoding="utf-8")
    if seed is not None:
        values = {"data": "x", "seed": seed, "method": "supervised", "cache": None} | (config or {})
        values.setdefault(values["method"], {})
        (path / "config.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def scores(better=0.0, *, seed=0, images=30, **options):
    """Dice of `images` images: the same images for everybody, the noise by seed."""
    base = np.random.default_rng(9).uniform(0.5, 0.8, images)
    noise = np.random.default_rng([seed, int(1000 * better)]).normal(0, 0.02, images)
    return [row(f"images/{i:02d}.png", d, **options) for i, d in enumerate((base + better + noise).tolist())]


def lines_of(comparison):
    return {(line.label, line.score.name): line for line in comparison.lines}


def test_iterations_are_those_that_were_asked_for(tmp_path):
    runs = [
        folder(tmp_path / f"{count}", scores(count / 1000), seed=0, config={"iterations": count})
        for count in (100, 200)
    ]
    (comparison,) = compare(runs, tmp_path / "out")
    assert (comparison.baseline, comparison.other) == ("supervised (iterations 100)", "supervised (iterations 200)")


def test_runs_group_by_all_settings_but_the_seed(tmp_path):
    runs = []
    for seed in (0, 1, 2):
        fast = {"threads": seed + 1, "device": "cpu", "precision": "32"}  # where and how fast: not a setting
        runs.append(folder(tmp_path / f"few {seed}", scores(seed=seed), seed=seed, config=fast | {"labelled": "10"}))
        runs.append(folder(tmp_path / f"all {seed}", scores(0.1, seed=seed), seed=seed, config={"labelled": 60}))
    (comparison,) = compare(runs, tmp_path / "out")
    assert (comparison.baseline, comparison.other) == ("supervised (labelled 10)", "supervised (labelled 60)")
    dice = lines_of(comparison)["polyp", "Dice"]
    assert dice.difference.mean == pytest.approx(0.1, abs=0.01)
    assert dice.verdict == "better"
    assert (dice.difference.pairs, dice.difference.groups) == (90, 30)
    assert lines_of(comparison)["polyp", "HD95"].verdict == "better"
    assert lines_of(comparison)["polyp", "NSD"].verdict == "equal"
    notes = " ".join(comparison.notes)
    assert "within seeds 0, 1, 2." in notes
    assert "With 3 seeds" in notes
    assert "Patients are unknown" in notes
    text = (tmp_path / "out" / "compare.md").read_text(encoding="utf-8")
    assert "supervised (labelled 60) against supervised (labelled 10)" in text
    assert "few 2" in text
    assert (tmp_path / "out" / "compare.html").exists()


def test_a_chain_groups_by_what_its_teacher_did(tmp_path, monkeypatch):
    """Each seed's student has the teacher of its seed; a teacher trained otherwise makes another group."""
    runs = []
    for seed in (0, 1):
        for labelled in (10, 60):
            name = f"{labelled} {seed}"
            teacher = folder(tmp_path / "teachers" / name, scores(), seed=seed, config={"labelled": labelled})
            config = {"method": "kdas", "kdas": {"teacher": str(teacher)}}
            runs.append(folder(tmp_path / name, scores(labelled / 100, seed=seed), seed=seed, config=config))
    monkeypatch.chdir(runs[0])  # a configuration here is nobody's teacher
    (comparison,) = compare(runs, tmp_path / "out")
    assert lines_of(comparison)["polyp", "Dice"].difference.pairs == 60
    for name in (comparison.baseline, comparison.other):
        assert name.startswith("kdas (teacher a supervised run (")


def test_a_setting_that_is_named_like_an_option_hides_none(tmp_path):
    """UniMatch has a threshold of its own, of pseudo-labels; --threshold says what masks mean."""
    runs = [
        folder(tmp_path / f"{above}", scores(above / 1000), seed=0, config={"method": "unimatch", "threshold": above})
        for above in (100, 200)
    ]
    (comparison,) = compare(runs)
    assert (comparison.baseline, comparison.other) == ("unimatch (threshold 100)", "unimatch (threshold 200)")
    assert read_run(runs[0]).settings["unimatch.threshold"] == "0.95"


def test_a_teacher_is_a_run_and_the_student_of_it_that_teaches(tmp_path):
    """RUN and RUN/student are one teacher, another of its students is another; its seed is nobody's setting."""
    runs = {}
    for part in ("", "student", "student_last", "students/unet"):
        for seed in (0, 1):
            teacher = tmp_path / "teachers" / f"{seed}"
            if not teacher.exists():
                folder(teacher, scores(), seed=seed)
            config = {"method": "kdas", "kdas": {"teacher": str(teacher / part)}}
            run = folder(tmp_path / f"{len(runs)}", scores(seed=seed), seed=seed, config=config)
            runs[part, seed] = read_run(run).settings["teacher"]
    assert all(runs[part, 0] == runs[part, 1] for part, _ in runs)
    assert len(set(runs.values())) == 3
    assert runs["", 0] == runs["student", 1]
    assert runs["students/unet", 0].startswith("a supervised run's students/unet (")


def test_only_runs_of_the_same_seed_are_paired(tmp_path):
    """Other seeds score other images; here the names are the same and would pair wrongly."""
    ours = [folder(tmp_path / f"a{s}", scores(seed=s), seed=s) for s in (0, 1)]
    theirs = [folder(tmp_path / f"b{s}", scores(0.1, seed=s), seed=s, config={"size": 64}) for s in (1, 2)]
    (comparison,) = compare([*ours, *theirs])
    assert comparison.lines[0].difference.pairs == 30
    assert any("within seed 1." in note for note in comparison.notes)
    assert any("a0" in note and "b2" in note for note in comparison.notes if note.startswith("Left out"))
    assert any("training again with another seed" in note for note in comparison.notes)


def test_splits_of_other_seeds_are_told(tmp_path):
    ours = folder(tmp_path / "a", scores(seed=1), seed=1)
    theirs = folder(tmp_path / "b", scores(0.1, seed=1), seed=1, config={"split_seed": 0})
    (comparison,) = compare([ours, theirs])
    assert (comparison.baseline, comparison.other) == ("supervised (split_seed None)", "supervised (split_seed 0)")
    said = "Seed 1: the splits are drawn by seed 1 in the baseline and by 0 in the other"
    assert [note for note in comparison.notes if note.startswith(said)]


def test_a_split_seed_that_is_the_seed_is_none(tmp_path):
    """Unless other seeds share its splits."""

    def run(name, seed, better, **config):
        return folder(tmp_path / f"{name} {seed}", scores(better, seed=seed), seed=seed, config=config)

    own = [run("own", seed, 0) for seed in (0, 1)]
    sized = [run("size", seed, 0.1, size=64, split_seed=seed) for seed in (0, 1)]
    (comparison,) = compare([*own, *sized])
    assert (comparison.baseline, comparison.other) == ("supervised (size 256)", "supervised (size 64)")
    assert not [note for note in comparison.notes if "splits" in note]
    fixed = [run("fixed", seed, 0.2, size=64, split_seed=0) for seed in (1, 2)]
    (_, one), other = compare([*own, sized[1], *fixed]), compare([*own, sized[0], *fixed])
    assert one.other == "supervised (size 64, split_seed 0)"
    assert [found.lines[0].difference.pairs for found in other] == [60]


def test_empty_references_are_compared_by_false_positives_alone(tmp_path):
    """Four empty images: the first finds something in three of them, the second in one. Dice does not hear of it."""
    ours = [row(f"{i}.png", 0.6) for i in range(8)] + [row(f"e{i}.png", 0, false_positive=i < 3) for i in range(4)]
    theirs = [row(f"{i}.png", 0.7) for i in range(8)] + [row(f"e{i}.png", 0, false_positive=i < 1) for i in range(4)]
    (comparison,) = compare([folder(tmp_path / "ours", ours), folder(tmp_path / "theirs", theirs)])
    found = lines_of(comparison)
    dice, alarms = found["polyp", "Dice"].difference, found["polyp", "false-positive rate"].difference
    assert (dice.baseline, dice.other, dice.pairs) == pytest.approx((0.6, 0.7, 8))
    assert (alarms.baseline, alarms.other, alarms.mean, alarms.pairs) == pytest.approx((0.75, 0.25, -0.5, 4))
    assert found["polyp", "false-positive rate"].verdict == "too few"


def test_classes_and_their_mean(tmp_path):
    ours = [row(f"{i}.png", d, label=k) for i in range(9) for k, d in (("a", 0.2), ("b", 0.6))]
    theirs = [row(f"{i}.png", d, label=k) for i in range(9) for k, d in (("a", 0.4), ("b", 0.6))]
    (comparison,) = compare([folder(tmp_path / "ours", ours), folder(tmp_path / "theirs", theirs)])
    means = {line.label: line.difference.mean for line in comparison.lines if line.score.name == "Dice"}
    assert means == pytest.approx({"mean of classes": 0.1, "a": 0.2, "b": 0})
    assert comparison.lines[0].label == "mean of classes"


def test_patients_are_drawn_where_known(tmp_path):
    def with_patients(better):
        return [line | {"patient": f"p{i // 3}"} for i, line in enumerate(scores(better))]

    (comparison,) = compare([folder(tmp_path / "a", with_patients(0)), folder(tmp_path / "b", with_patients(0.001))])
    assert comparison.grouped_by == "patient"
    assert comparison.lines[0].difference.groups == 10
    assert comparison.lines[0].verdict == "unclear"
    assert "10 patients, about" in comparison.headline


def test_only_common_images_count_and_the_numbers_are_told(tmp_path):
    ours, theirs = folder(tmp_path / "a", scores()[:20]), folder(tmp_path / "b", scores(0.1)[5:])
    (comparison,) = compare([ours, theirs])
    assert comparison.lines[0].difference.pairs == 15
    assert any("15 images are in common, of 20 of the baseline and 25" in note for note in comparison.notes)


def test_masks_of_another_tool_pair_by_file_name(tmp_path):
    theirs = [line | {"dataset": "masks", "image": line["image"][7:-4]} for line in scores(0.1)]
    ours = [folder(tmp_path / f"run {s}", scores(seed=s), seed=s) for s in (0, 1)]
    (comparison,) = compare([*ours, folder(tmp_path / "tool", theirs)])
    assert comparison.other == "tool"
    assert comparison.lines[0].difference.pairs == 60
    assert any("file name" in note for note in comparison.notes)
    assert any("seed of tool is unknown" in note for note in comparison.notes)


def test_the_same_scores_differ_by_exactly_nothing(tmp_path):
    (comparison,) = compare([folder(tmp_path / "a", scores()), folder(tmp_path / "b", scores())])
    for line in comparison.lines:
        assert (line.difference.mean, line.difference.low, line.difference.high) == (0, 0, 0)
        assert line.verdict == "equal"


def test_swapped_groups_flip_signs(tmp_path):
    a, b = folder(tmp_path / "a", scores()), folder(tmp_path / "b", scores(0.1))
    forth, back = compare([a, b])[0].lines[0], compare([b, a])[0].lines[0]
    assert back.difference.mean == pytest.approx(-forth.difference.mean)
    assert (forth.verdict, back.verdict) == ("better", "worse")


def test_a_baseline_of_another_tolerance_is_refused_before_there_are_scores(tmp_path, capsys):
    baseline = str(folder(tmp_path / "five", scores(), summary={"tolerance": 5.0}))
    make_set(tmp_path / "data", count=8, size=32)
    assert main(["train", "data", "--out", "run", "--cache", "cache", "--size", "32", "--baseline", baseline]) == 2
    assert "scored with --tolerance 5, not 2; give --tolerance 5" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="--tolerance 5"):
        _require_baseline(tmp_path / "five", "out", 2.0)
    _require_baseline(tmp_path / "five", "out", 5.0)


def bad(tmp_path):
    a = folder(tmp_path / "a", scores())
    b = folder(tmp_path / "b", scores(), seed=0)
    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped" / "config.yaml").write_text("", encoding="utf-8")
    torn = folder(tmp_path / "torn", scores())
    (torn / "scores.csv").write_text("image,dice\na.png,0.5\n", encoding="utf-8")
    return {
        "one run": ([a], "nothing to compare"),
        "one group": ([b, folder(tmp_path / "b1", scores(), seed=1)], "nothing to compare"),
        "no scores": ([a, tmp_path / "nowhere"], "evaluate --out"),
        "not finished": ([a, tmp_path / "stopped"], "--resume"),
        "no table": ([a, torn], "torn"),
        "empty table": ([a, folder(tmp_path / "none", [])], "no image"),
        "same seed twice": ([a, b, folder(tmp_path / "b0", scores(), seed=0)], "the same method"),
        "same folder twice": ([a, a], "a and"),
        "no shared seed": ([b, folder(tmp_path / "c", scores(), seed=5, config={"size": 64})], "paired by seed"),
        "nothing in common": ([a, folder(tmp_path / "x", scores(label="cell"))], "in common"),
        "other masks": ([a, folder(tmp_path / "y", scores(reference=400))], "reference masks"),
        "other tolerance": ([a, folder(tmp_path / "t", scores(), summary={"tolerance": 5.0})], "tolerance"),
        "bad option": ([a, b, "--sided", "1"], "sided"),
    }


BAD = (
    "one run", "one group", "no scores", "not finished", "no table", "empty table", "same seed twice",
    "same folder twice", "no shared seed", "nothing in common", "other masks", "other tolerance", "bad option",
)  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(tmp_path, name, capsys):
    cases = bad(tmp_path)
    assert cases.keys() == set(BAD)
    words, expected = cases[name]
    assert main(["compare", *map(str, words)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("segdistill: ")
    assert message.count("\n") == 1
    assert expected in message


def test_from_training_to_the_comparison(tmp_path, capsys):
    data = make_set(tmp_path / "data", count=16, size=32)
    fast = [
        "--size",
        "32",
        "--iterations",
        "2",
        "--precision",
        "32",
        "--cache",
        "cache",
        "--supervised.batch-size",
        "2",
    ]
    for name, labelled in (("few", "2"), ("more", "6")):
        assert main(["train", str(data), "--out", name, "--labelled", labelled, "--test", "8", *fast]) == 0
    assert (
        main(["evaluate", str(data / "masks"), str(data / "masks"), "-o", "perfect", "--classes", "bg,foreground"]) == 0
    )
    capsys.readouterr()
    assert main(["compare", "few", "more", "perfect", "--out", "comparison"]) == 0
    shown = capsys.readouterr().out
    assert "supervised (labelled 6)" in shown
    assert "perfect against supervised (labelled 2)" in " ".join(shown.split())
    text = (tmp_path / "comparison" / "compare.md").read_text(encoding="utf-8")
    assert "8 images are in common, of 8 of the baseline and 16 of the other" in text
