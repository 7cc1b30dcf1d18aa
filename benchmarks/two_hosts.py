"""What a second process brings: a U-Net on one host, and on two (network namespaces here); two threads at most.

    python benchmarks/two_hosts.py --size 128 --batch 4          (needs root and iproute2, for the namespaces)

One process with one thread, one with two, two processes with a thread each on one host, and on two hosts joined by a
virtual cable; started as torchrun starts them, in turn, several times. Each alternates updates that exchange gradients
with updates that do not; their difference is what the exchange costs. Batches are per process.
"""

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from segdistill.data.batches import Dataset, TrainingBatches
from segdistill.data.cache import Cache
from segdistill.data.rows import Row
from segdistill.engine.interrupt import StopSignals
from segdistill.engine.logging import RunLog
from segdistill.engine.processes import Processes
from segdistill.engine.settings import Settings
from segdistill.engine.trainer import Trainer
from segdistill.methods.supervised import Supervised, SupervisedConfig
from segdistill.types import Task

ONE, TWO_THREADS, ONE_HOST, TWO_HOSTS = (
    "1 process, 1 thread",
    "1 process, 2 threads",
    "2 processes, one host",
    "2 processes, two hosts",
)
WARM_UP = 2


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--updates", type=int, default=10, help="timed updates of each kind in a repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--worker", nargs=2, type=int, metavar=("DEVICES", "NODES"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(given)
        return
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or not shutil.which("ip"):
        sys.exit("two_hosts.py: needs root and the command ip (iproute2, Linux) to join two network namespaces")
    results = {name: [] for name in (ONE, TWO_THREADS, ONE_HOST, TWO_HOSTS)}
    with two_hosts() as hosts:
        for _ in range(given.repeats):  # in turn: the machine's drift meets all
            results[ONE].append(measure(given, [[]], threads=1))
            results[TWO_THREADS].append(measure(given, [[]], threads=2))
            results[ONE_HOST].append(measure(given, [[], []], threads=1))
            results[TWO_HOSTS].append(measure(given, hosts, threads=1))
    show(given, results)


@contextlib.contextmanager
def two_hosts():
    """Two network namespaces and a virtual cable; gives the words before a command that runs in each."""
    names = [f"segdistill{os.getpid()}{side}" for side in "ab"]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for number, name in enumerate(names, 1):
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", name, "link", "set", device, "up")
        yield [["ip", "netns", "exec", name] for name in names]
    finally:
        for name in names:  # its end of the cable goes with it
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def ip(*words):
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"two_hosts.py: ip {' '.join(words)}: {done.stderr.strip()}; needs the right to make namespaces")


def measure(given, prefixes, threads):
    """Start the processes, on the hosts that the prefixes name, and read what the first one found."""
    apart = any(prefixes)
    world = len(prefixes)
    shared = {"WORLD_SIZE": str(world), "TORCHELASTIC_RUN_ID": "benchmark", "OMP_NUM_THREADS": str(threads)}
    shared |= {"MASTER_ADDR": "10.77.0.1" if apart else "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared |= {"GLOO_SOCKET_IFNAME": "cable" if apart else "lo", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    layout = ["1", str(world)] if apart else [str(world), "1"]
    options = [f"--{name}={getattr(given, name)}" for name in ("size", "batch", "updates")]
    members = []
    for rank, prefix in enumerate(prefixes):
        own = {"RANK": str(rank), "LOCAL_RANK": "0" if apart else str(rank), "GROUP_RANK": str(rank if apart else 0)}
        command = [*prefix, sys.executable, __file__, *options, "--worker", *layout]
        members.append(subprocess.Popen(command, env=os.environ | shared | own, stdout=subprocess.PIPE, text=True))
    try:
        outputs = [member.communicate(timeout=600)[0] for member in members]
    finally:
        for member in members:
            member.kill()
    if any(member.returncode for member in members):
        sys.exit("two_hosts.py: a process failed; see above")
    return json.loads(outputs[0].splitlines()[-1])


def free_port():
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]


