"""The sampler is a pure function; oracle: what an epoch must contain."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segdistill.data.sampler import BLOCK, batch_rows, draw

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


GROUPS = np.repeat([0, 1, 2], (40, 8, 2))


def balanced(count, position, balance=0.5, key=(3, 0), groups=GROUPS):
    rows, none = np.arange(len(groups)), np.arange(0)
    return batch_rows(rows, none, (count, 0), position=position, key=key, groups=groups, balance=balance)


@pytest.mark.parametrize(
    ("balance", "shares"), [(1.0, (1 / 3, 1 / 3, 1 / 3)), (0.5, (0.5985, 0.2677, 0.1338)), (0.0, (0.8, 0.16, 0.04))]
)
def test_groups_have_their_shares(balance, shares):
    """Oracle: n^(1 - balance), in each block and, within what chance allows, in each part of one."""
    size = 64
    drawn = np.stack([GROUPS[balanced(size, p, balance)] for p in range(BLOCK // size)])
    for group, share in enumerate(shares):
        counts = (drawn == group).sum(1)
        assert counts.sum() / BLOCK == pytest.approx(share, abs=1e-3)
        spread = np.sqrt(size * share * (1 - share))
        assert abs(counts - size * share).max() < 4.5 * spread
        assert counts.std() == pytest.approx(spread, rel=0.35)


def test_each_group_cycles_through_its_rows():
    drawn = np.concatenate([balanced(7, p) for p in range(1200)])  # beyond two blocks
    for group, size in enumerate((40, 8, 2)):
        own = drawn[GROUPS[drawn] == group]
        epochs = own[: len(own) // size * size].reshape(-1, size)
        assert (np.sort(epochs, 1) == np.flatnonzero(group == GROUPS)).all()
        assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_balanced_draw_depends_on_its_place_only():
    late = balanced(4, 3000)
    for position in range(20):
        balanced(4, position)
    np.testing.assert_array_equal(balanced(4, 3000), late)
    assert balanced(50, 0).tolist() != balanced(50, 0, key=(4, 0)).tolist()


def test_ranks_cut_one_row_of_balanced_places():
    one = np.concatenate([balanced(8, iteration) for iteration in range(6)])
    two = np.concatenate([balanced(4, iteration * 2 + rank) for iteration in range(6) for rank in range(2)])
    np.testing.assert_array_equal(one, two)


def test_one_group_is_drawn_as_without_groups():
    for position in range(5):
        alone = balanced(6, position, groups=np.zeros(10, int))
        np.testing.assert_array_equal(alone, draw(np.arange(10), 6, position=position, key=(3, 0, 0)))


def test_groups_of_other_rows_and_of_all_rows():
    labelled, others = np.arange(0, 50, 5), np.setdiff1d(np.arange(50), np.arange(0, 50, 5))
    rows = batch_rows(labelled, others, (3, 300), position=0, key=(0,), groups=GROUPS, balance=1.0)
    assert set(rows[:3]) <= set(labelled)
    assert set(rows[3:]) <= set(others)
    assert np.bincount(GROUPS[rows[3:]]).min() > 60
    rows = batch_rows(labelled, others, (0, 300), position=0, key=(0,), groups=GROUPS, balance=1.0)
    assert len(rows) == 300
    assert set(rows) == set(range(50))
