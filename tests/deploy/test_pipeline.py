from __future__ import annotations

import threading
from concurrent.futures import CancelledError

import pytest

from segdistill.deploy.pipeline import ahead

PATIENCE = 30  # seconds until a thread that should have come counts as missing


def test_results_come_in_order_and_the_caller_draws_the_items():
    drawn = []

    def items():
        for number in range(20):
            drawn.append(threading.current_thread())
            yield number

    def square(number):
        assert threading.current_thread() is not threading.main_thread()
        return number * number

    with ahead(square, items()) as squares:
        assert list(squares) == [n * n for n in range(20)]
    assert set(drawn) == {threading.main_thread()}


def test_the_next_is_computed_while_the_last_is_used_and_no_more_than_that():
    begun = [threading.Event() for _ in range(10)]

    with ahead(lambda n: begun[n].set() or n, range(10)) as numbers:
        for n in numbers:
            if n < 9:
                assert begun[n + 1].wait(PATIENCE)
            assert not any(event.is_set() for event in begun[n + 2 :])


def test_two_stages_and_the_caller_work_at_once():
    """Each of the three waits until the others have begun their part: one after the other they never would."""
    meeting = threading.Barrier(3)

    def read(n):
        if n == 2:
            meeting.wait(PATIENCE)
        return n

    def predict(n):
        if n == 1:
            meeting.wait(PATIENCE)
        return n

    def write(n):
        if n == 0:
            meeting.wait(PATIENCE)
        return n

    with ahead(read, range(4)) as loaded, ahead(write, map(predict, loaded)) as ended:
        assert list(ended) == [0, 1, 2, 3]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_comes_in_its_turn_and_ends_the_work(error):
    called, got = [], []

    def fail_at_two(n):
        called.append(n)
        if n == 2:
            raise error
        return n

    def take_all():
        with ahead(fail_at_two, range(10)) as numbers:
            for n in numbers:
                got.append(n)

    with pytest.raises(error):
        take_all()
    assert (called, got) == ([0, 1, 2], [0, 1])


def test_leaving_early_waits_for_what_runs_and_drops_the_rest():
    running, ended, threads = threading.Event(), [], threading.active_count()

    def slow(n):
        if n == 1:
            running.set()
            threading.Event().wait(0.1)
        ended.append(n)
        return n

    def stop():
        with ahead(slow, range(10)) as numbers:
            next(numbers)
            assert running.wait(PATIENCE)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert ended == [0, 1]
    assert threading.active_count() == threads


def test_an_error_of_the_caller_is_not_hidden_by_a_later_one():
    with pytest.raises(ZeroDivisionError), ahead(lambda n: n, (1 // n for n in (1, 0))) as numbers:
        list(numbers)
    with pytest.raises(CancelledError), ahead(lambda n: n, [1]) as numbers:
        raise CancelledError
