"""What Prometheus may know: counts and times, never an image, a name or an address."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from .worker import Worker

BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)  # seconds


class Metrics:
    """The figures of one server."""

    def __init__(self, worker: Worker) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "segdistill_requests", "Requests answered.", ["path", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "segdistill_request_seconds",
            "From the headers of a request to the end of its answer.",
            ["path"],
            buckets=BUCKETS,
            registry=self._registry,
        )
        queue = Gauge("segdistill_queue_length", "Uploads that arrive, wait or are computed.", registry=self._registry)
        queue.set_function(lambda: worker.taken)
        places = Gauge("segdistill_queue_places", "Above this length 503 is answered.", registry=self._registry)
        places.set(worker.places)
        ProcessCollector(registry=self._registry)  # memory and CPU time, on Linux

    def count(self, path: str, status: int, seconds: float) -> None:
        """One request; `path` must be one of few."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)
