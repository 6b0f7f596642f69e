"""How long a stop takes, and what it leaves: four engines in tasks that never end, and a fifth that is paused.

Stops such a cluster by ``BackgroundCluster.stop()``, and one on the same load by ipyparallel's own
``Cluster.stop_cluster_sync()``, in turn. The file of figures says for each stop also what was alive of the cluster when
it returned and six seconds later. What is left then is killed.

::

    python benchmarks/stop.py --rounds 3 --json stop.json
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ipyparallel
import psutil
from common import Row, interleave, median, parser, report, settings
from leashes import command, leash

from pytest_ipcluster import BackgroundCluster
from pytest_ipcluster.cluster.processes import descendants, is_alive, is_paused, send_signal, wait_gone
from pytest_ipcluster.cluster.wakeup import Wakeup

N = 5
SECONDS_LATER = 6.0
PATIENCE = 60.0

OURS, PEER = "BackgroundCluster.stop", "Cluster.stop_cluster_sync"

#: Seconds that a stop of ours is to take at most.
LIMIT = 1.0

Stop = dict[str, Any]

#: The same for both: the start would take seven seconds otherwise, and the hub would drop the paused engine.
CONTROLLER = "c = get_config()\nc.HeartMonitor.period = 100\nc.HeartMonitor.max_heartmonitor_misses = 300\n"


def main() -> None:
    options = parser(__doc__).parse_args()
    with leash() as held:
        os.environ["IPYTHONDIR"] = str(held.folder("stop-"))  # neither kind touches the user's own
        stops = interleave({OURS: ours, PEER: theirs}, options.rounds, lambda stop: f"{stop['seconds']:.2f} s")
    report(__file__, compare(stops), file=options.json, settings=settings(options), runs=stops)


def compare(stops: dict[str, list[Stop]]) -> list[Row]:
    """Return a row for the time, and one for what a stop leaves."""
    seconds = {kind: median([stop["seconds"] for stop in found]) for kind, found in stops.items()}
    left = {kind: median([len(stop["alive_at_return"]) for stop in found]) for kind, found in stops.items()}
    load = f"stop of {N - 1} busy engines and a paused one"
    return [
        Row(load, "s", seconds[OURS], seconds[PEER], PEER, limit=LIMIT),
        Row(f"{load}: processes left", "", left[OURS], left[PEER], PEER, limit=0),
    ]


# -- the two kinds of stop -----------------------------------------------------------------------------


def ours() -> Stop:
    """Measure a stop of ours."""
    cluster = BackgroundCluster(n=N, private=True, silent=True)
    with watched() as processes:
        cluster.start()
        try:
            cluster.wait_for_engines()
            with cluster.client() as client:
                load(client)
            processes.update(of_cluster())
            return measured(cluster.stop, processes)
        finally:
            cluster.stop()


def theirs() -> Stop:
    """Measure a stop of ipyparallel's."""
    with tempfile.TemporaryDirectory(dir=os.environ["IPYTHONDIR"]) as folder, watched() as processes:
        profile = Path(folder) / "profile_default"
        profile.mkdir()
        (profile / "ipcontroller_config.py").write_text(CONTROLLER)
        cluster = ipyparallel.Cluster(n=N, profile_dir=str(profile), delay=0, log_level=40)
        cluster.start_cluster_sync()
        with cluster.connect_client_sync() as client:
            client.wait_for_engines(N, timeout=PATIENCE)
            load(client)
        processes.update(of_cluster())
        return measured(cluster.stop_cluster_sync, processes)


def measured(stop: Callable[[], object], processes: set[psutil.Process]) -> Stop:
    """Stop, and tell how long it took and what it left of these processes."""
    begun = time.monotonic()
    stop()
    seconds = time.monotonic() - begun
    at_return = told(processes)
    wait_gone(processes, SECONDS_LATER)
    return {
        "seconds": round(seconds, 3),
        "processes": len(processes),
        "alive_at_return": at_return,
        f"alive_{SECONDS_LATER:g}_s_later": told(processes),
    }


# -- the load ------------------------------------------------------------------------------------------


def load(client: ipyparallel.Client) -> None:
    """Have all engines but the last one spin for ever, pause the last one, and make sure of both."""
    paused = psutil.Process(client[N - 1].apply_async(os.getpid).get(PATIENCE))
    with tempfile.TemporaryDirectory(dir=os.environ["IPYTHONDIR"]) as folder, Wakeup() as wakeup:
        wakeup.watch_folder(Path(folder))
        for engine in range(N - 1):
            client[engine].apply_async(spin, folder, engine)
        until(lambda: len(os.listdir(folder)) == N - 1, wakeup)
    paused.send_signal(signal.SIGSTOP)
    with Wakeup() as wakeup:
        until(lambda: is_paused(paused), wakeup)


def spin(folder: str, engine: int) -> None:
    """Say that the task runs, and never end."""
    from pathlib import Path

    (Path(folder) / str(engine)).touch()
    while True:
        pass


def until(reached: Callable[[], bool], wakeup: Wakeup) -> None:
    deadline = time.monotonic() + PATIENCE
    while not reached():
        if time.monotonic() > deadline:
            sys.exit("the load did not come about")
        wakeup.wait(0.02)  # a stopped process announces itself by no event


# -- processes -----------------------------------------------------------------------------------------


def of_cluster() -> set[psutil.Process]:
    """Return all processes of the running cluster: everything that descends from this one."""
    return descendants(psutil.Process())


@contextmanager
def watched() -> Iterator[set[psutil.Process]]:
    """Kill whatever of the set that the block fills is alive at its end: the very processes, by pid and start time."""
    processes: set[psutil.Process] = set()
    try:
        yield processes
    finally:
        left = {process for process in processes | of_cluster() if is_alive(process)}
        for process in left:
            send_signal(process, signal.SIGKILL)
        wait_gone(left, PATIENCE)


def told(processes: set[psutil.Process]) -> list[str]:
    """Say what is alive of these processes."""
    return sorted(filter(None, [command(process) for process in processes if is_alive(process)]))


if __name__ == "__main__":
    main()
