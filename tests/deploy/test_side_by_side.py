from __future__ import annotations

import os
import threading
from concurrent.futures import CancelledError

import pytest

from segdistill.deploy.side_by_side import MOST, shares, side_by_side

PATIENCE = 30  # seconds until a thread that should have come counts as missing


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_order_and_the_caller_draws_the_items(workers):
    drawn = []

    def items():
        for number in range(20):
            drawn.append(threading.current_thread())
            yield number

    def square(number):
        assert threading.current_thread() is not threading.main_thread()
        threading.Event().wait(0.01 * (number % 3))
        return number * number

    with side_by_side(square, items(), workers) as squares:
        assert list(squares) == [n * n for n in range(20)]
    assert set(drawn) == {threading.main_thread()}


@pytest.mark.parametrize("workers", [1, 3])
def test_as_many_at_once_as_there_are_workers_and_no_more_are_drawn_than_one_that_waits(workers):
    meeting, lock, running, most, drawn = threading.Barrier(workers), threading.Lock(), [], [], []

    def items():
        for number in range(4 * workers):
            drawn.append(number)
            yield number

    def work(number):
        with lock:
            running.append(number)
            most.append(len(running))
        meeting.wait(PATIENCE)  # all workers are here, or it fails
        with lock:
            running.remove(number)
        return number

    with side_by_side(work, items(), workers) as numbers:
        for done, _ in enumerate(numbers, start=1):
            assert len(drawn) <= done + workers
    assert max(most) == workers


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_comes_in_its_turn_and_ends_the_work(error):
    called, got = [], []

    def fail_at_two(n):
        called.append(n)
        if n == 2:
            raise error
        return n

    def take_all():
        with side_by_side(fail_at_two, range(10), 1) as numbers:
            for n in numbers:
                got.append(n)

    with pytest.raises(error):
        take_all()
    assert (called, got) == ([0, 1, 2], [0, 1])


def test_of_two_that_fail_the_first_in_order_is_told():
    meeting = threading.Barrier(2)

    def fail(n):
        meeting.wait(PATIENCE)
        raise (ValueError, KeyError)[n]

    with pytest.raises(ValueError), side_by_side(fail, range(2), 2) as numbers:  # noqa: PT011
        list(numbers)


def test_leaving_early_waits_for_what_runs_and_drops_the_rest():
    running, ended, threads = threading.Event(), [], threading.active_count()

    def slow(n):
        if n == 1:
            running.set()
            threading.Event().wait(0.1)
        ended.append(n)
        return n

    def stop():
        with side_by_side(slow, range(10), 1) as numbers:
            next(numbers)
            assert running.wait(PATIENCE)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert ended == [0, 1]
    assert threading.active_count() == threads


def test_an_error_of_the_caller_is_not_hidden_by_a_later_one():
    with pytest.raises(ZeroDivisionError), side_by_side(lambda n: n, (1 // n for n in (1, 0)), 1) as numbers:
        list(numbers)
    with pytest.raises(CancelledError), side_by_side(lambda n: n, [1], 1) as numbers:
        raise CancelledError


@pytest.mark.parametrize(
    ("threads", "images", "expected"),
    [
        (1, 9, (1, 1)),
        (2, 9, (2, 1)),
        (9, 9, (MOST, 2)),
        (16, 9, (4, 4)),
        (16, 3, (3, 5)),  # a few volumes leave no core idle
        (16, 1, (1, 16)),
        (16, 0, (1, 16)),
        (None, 1, (1, None)),
    ],
)
def test_the_cores_are_shared_by_as_many_images_as_there_are(threads, images, expected):
    assert shares(threads, images) == expected
    assert shares(None, 9) == shares(os.cpu_count(), 9)
