"""Splits and the label budget: who is where, and that nothing but the seed decides it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segdistill.data.rows import Manifest, Row
from segdistill.data.splits import apply_budget, assign_splits, load_splits, save_splits
from segdistill.types import UserError

ROOT = Path("data")


def make(count: int, patients: int = 0, *, unlabelled: int = 0, split: str = "") -> list[Row]:
    """Images in turn of each patient (0: unknown), the last ones without a mask."""
    return [
        Row(
            ROOT / f"images/{i}.png",
            ROOT / f"masks/{i}.png" if i < count - unlabelled else None,
            split,
            f"p{i % patients}" if patients else "",
        )
        for i in range(count)
    ]


def assign(rows: list[Row], val: float = 0.2, test: float = 0.2, seed: int = 0) -> tuple[Row, ...]:
    return assign_splits(Manifest("x", ROOT, tuple(rows)), val=val, test=test, seed=seed)


def labelled(rows: tuple[Row, ...], split: str = "train") -> set[str]:
    return {row.image.name for row in rows if row.mask and row.split == split}


# --- splits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("val", "test", "expected"), [(0.2, 0.1, (70, 20, 10)), (7, 30, (63, 7, 30)), (0, 0, (100, 0, 0))]
)
def test_fractions_and_counts(val: float, test: float, expected: tuple[int, int, int]) -> None:
    counts = Counter(row.split for row in assign(make(100), val, test))
    assert tuple(counts[split] for split in ("train", "val", "test")) == expected


@settings(derandomize=True, deadline=None)
@given(st.integers(10, 60), st.integers(4, 12), st.integers(0, 5), st.integers(0, 1000))
def test_patients_stay_whole_and_rows_keep_their_order(count: int, patients: int, unlabelled: int, seed: int) -> None:
    rows = make(count, patients, unlabelled=unlabelled)
    result = assign(rows, seed=seed)
    assert [replace(row, split="") for row in result] == rows
    for patient in {row.patient for row in rows}:
        assert len({row.split for row in result if row.patient == patient}) == 1
    total, largest = count - unlabelled, -(-count // patients)
    for split in ("val", "test"):
        assert len(labelled(result, split)) >= 1
        assert abs(len(labelled(result, split)) - max(1, round(0.2 * total))) <= largest
    assert labelled(result)


@pytest.mark.parametrize(("asked", "drawn"), [(1, 10), (14, 10), (16, 20)])
def test_whole_patients_come_as_near_as_they_can(asked: int, drawn: int) -> None:
    assert len(labelled(assign(make(100, 10), asked, 0), "val")) == drawn


@pytest.mark.parametrize("seed", range(12))
def test_a_patient_of_most_images_trains(seed: int) -> None:
    """One of 120 images beside eleven of 4, as a long video is; asked for 25."""
    names = ["long"] * 120 + [f"p{i // 4}" for i in range(44)]
    rows = [Row(ROOT / f"images/{i}.png", ROOT / f"masks/{i}.png", "", name) for i, name in enumerate(names)]
    result = assign(rows, 0.15, 0, seed)
    assert len(labelled(result, "val")) == 24
    assert {row.split for row in result if row.patient == "long"} == {"train"}


def test_patients_that_are_all_too_large_are_said_to_be(caplog: pytest.LogCaptureFixture) -> None:
    assert Counter(row.split for row in assign(make(30, 3), 0, 4))["test"] == 10
    assert "test: 10 labelled images were drawn for the 4 asked for" in caplog.text
    caplog.clear()
    assert Counter(row.split for row in assign(make(30, 3), 0, 5))["test"] == 10
    assert not caplog.text


def test_volumes_hold_together_where_patients_are_unknown() -> None:
    rows = [replace(row, volume=f"v{i % 7}", slice=i) for i, row in enumerate(make(70))]
    result = assign(rows)
    for volume in {row.volume for row in rows}:
        assert len({row.split for row in result if row.volume == volume}) == 1


def test_the_slices_of_a_file_hold_together_where_nothing_else_is_known() -> None:
    rows = [replace(row, image=ROOT / f"brain{i % 7}.nii.gz#{i // 7}") for i, row in enumerate(make(70))]
    result = assign(rows)
    assert {row.split for row in result} == {"train", "val", "test"}
    for number in range(7):
        assert len({row.split for row in result if row.image.name.startswith(f"brain{number}.")}) == 1


def test_unlabelled_rows_train_unless_their_patient_is_scored() -> None:
    assert {row.split for row in assign(make(40, unlabelled=20)) if row.mask is None} == {"train"}
    result = assign(make(40, 8, unlabelled=20))
    scored = {row.patient for row in result if row.mask and row.split != "train"}
    assert scored
    assert all((row.split == "train") == (row.patient not in scored) for row in result)


def test_seeds_differ_and_repeat() -> None:
    rows = make(50)
    assert assign(rows, seed=1) == assign(rows, seed=1)
    assert assign(rows, seed=1) != assign(rows, seed=2)
    moved = [replace(row, image=Path("/other") / row.image, mask=Path("/other") / "m.png") for row in rows]
    assert [row.split for row in assign(moved, seed=1)] == [row.split for row in assign(rows, seed=1)]


def test_draws_do_not_change_between_versions() -> None:
    """Written down once: whoever repeats a run by its seed gets the same images."""
    result = assign(make(12), 3, 3, seed=7)
    assert {split: sorted(int(Path(n).stem) for n in labelled(result, split)) for split in ("val", "test")} == {
        "val": [1, 7, 11],
        "test": [0, 2, 6],
    }


def test_given_splits_win(caplog: pytest.LogCaptureFixture) -> None:
    rows = [replace(row, split=split) for row, split in zip(make(6), ["train", "val", "test"] * 2, strict=True)]
    assert assign(rows, 0.5, 0.5) == tuple(rows)
    assert not caplog.records
    rows[0] = replace(rows[0], split="")
    assert [row.split for row in assign(rows)] == ["train", "val", "test"] * 2
    assert "1 rows without a split join train" in caplog.text


def test_a_missing_val_is_drawn_from_train_and_a_missing_test_is_not() -> None:
    rows = make(40, 10, split="train")[:30] + make(40, 10, split="test")[30:]
    result = assign(rows, 0.2, 0.2)
    assert [row.split for row in result[30:]] == ["test"] * 10
    drawn = [row for row in result[:30] if row.split == "val"]
    assert len(drawn) == 6
    assert not {row.patient for row in drawn} & {row.patient for row in result[:30] if row.split == "train"}
    assert {row.split for row in assign(make(40, 10, split="train"))} == {"train", "val"}


@pytest.mark.parametrize(
    ("rows", "val", "message"),
    [
        (make(20), -0.1, "val -0.1: give a fraction"),
        (make(20), float("nan"), "val nan: give a fraction"),
        (make(20), float("inf"), "val inf: give a fraction"),
        (make(20), 2.5, "val 2.5: give a fraction"),
        (make(20), 20, "val 20: there are only 20 labelled images"),
        (make(20), 16, "20 labelled images in 20 groups.*too few"),
        (make(20, 2), 0.2, "20 labelled images in 2 groups.*too few for test 0.2 and val 0.2"),
        (make(20, unlabelled=20), 0.2, "0 labelled images"),
        (make(1), 0.2, "too few"),
    ],
)
def test_draws_that_cannot_be(rows: list[Row], val: float, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        assign(rows, val, 0.2)
    assert "\n" not in str(caught.value)


# --- budget ---------------------------------------------------------------------------------------------------------


def training_set() -> tuple[Row, ...]:
    return tuple(make(60, 12, split="train", unlabelled=10) + make(70, split="val")[60:] + make(80, split="test")[70:])


@pytest.mark.parametrize(
    ("asked", "count"), [("10%", 5), ("7", 7), (" 100 % ", 50), ("0.5%", 1), ("50", 50), ("3patients", 13)]
)
def test_budget_hides_the_other_training_masks_only(asked: str, count: int) -> None:
    rows = training_set()
    result = apply_budget(rows, asked, 0)
    if asked.endswith("patients"):
        assert len({row.patient for row in result if row.split == "train" and row.mask}) == 3
        assert abs(len(labelled(result)) - count) <= 3
    else:
        assert len(labelled(result)) == count
    assert [replace(row, mask=row.mask or row.hidden, hidden=None) for row in result] == list(rows)
    assert all(row.hidden is None for row in result if row.split != "train" or row.mask)
    assert labelled(result, "val") == labelled(rows, "val")
    assert labelled(result, "test") == labelled(rows, "test")


def test_no_budget_keeps_all() -> None:
    assert apply_budget(training_set(), None, 0) == training_set()


@pytest.mark.parametrize("sizes", [("2", "15", "30"), ("4%", "30%", "90%"), ("1patient", "2 patients", "9patients")])
def test_budgets_are_nested_and_seeds_differ(sizes: tuple[str, str, str]) -> None:
    small, middle, large = (labelled(apply_budget(training_set(), size, 5)) for size in sizes)
    assert small < middle < large
    assert labelled(apply_budget(training_set(), sizes[1], 6)) != middle


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("51", "only 50 labelled training images"),
        ("101%", "only 50 labelled training images"),
        ("13patients", "only 12 labelled training patients"),
        ("0", "at least one"),
        ("0%", "at least one"),
        ("0patients", "at least one"),
        ("", "10%, 60, 7patients"),
        ("-3", "10%, 60, 7patients"),
        ("many", "10%, 60, 7patients"),
        ("7 persons", "10%, 60, 7patients"),
        ("٣", "10%, 60, 7patients"),
        ("1e3", "10%, 60, 7patients"),
    ],
)
def test_budgets_that_cannot_be(asked: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        apply_budget(training_set(), asked, 0)
    assert "\n" not in str(caught.value)


def test_patient_budget_needs_patients() -> None:
    with pytest.raises(UserError, match="have no patient"):
        apply_budget(make(10, split="train"), "2patients", 0)


# --- file -----------------------------------------------------------------------------------------------------------

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\\\0"), min_size=1, max_size=8).filter(
    lambda name: name.strip() and name not in (".", "..")
)
WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6).map(str.strip)
PATHS = st.builds(
    lambda folder, name: ROOT / PurePosixPath(folder) / name, st.sampled_from(["images", "a b/ü", "."]), NAMES
)
ROWS = st.builds(
    Row,
    PATHS,
    st.none() | PATHS,
    st.sampled_from(["", "train", "val", "test"]),
    WORDS,
    WORDS,
    WORDS,
    st.none() | st.integers(-999, 999),
    st.none() | st.lists(st.floats(1e-300, 1e300), min_size=2, max_size=3).map(tuple),
    st.none() | PATHS,
)


@settings(derandomize=True, deadline=None)
@given(st.lists(ROWS, max_size=5))
def test_round_trip_is_exact(tmp_path_factory: pytest.TempPathFactory, rows: list[Row]) -> None:
    path = tmp_path_factory.getbasetemp() / "splits.csv"
    save_splits(path, rows, ROOT)
    assert load_splits(path, ROOT) == tuple(rows)


def test_data_may_move_and_lie_outside(tmp_path: Path) -> None:
    outside = tmp_path / "other" / "x.png"
    rows = [Row(ROOT / "images/a.png", None, "train"), Row(outside, None, "test", hidden=ROOT / "masks/a.png")]
    save_splits(tmp_path / "s.csv", rows, ROOT)
    assert str(ROOT.absolute()) not in (tmp_path / "s.csv").read_text(encoding="utf-8")
    moved = load_splits(tmp_path / "s.csv", tmp_path / "new")
    assert moved[0].image == tmp_path / "new/images/a.png"
    assert moved[1].image == outside
    assert moved[1].hidden == tmp_path / "new/masks/a.png"


def test_saving_is_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        save_splits(tmp_path / "no folder" / "s.csv", [], ROOT)
    with pytest.raises(UserError, match="cannot be read"):
        load_splits(tmp_path / "none.csv", ROOT)
    assert not list(tmp_path.iterdir())
