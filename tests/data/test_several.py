"""Several data sets in one run: names, options, one list of classes, rows of several caches."""

from pathlib import Path

import numpy as np
import pytest

from segdistill.data.batches import Dataset, TrainingBatches
from segdistill.data.cache import Cache, Stacked, join_caches
from segdistill.data.labels import LabelMapping, MaskValues, build_mapping
from segdistill.data.rows import Manifest, Row
from segdistill.data.several import Source, into_classes, join_manifests, join_mappings, marks_of, per_set
from segdistill.data.volumes import volumes
from segdistill.types import UserError


def manifest(name, *modalities, folder="sets"):
    root = Path(folder) / name
    return Manifest(name, root, tuple(Row(root / f"{i}.png", None, modality=m) for i, m in enumerate(modalities)))


def found(*values, threshold=None):
    return MaskValues(tuple(values), (3,) * len(values), 3, threshold=threshold)


BINARY, THREE = found(0, 255), found(0, 1, 2)


def test_rows_know_their_set_and_modality():
    a, b = join_manifests([manifest("A", "", "ct"), manifest("B", "")], "B=xray")
    assert [(row.dataset, row.modality) for row in (*a.rows, *b.rows)] == [("A", "A"), ("A", "ct"), ("B", "xray")]


def test_a_single_set_without_a_modality_stays_without():
    (one,) = join_manifests([manifest("A", "", "ct")])
    assert [row.modality for row in one.rows] == ["", "ct"]
    (one,) = join_manifests([manifest("A", "", "ct")], "xray")
    assert [row.modality for row in one.rows] == ["xray", "xray"]


@pytest.mark.parametrize("names", [("A", "A"), ("Kvasir", "kvasir")])
def test_two_sets_of_one_name_are_refused(names):
    with pytest.raises(UserError, match="two data sets named"):
        join_manifests([manifest(names[0]), manifest(names[1], folder="others")])


@pytest.mark.parametrize(
    ("text", "names", "expected"),
    [
        (None, "AB", {}),
        ("10%", "AB", {"A": "10%", "B": "10%"}),
        ("A=5", "AB", {"A": "5"}),
        ("A=5; B = 7".replace(" = ", "="), "AB", {"A": "5", "B": "7"}),
        ("A=x,y; u,v", "ABC", {"A": "x,y", "B": "u,v", "C": "u,v"}),
        ("x;y,z", "A", {"A": "x;y,z"}),  # of one set nothing is split that does not name it
        ("A=x", "A", {"A": "x"}),
        (127, "AB", {"A": "127", "B": "127"}),
        ("x,a=b", "A", {"A": "x,a=b"}),
    ],
)
def test_what_an_option_says_of_each(text, names, expected):
    assert per_set(text, list(names), "--labelled") == expected


@pytest.mark.parametrize("text", ["C=5", "A=5; A=6", "5; 6"])
def test_an_option_that_fits_no_set_or_says_two_things(text):
    with pytest.raises(UserError, match="--labelled"):
        per_set(text, ["A", "B"], "--labelled")


def test_the_longest_name_is_meant():
    assert per_set("A=b=x", ["A", "A=b"], "--modality") == {"A=b": "x"}


def test_two_valued_sets_share_one_foreground():
    mappings = join_mappings({"A": BINARY, "B": found(0, 1)}, {})
    for mapping in mappings.values():
        assert mapping.classes == ("background", "foreground")
        assert mapping.marks() == (True, True)
    assert mappings["A"] == build_mapping(BINARY)  # so a cache of A alone serves here too
    np.testing.assert_array_equal(mappings["A"].apply(np.array([[0, 255]], np.uint8)), [[0, 1]])


def test_names_join_equal_classes():
    names = {"A": ["background", "polyp"], "B": ["background", "lung", "polyp"], "C": ["ground", "lung"]}
    mappings = join_mappings({"A": BINARY, "B": THREE, "C": BINARY}, names)
    assert {mapping.classes for mapping in mappings.values()} == {("background", "polyp", "lung")}
    np.testing.assert_array_equal(mappings["B"].apply(np.array([[0, 1, 2]], np.uint8)), [[0, 2, 1]])
    np.testing.assert_array_equal(mappings["C"].apply(np.array([[0, 255]], np.uint8)), [[0, 2]])
    assert [mappings[name].marks() for name in "ABC"] == [(True, True, False), (True,) * 3, (True, False, True)]
    assert "polyp" not in mappings["C"].describe()
    for mapping in mappings.values():
        assert LabelMapping.from_json(mapping.to_json()) == mapping


def test_a_threshold_finds_the_joint_class():
    values = found(0, 1, threshold=127)
    names = {"A": ["background", "polyp"], "B": ["background", "lung"]}
    mappings = join_mappings({"A": BINARY, "B": values}, names)
    np.testing.assert_array_equal(mappings["B"].apply(np.array([[3, 200]], np.uint8)), [[0, 2]])


