"""A hand-sized confusion."""

from segdistill.metrics.routing import describe_routing, summarise_routing

P = [[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.4, 0.6], [0.45, 0.55]]


def test_counts_by_hand():
    found = summarise_routing(["a", "a", "a", "b", "z"], P, ("a", "b"), 0.8)
    assert found["confusion"] == {"a": {"a": 2, "b": 1}, "b": {"a": 0, "b": 1}, "z": {"a": 0, "b": 1}}
    assert (found["accuracy"], found["n"]) == (3 / 4, 4)  # z is not known, so neither right nor wrong
    assert found["per_modality"] == {"a": 2 / 3, "b": 1}
    assert found["unsure"] == {"a": 1, "b": 1, "z": 1}
    assert found["unknown"] == ["z"]


def test_words():
    known, unknown = describe_routing(summarise_routing(["a", "a", "a", "b", "z"], P, ("a", "b"), 0.8), "image")
    assert "75.0% of 4 images (it is unsure of 2)" in known
    assert "does not know the modality z" in unknown
    assert "b 1; unsure of 1" in unknown
    (only,) = describe_routing(summarise_routing([""], P[:1], ("a", "b"), 0.8), "image")
    assert "does not know the modality of these images" in only
