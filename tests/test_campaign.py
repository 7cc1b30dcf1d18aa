"""The campaign runner: resumable, skips what is finished, one failure does not end it."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers import benchmark

CAMPAIGNS = Path(__file__).parents[1] / "benchmarks" / "campaigns"


@pytest.fixture(scope="module")
def campaign():
    return benchmark("campaign")


def test_a_campaign(campaign, tiny_set, tmp_path, capsys, monkeypatch):
    runs = [
        {
            "name": "base",
            "data": tiny_set.name,
            "seeds": [0, 1],
            "options": {"labelled": 3},
            "config": {"batch_size": 2},
        },
        {"name": "broken", "data": "nowhere", "seeds": [0]},
        {
            "name": "kd",
            "data": [tiny_set.name],
            "seeds": [0],
            "options": {"method": "kdas"},
            "config": {"teacher": "{runs}/base_s{seed}", "labelled_batch": 2, "other_batch": 0, "control": False},
        },
    ]
    plan = {"options": {"size": 32, "iterations": 2, "precision": "32"}, "runs": runs}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(plan), encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = [str(tmp_path / "tiny.yaml"), "--data", str(tiny_set.parent)]
    words += ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    assert campaign.main(words) == 1
    shown = capsys.readouterr()
    assert "nowhere" in shown.err
    written = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "results" / "tiny").iterdir()}
    assert written.keys() == {"base_s0.json", "base_s1.json", "kd_s0.json"}
    assert "| base | 2 |" in shown.out
    entries = {
        name: json.loads((tmp_path / "results" / "tiny" / f"{name}_s0.json").read_text(encoding="utf-8"))
        for name in ("base", "kd")
    }
    assert entries["base"]["config"]["labelled"] == 3
    assert entries["kd"]["config"]["kdas"]["teacher"] == "{runs}/base_s{seed}"
    assert str(tmp_path) not in json.dumps(entries)
    entry = entries["base"]
    assert np.mean([*entry["images"].values()]) == pytest.approx(entry["summary"]["mean"]["dice"]["mean"], abs=1e-4)
    assert entry["areas"].keys() == entry["images"].keys()
    assert all(0 < share < 1 for share in entry["areas"].values())
    assert 0 <= entry["last"] <= 1 < 1e6 < entry["parameters"]
    assert max(entry["validation"].values()) == pytest.approx(entry["summary"]["run"]["best validation Dice"], abs=1e-4)
    assert campaign.main(words) == 1  # the broken one only
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "results" / "tiny").iterdir()} == written


@pytest.mark.parametrize("path", sorted(CAMPAIGNS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_campaign_of_ours_names_settings_that_exist(campaign, path):
    from segdistill.api.options import TrainOptions, check_options
    from segdistill.methods import METHODS

    plan = yaml.safe_load(path.read_text(encoding="utf-8"))
    for _, run, seed in campaign.planned_runs(plan):
        options = TrainOptions(**(plan.get("options", {}) | run.get("options", {}) | {"seed": seed}))
        check_options(options)
        METHODS[options.method].Config(**run.get("config", {}))


def test_a_stopped_campaign_stops(campaign, tmp_path, monkeypatch, capsys):
    from segdistill.engine.interrupt import Interrupted

    begun = []

    def stopped(settings, common, seed, *given):
        begun.append(seed)
        raise Interrupted(15, "stopped by SIGTERM")

    monkeypatch.setattr(campaign, "finish", stopped)
    (tmp_path / "two.yaml").write_text("runs: [{name: a, data: x, seeds: [0, 1]}]", encoding="utf-8")
    words = ["--data", str(tmp_path), "--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    assert campaign.main([str(tmp_path / "two.yaml"), *words]) == 143
    assert begun == [0]
    assert "stopped by SIGTERM" in capsys.readouterr().err


def test_only_some_runs_in_the_given_order(campaign, tmp_path, capsys):
    from segdistill.types import UserError

    plan = {"runs": [{"name": "a", "seeds": [0, 1]}, {"name": "b", "seeds": [0]}]}
    assert [name for name, _, _ in campaign.planned_runs(plan, ["b_s0", "a_s1"])] == ["b_s0", "a_s1"]
    with pytest.raises(UserError, match=r"c_s0: no run of this campaign; it has a_s0, a_s1, b_s0"):
        campaign.planned_runs(plan, ["a_s0", "c_s0"])
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(plan), encoding="utf-8")
    with pytest.raises(SystemExit) as stopped:
        campaign.main([str(tmp_path / "two.yaml"), "--data", str(tmp_path), "--only", "c_s0"])
    assert stopped.value.code == 2
    assert "c_s0: no run of this campaign" in capsys.readouterr().err


def test_two_runs_of_one_name_are_refused(campaign):
    from segdistill.types import UserError

    with pytest.raises(UserError, match="name"):
        campaign.planned_runs({"runs": [{"name": "a", "seeds": [0]}, {"name": "a", "seeds": [0, 1]}]})


def test_a_run_that_was_begun_otherwise_is_not_carried_on(campaign, tiny_set, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = [str(tmp_path / "plan.yaml"), "--data", str(tiny_set.parent)]
    words += ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    run = {"name": "a", "data": tiny_set.name, "seeds": [0], "config": {"batch_size": 2}}
    plan = {"options": {"size": 32, "iterations": 1, "precision": "32"}, "runs": [run]}
    for batch_size, code in ((2, 0), (4, 1)):
        run["config"]["batch_size"] = batch_size
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan), encoding="utf-8")
        for result in (tmp_path / "results").rglob("*.json"):
            result.unlink()
        assert campaign.main(words) == code
    assert "was begun with batch_size 2, the campaign says 4" in capsys.readouterr().err
