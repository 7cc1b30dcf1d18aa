"""The sampler is a pure function; oracle: what an epoch must contain."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from segdistill.data.sampler import batch_rows, draw

POOL = np.arange(100, 110)


@given(st.integers(1, 40), st.integers(1, 7), st.integers(0, 50))
def test_every_epoch_holds_every_row_once(length, count, seed):
    pool = np.arange(length) * 3
    needed = -(-3 * length // count)
    rows = np.concatenate([draw(pool, count, position=p, key=(seed,)) for p in range(needed)])
    for epoch in range(3):
        assert sorted(rows[epoch * length : (epoch + 1) * length]) == sorted(pool)


def test_a_draw_depends_on_its_place_only():
    late = draw(POOL, 4, position=9, key=(1, 2))
    for position in range(9):
        draw(POOL, 4, position=position, key=(1, 2))
    np.testing.assert_array_equal(draw(POOL, 4, position=9, key=(1, 2)), late)


def test_seed_and_stage_change_the_order():
    def first_epoch(*key):
        return tuple(draw(POOL, 10, position=0, key=key))

    assert len({first_epoch(0, 0), first_epoch(1, 0), first_epoch(0, 1)}) == 3


def test_fewer_labels_than_asked_cycle():
    rows = draw(np.array([5, 7]), 6, position=0, key=(0,))
    assert sorted(rows) == [5, 5, 5, 7, 7, 7]


def test_labelled_and_other_rows():
    rows = batch_rows(np.arange(4), np.arange(50, 90), (3, 5), position=0, key=(0, 0))
    assert (rows[:3] < 4).all()
    assert (rows[3:] >= 50).all()
    assert len(rows) == 8


def test_no_other_rows_leave_the_labelled_ones():
    assert len(batch_rows(np.arange(4), np.arange(0), (3, 5), position=0, key=(0, 0))) == 3


def test_a_stage_without_labels_draws_from_all_training_rows():
    rows = batch_rows(np.arange(4), np.arange(4, 9), (0, 9), position=0, key=(0, 0))
    assert sorted(rows) == list(range(9))


def test_ranks_share_an_epoch_without_overlap():
    rows = np.concatenate(
        [draw(np.arange(12), 3, position=iteration * 2 + rank, key=(0,)) for iteration in range(2) for rank in range(2)]
    )
    assert sorted(rows) == list(range(12))