@pytest.mark.parametrize(
    ("sets", "names", "said"),
    [
        ({"A": BINARY, "B": THREE}, {}, "B: .*--classes B=background,class_1,class_2"),
        ({"A": BINARY, "B": BINARY}, {"A": ["background", "polyp"]}, "nothing of B"),
        ({"A": BINARY, "B": BINARY}, {"A": ["background", "polyp"], "B": ["polyp", "lung"]}, "background in one set"),
        ({"A": BINARY, "B": BINARY}, {"A": ["b", "polyp"], "B": ["b", "x", "y"]}, "^B: 3 class names"),
    ],
)
def test_what_nobody_can_know_stops(sets, names, said):
    with pytest.raises(UserError, match=said):
        join_mappings(sets, names)


def test_a_damaged_joint_mapping_is_refused():
    names = {"A": ["background", "polyp"], "B": ["background", "lung"]}
    saved = join_mappings({"A": BINARY, "B": BINARY}, names)["B"].to_json()
    with pytest.raises(UserError, match="damaged"):
        LabelMapping.from_json(saved | {"annotated": [0, 1]})
    with pytest.raises(UserError, match="damaged"):
        LabelMapping.from_json(saved | {"annotated": [0, 2, 7]})


def test_a_students_classes_are_found_by_name():
    mapping = into_classes(build_mapping(BINARY, ["ground", "lung"]), ("background", "polyp", "lung"))
    np.testing.assert_array_equal(mapping.apply(np.array([[0, 255]], np.uint8)), [[0, 2]])
    with pytest.raises(UserError, match="class liver is none of polyp, lung"):
        into_classes(build_mapping(BINARY, ["background", "liver"]), ("background", "polyp", "lung"))


def test_a_set_without_masks_has_the_classes_of_its_modality():
    names = {"A": ["background", "polyp"], "B": ["background", "lung"]}
    mappings = join_mappings({"A": BINARY, "B": BINARY}, names)
    sources = [Source(name, Path(name), mappings.get(name)) for name in "ABUV"]
    modalities = {"A": "colonoscopy", "B": "xray", "U": "xray", "V": "unlike"}
    rows = [Row(Path(name), None, dataset=name, modality=modality) for name, modality in modalities.items()]
    marks = marks_of(sources, rows, 3)
    assert marks == {"A": (True, True, False), "B": (True, False, True), "U": marks["B"], "V": (True,) * 3}


def test_volumes_of_one_name_in_two_sets_are_two():
    rows = [Row(Path(f"{name}/{k}"), None, volume="v", slice=k, dataset=name) for k in (0, 1) for name in "AB"]
    assert [[row.dataset for row in volume] for volume in volumes(rows)] == [["A", "A"], ["B", "B"]]


def test_stacked_arrays_read_as_one():
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 255, (n, 4, 5), dtype=np.uint8) for n in (3, 1, 6)]
    whole, numbers = np.concatenate(parts), np.array([9, 0, 3, 3, 4, 2])
    stacked = Stacked(parts)
    assert stacked.shape == whole.shape
    np.testing.assert_array_equal(stacked[numbers], whole[numbers])
    assert stacked[np.array([], int)].shape == (0, 4, 5)


def joint(count=6):
    """Rows of A (class 1) and B (class 2) in turns of three, in one cache."""
    caches = [
        Cache(np.full((count, 4, 4, 3), k, np.uint8), np.full((count, 4, 4), k, np.uint8), str(k)) for k in (1, 2)
    ]
    rows = [
        Row(Path(f"{name}{i}"), Path("m"), "train", modality=modality, dataset=name)
        for name, modality in (("A", "xray"), ("B", "fundus"))
        for i in range(count)
    ]
    marks = {"A": (True, True, False), "B": (True, False, True)}
    return Dataset(join_caches(caches), rows, ("background", "a", "b"), ("fundus", "xray"), marks)


def test_a_batch_says_which_classes_each_row_annotates():
    data = joint()
    batch = data.batch(np.array([7, 0, 11]))
    assert batch.classes.tolist() == [[True, False, True], [True, True, False], [True, False, True]]
    assert batch.modality.tolist() == [0, 1, 0]
    assert batch.mask[:, 0, 0].tolist() == [2, 1, 2]
    assert data.modality_classes == ((2,), (1,))


def test_training_batches_balance_by_modality():
    data = joint()
    many = Dataset(data.cache, data.rows[:10], data.classes, data.modalities, data.annotated)  # 6 of A, 4 of B
    drawn = np.concatenate(
        [TrainingBatches(many, 0, balance=1.0).at(0, (8, 0), p, "cpu").modality.numpy() for p in range(512)]
    )
    assert drawn.mean() == 0.5  # 4096 places are a whole block
    alike = [TrainingBatches(many, 0).at(0, (10, 0), p, "cpu").modality.float().mean() for p in range(3)]
    assert alike == pytest.approx([0.6] * 3)
