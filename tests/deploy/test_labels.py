from __future__ import annotations

from collections import deque

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segdistill.deploy.labels import decide, postprocess


def components(mask):
    """8-connected components by flood fill: the oracle."""
    left, found = set(zip(*map(np.ndarray.tolist, np.nonzero(mask)), strict=True)), []
    while left:
        queue, seen = deque([left.pop()]), []
        while queue:
            y, x = queue.popleft()
            seen.append((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            queue.extend(near)
        found.append(seen)
    return found


@given(labels=arrays(np.uint8, (7, 9), elements=st.integers(0, 3)))
def test_largest_keeps_one_largest_component_per_class(labels):
    from segdistill.deploy.artefact import Card

    card = Card("micro", {}, "m", ("b", "c", "d", "e"), ((0, 0, 0),) * 4, (8, 8), "none", postprocess="largest")
    kept = postprocess(labels, card)
    assert set(np.unique(kept)) - {0} == set(np.unique(labels)) - {0}
    for index in set(np.unique(labels)) - {0}:
        (only,) = components(kept == index)
        before = components(labels == index)
        assert sorted(only) in [sorted(c) for c in before]
        assert len(only) == max(map(len, before))


def test_without_postprocessing_the_labels_are_untouched(card):
    labels = np.array([[1, 0, 1]], np.uint8)
    assert postprocess(labels, card()) is labels


def test_rule_of_two_classes_and_of_more(card):
    p = np.array([[[0.7, 0.6]], [[0.3, 0.4]]], np.float32)
    np.testing.assert_array_equal(decide(p, card(threshold=0.4)), [[0, 1]])
    p = np.array([[[0.2]], [[0.4]], [[0.4]]], np.float32)
    assert decide(p, card(3)).tolist() == [[1]]
    assert decide(p, card(3)).dtype == np.uint8
