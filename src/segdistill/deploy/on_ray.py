"""Predict on a cluster: Ray Data hands blocks of sources to actors, which hold a predictor each and write the files.

What an actor does with a source is `predict_sources`, as on one machine; tables are written by the caller. Student,
images and output lie on disks that every node sees under the same absolute path. Ray's usage statistics are off.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..types import UserError
from .predictor import Predictor, open_predictor
from .sources import Source
from .stages import Engine, Order, Outcome, predict_sources

if TYPE_CHECKING:
    from pyarrow import Table

BLOCK = 32  # sources that an actor gets at once: few enough that one that fails or lags costs little


def ray_engine(student: Path, device: str = "cpu", threads: int | None = None) -> Engine:
    """For `predict_files`: the cluster of RAY_ADDRESS, else one that runs here already, else one of this machine alone.

    Args:
        student: As `open_predictor` takes it; each actor opens it once.
        device: cpu, or cuda: each actor has a GPU of its own.
        threads: CPUs of each actor, one if None; there are as many actors as the cluster has room for.

    Raises:
        UserError: Ray is not installed.
    """
    if find_spec("ray") is None or find_spec("pyarrow") is None:
        raise UserError("--engine ray needs Ray Data; install it with: pip install segdistill[ray]")
    cpus, kind = threads or 1, device.split(":")[0]
    student = student.absolute()

    def run(sources: Iterable[tuple[int, Source]], order: Order) -> Generator[Outcome, None, None]:
        order = order._replace(out=order.out.absolute())
        with _cluster() as ray:
            wanted = {"CPU": cpus, "GPU": 1} if kind == "cuda" else {"CPU": cpus}
            blocks = list(_blocks(sources))
            actors = min(_room(ray.cluster_resources(), wanted), max(1, len(blocks)))
            outcomes = ray.data.from_arrow(blocks).map_batches(
                _Worker,
                fn_constructor_args=(student, kind, cpus, order),
                compute=ray.data.ActorPoolStrategy(size=actors),
                num_cpus=cpus,
                num_gpus=wanted.get("GPU", 0),
                batch_size=None,
                batch_format="pyarrow",
            )
            for row in outcomes.iter_rows():
                outcome = ray.cloudpickle.loads(row["outcome"])
                if isinstance(outcome, UserError):
                    raise outcome
                yield outcome

    return run


class _Worker:
    """An actor: one predictor for all its blocks."""

    def __init__(self, student: Path, device: str, threads: int, order: Order) -> None:
        self.opening = (student, device, threads)
        self.order = order
        self.predictor: Predictor | None = None

    def __call__(self, block: Table) -> Table:
        """Sources in, outcomes out; a UserError stops the run, and travels as a value so that it stays one line."""
        from pyarrow import array, binary, table
        from ray import cloudpickle

        try:
            self.predictor = self.predictor or open_predictor(*self.opening, images=BLOCK)
            sources = [cloudpickle.loads(one.as_py()) for one in block["source"]]
            found: list[Any] = list(predict_sources(self.predictor, sources, self.order))
        except UserError as error:
            found = [error]
        return table({"outcome": array([cloudpickle.dumps(one) for one in found], binary())})


def _blocks(sources: Iterable[tuple[int, Source]]) -> Iterator[Table]:
    from pyarrow import array, binary, table
    from ray import cloudpickle

    numbered = ((number, _absolute(source)) for number, source in sources)
    while block := [cloudpickle.dumps(one) for one in islice(numbered, BLOCK)]:
        yield table({"source": array(block, binary())})


def _absolute(source: Source) -> Source:
    """An actor has another working directory."""
    series = source.series and source.series._replace(files=tuple(file.absolute() for file in source.series.files))
    return source._replace(files=tuple(file.absolute() for file in source.files), series=series)


def _room(there: dict[str, float], wanted: dict[str, int]) -> int:
    """How many actors fit into a cluster; UserError if none does."""
    actors = min(int(there.get(kind, 0)) // number for kind, number in wanted.items())
    if actors < 1:
        needs, has = (", ".join(f"{some.get(kind, 0):g} {kind}" for kind in wanted) for some in (wanted, there))
        raise UserError(f"--engine ray: an actor needs {needs}, and the cluster has {has}; use fewer --threads or cpu")
    return actors


@contextmanager
def _cluster() -> Iterator[Any]:
    """Ray, connected and quiet; a cluster that was begun here ends here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    import ray.data

    ours = not ray.is_initialized()
    if ours:
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # plain ones too, where a node does not come up in time
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"--engine ray: no cluster ({reason}); see RAY_ADDRESS, or use --engine local") from None
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # a block of large volumes may take hours
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield ray
    finally:
        if ours:
            ray.shutdown()
