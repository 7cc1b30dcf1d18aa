"""Several processes as one: who is first, what all agree on, and how they end together.

torchrun, SLURM, or `launch` on one host start the processes; Fabric finds out who is who and connects them, with gloo,
on GPUs with NCCL. Fabric's own launcher is left out: it repeats the caller's whole script, and when a process ends with
an error its observer kills the first one within five seconds, perhaps while that is saving the run.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import find_free_network_port
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, nn

from ..types import UserError
from .interrupt import Interrupted

T = TypeVar("T")
TIMEOUT = timedelta(minutes=10)  # of one exchange while training
PATIENCE = timedelta(days=1)  # while the first process checks and decodes the data
GRACE = 20  # seconds that the others have to end by themselves
VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "NODE_RANK", "LOCAL_RANK", "OMP_NUM_THREADS")


class Lost(Interrupted):
    """Another process ended or cannot be reached; exit code 1."""

    def __init__(self, message: str) -> None:
        Exception.__init__(self, message)
        self.exit_code = 1


class Processes:
    """The processes of a run, seen from one of them. Entered, it knows those that torchrun or SLURM started.

    Attributes:
        rank: Number of this process; the first one, 0, writes and speaks.
        world: Number of all.
        device: Where this one trains.
    """

    def __init__(self, devices: int = 1, nodes: int = 1, device: str = "cpu") -> None:
        self.devices, self.nodes, self.device = devices, nodes, device
        self.rank, self.local, self.world = 0, 0, 1
        self._children: list[subprocess.Popen[bytes]] = []
        self._before = {name: os.environ.get(name) for name in VARIABLES}
        self._threads = torch.get_num_threads()

    def __enter__(self) -> Processes:
        outside = self._outside()
        if self.devices > 1 and self.device == "cuda" and self.devices > torch.cuda.device_count():
            raise UserError(f"--devices {self.devices}: this host has {torch.cuda.device_count()} GPUs; ask for fewer")
        if outside or "LOCAL_RANK" in os.environ:
            self._connect()
        return self

    def _outside(self) -> bool:
        """Whether torchrun or SLURM started this process; UserError where they started another number of them."""
        wanted = f"--devices {self.devices} x --nodes {self.nodes}"
        kind = next((kind for kind in (TorchElasticEnvironment, SLURMEnvironment) if kind.detect()), None)
        if kind is None:
            return False
        try:
            environment = kind()
            self.rank = environment.global_rank()
        except RuntimeError as error:  # variables of SLURM that contradict each other
            raise UserError(f"{wanted}: {error}") from None
        world = environment.world_size()
        if world != self.devices * self.nodes:
            message = f"{wanted}: but {world} processes were started (by torchrun or SLURM); make the two agree"
            raise self.ending(UserError(message))
        return True

    def launch(self, run: Path) -> None:
        """Start the others on this host, unless they are there: each resumes `run`."""
        if self.devices * self.nodes == self.world:
            return
        if self.nodes > 1:
            raise UserError(
                f"--nodes {self.nodes}: start the processes with srun, or on each host with torchrun --nnodes "
                f"{self.nodes} --nproc-per-node {self.devices} --master-addr FIRST_HOST ... -m segdistill train ..."
            )
        port = str(find_free_network_port())
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, NODE_RANK="0", LOCAL_RANK="0")
        command = [sys.executable, "-m", "segdistill", "train", "--resume", str(run)]
        for local in range(1, self.devices):
            environment = os.environ | {"LOCAL_RANK": str(local)}
            self._children.append(subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL))
        self._connect()

    def fabric(self, precision: Literal["bf16-mixed", "32-true"] = "32-true") -> Fabric:
        """Fabric for this process. Its wrapped modules average gradients; buffers are `average`'s business."""
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
        kind = torch.device(self.device).type
        if self.devices * self.nodes == 1:
            return Fabric(accelerator=kind, devices=1, precision=precision)
        strategy = DDPStrategy(find_unused_parameters=True, broadcast_buffers=False, timeout=TIMEOUT)
        try:
            made = Fabric(
                accelerator=kind, strategy=strategy, devices=self.devices, num_nodes=self.nodes, precision=precision
            )
            made.launch()
        except ValueError as error:  # SLURM's tasks are spread over the hosts in another way
            raise UserError(f"--devices {self.devices} x --nodes {self.nodes}: {error}") from None
        return made

    def _connect(self) -> None:
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")  # its successor is newer than torch 2.10
        fabric = self.fabric()
        if fabric.world_size == 1:
            return
        self.rank, self.local, self.world = fabric.global_rank, fabric.local_rank, fabric.world_size
        self.device = str(fabric.device)
        self._patient = dist.new_group(backend="gloo", timeout=PATIENCE)
        self._control = dist.new_group(backend="gloo", timeout=TIMEOUT)

    def first(self, work: Callable[[], T]) -> T:
        """What the first process's work returns, on all; where it raises UserError, all end."""
        if self.world == 1:
            return work()
        outcome: list[Any] = [None, None]
        if self.rank == 0:
            outcome = _tried(work)
        dist.broadcast_object_list(outcome, src=0, group=self._patient)
        if outcome[1] is not None:
            raise self.ending(UserError(outcome[1]))
        return cast(T, outcome[0])

    def in_turn(self, work: Callable[[], T]) -> T:
        """The same work on all, on the first process before the others; where one raises UserError, all end."""
        if self.world == 1:
            return work()
        outcome: list[Any] = [None, None]
        for first in (True, False):
            if (self.rank == 0) == first:
                outcome = _tried(work)
            refusals = [message for message in self._gathered(outcome[1], self._patient) if message is not None]
            if refusals:
                raise self.ending(UserError(refusals[0]))
        return cast(T, outcome[0])

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        return [value] if self.world == 1 else self._gathered(value, self._control)

    def _gathered(self, value: T, group: Any) -> list[T]:
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=group)
        return values

    def largest(self, value: int) -> int:
        """The largest of all processes' values."""
        if self.world == 1:
            return value
        flag = torch.tensor(value)
        dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._control)
        return int(flag)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Set float tensors to their mean over all processes, in one exchange."""
        if not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        parts = (flat / self.world).split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Set tensors to the first process's values."""
        if self.world == 1:
            return
        for tensor in tensors:
            value = tensor.detach().contiguous()
            dist.broadcast(value, 0)
            tensor.detach().copy_(value)

    def ending(self, error: UserError | Interrupted) -> BaseException:
        """What to raise where all end for one reason: the first process says it, the others keep quiet."""
        return error if self.rank == 0 else SystemExit(getattr(error, "exit_code", 2))

    def lost(self, error: BaseException) -> str | None:
        """What happened, where the error says that another process cannot be reached; else None."""
        if self.world == 1 or not isinstance(error, RuntimeError):
            return None
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            return None
        for number, child in enumerate(self._children, 1):
            try:
                code = child.wait(timeout=1)  # its connection closes a moment before it has ended
            except subprocess.TimeoutExpired:
                continue
            if code:
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
                return f"process {number} of 0 to {self.world - 1} {how}"
        return "another process ended or cannot be reached"

    def part(self) -> None:
        """The work in common is done: the first process goes on alone, the others end here."""
        if self.world > 1:
            dist.destroy_process_group()
        self.world = 1
        if self.rank > 0:
            raise SystemExit(0)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        reason = self.lost(error) if error else None
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()
        for child in self._children:
            try:
                child.wait(GRACE)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        for name, value in self._before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        torch.set_num_threads(self._threads)
        if reason:
            raise Lost(reason) if self.local == 0 else SystemExit(1)


def running_statistics(module: nn.Module) -> list[Tensor]:
    """Buffers that a process's forward writes by its own batch: batch norms in training, and what `averaged` names."""
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    written = [m for m in module.modules() if isinstance(m, norms) and m.training and m.track_running_stats]
    named = [getattr(m, name) for m in module.modules() for name in getattr(m, "averaged", ())]
    return [*(cast(Tensor, b) for m in written for b in (m.running_mean, m.running_var)), *named]


def remembered(module: nn.Module) -> list[Tensor]:
    """Buffers that a forward writes and that have no mean, as what was seen last: `of_first` names them."""
    return [getattr(m, name) for m in module.modules() for name in getattr(m, "of_first", ())]


def _tried(work: Callable[[], Any]) -> list[Any]:
    """[result, refusal]."""
    try:
        return [work(), None]
    except UserError as error:
        return [None, str(error)]