def work(given):
    """One process: time its updates, and on the first one print them."""
    devices, nodes = given.worker
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    method = Supervised(SupervisedConfig(batch_size=given.batch), Task(2, (given.size,) * 2, ("",), 64, 0))
    settings = Settings(device="cpu", precision="32", iterations=100_000, devices=devices, nodes=nodes)
    with Processes(devices, nodes) as processes, tempfile.TemporaryDirectory() as folder:
        log = RunLog(Path(folder), Console(quiet=True), silent=processes.rank > 0)
        trainer = Trainer(method, random_batches(given.size), settings, Path(folder), "cpu", log, processes)
        with log:
            trainer.start()
            seconds = timed(trainer, given.updates)
        if processes.rank == 0:
            size = sum(4 * p.numel() for p in method.parameters() if p.requires_grad)
            print(json.dumps({**seconds, "gradient bytes": size}))


def timed(trainer, updates):
    """Seconds of updates with the exchange of gradients and without, in turn."""
    stage, trainer.signals = trainer.stages[0], StopSignals()
    trainer._wrap(stage)
    exchanging = trainer.fabric.no_backward_sync
    local = lambda module, enabled: exchanging(module, enabled=trainer.processes.world > 1)  # noqa: E731
    seconds = {"exchanging": [], "local": []}
    for number in range(WARM_UP + updates):
        for name, manner in (("exchanging", exchanging), ("local", local)):
            trainer.fabric.no_backward_sync = manner
            start = time.perf_counter()
            trainer._update(stage)
            trainer._stop_if_asked(stage)
            if number >= WARM_UP:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def random_batches(size, count=64):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, size, size, 3)).astype(np.uint8)
    masks = rng.integers(0, 2, (count, size, size)).astype(np.uint8)
    rows = [Row(Path(f"{i}.png"), Path(f"{i}.png"), "train") for i in range(count)]
    return TrainingBatches(Dataset(Cache(images, masks, ""), rows, ("background", "foreground"), ("",)), seed=0)


def show(given, results):
    """The table, and where the time of an update goes."""
    medians = {name: [statistics.median(run["exchanging"]) for run in runs] for name, runs in results.items()}
    alone = statistics.median(medians[ONE])
    mega = results[ONE][0]["gradient bytes"] / 1e6
    print(f"U-Net, {given.size} px, batch {given.batch} per process, fp32, gradients of {mega:.1f} MB")
    print(f"medians (min to max) of {given.repeats} repeats of {given.updates} updates, {os.cpu_count()} cores\n")
    print("| | images/s | efficiency | exchange, ms per update |\n|---|---|---|---|")
    exchange = {}
    for name, runs in results.items():
        processes, cores = (2 if name in (ONE_HOST, TWO_HOSTS) else 1), (1 if name == ONE else 2)
        rates = [processes * given.batch / seconds for seconds in medians[name]]
        efficiency = [rate / (cores * given.batch / alone) for rate in rates]
        exchange[name] = [
            1000 * statistics.median(np.subtract(run["exchanging"], run["local"]).tolist()) for run in runs
        ]
        cost = spread(exchange[name], 1) if processes == 2 else "–"
        print(f"| {name} | {spread(rates, 1)} | {spread(efficiency, 2)} | {cost} |")
    for name in (ONE_HOST, TWO_HOSTS):
        whole, cost = 1000 * statistics.median(medians[name]), statistics.median(exchange[name])
        print(
            f"\n{name}: an update takes {whole:.0f} ms. One process alone takes {1000 * alone:.0f} ms; exchanging "
            f"gradients adds {cost:.0f} ms, sharing the machine (cores, caches, memory) "
            f"{whole - cost - 1000 * alone:.0f} ms."
        )


def spread(values, digits):
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    main()
