from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import pytest

from segdistill.deploy.serve.worker import Busy, Worker


def test_places_are_counted_and_given_back():
    worker = Worker(1)
    with worker.place():
        with worker.place(), pytest.raises(Busy) as busy, worker.place():
            pass
        assert busy.value.seconds == 2  # two before it, and a job is thought to take a second before the first one
        with worker.place():
            assert worker.taken == worker.places == 2
    assert worker.taken == 0
    worker.close()


def test_a_place_is_given_back_when_its_request_fails():
    worker = Worker(0)
    with pytest.raises(KeyError), worker.place():
        raise KeyError
    with worker.place():
        pass
    worker.close()


def test_one_thread_computes_in_order_and_what_is_cancelled_is_dropped():
    async def main() -> list[tuple[int, str]]:
        worker, free, ran = Worker(9), threading.Event(), []

        def job(number: int) -> int:
            assert free.wait(10)
            ran.append((number, threading.current_thread().name))
            return number

        jobs = [worker.start(lambda number=number: job(number)) for number in range(4)]
        jobs[2].cancel()
        await asyncio.sleep(0)  # the loop passes it on to the thread's queue
        free.set()
        assert await asyncio.gather(jobs[0], jobs[1], jobs[3]) == [0, 1, 3]
        worker.close()
        return ran

    ran = asyncio.run(main())
    assert [number for number, _ in ran] == [0, 1, 3]
    assert len({name for _, name in ran}) == 1
    assert ran[0][1] != threading.current_thread().name


def test_a_job_that_is_dropped_keeps_nothing():
    """Though the thread's queue is longer than the places: what a client sent goes with the client."""

    class Upload:
        pass

    async def main() -> None:
        worker, free = Worker(1), threading.Event()
        running = worker.start(lambda: free.wait(120))
        for _ in range(5):
            upload = Upload()
            gone = weakref.ref(upload)
            waiting = worker.start(lambda upload=upload: upload)
            waiting.cancel()
            del upload, waiting
            await asyncio.sleep(0)
            gc.collect()
            assert gone() is None
        free.set()
        assert await running
        assert await worker.start(lambda: 1) == 1
        worker.close()

    asyncio.run(main())


def test_the_time_to_wait_follows_the_last_job(monkeypatch):
    clock = iter([100.0, 107.0])
    monkeypatch.setattr("segdistill.deploy.serve.worker.time.perf_counter", lambda: next(clock))

    async def main() -> None:
        worker = Worker(0)
        await worker.start(lambda: None)
        with worker.place(), pytest.raises(Busy) as busy, worker.place():
            pass
        assert busy.value.seconds == 7
        worker.close()

    asyncio.run(main())
