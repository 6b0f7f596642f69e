"""How long a repair takes: from the end of a killed engine until all n answer a call again, under the same ids.

``BackgroundCluster.restore()``, without and with a spare engine, against what a user can do by hand: ``python -m
ipyparallel.engine --IPEngine.id=K`` with the cluster's connection information. Each way has a running cluster of its
own, and engines die in turn: A B A B. The clock starts when the killed process is gone, so noticing is not in the
figures (see ``detection.py``); it stops when a client that has been connected all the time has an answer of n engines.

::

    python benchmarks/repair.py --json repair.json
    python benchmarks/repair.py --ours local --ours forkserver
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from common import Row, interleave, median, named, parser, positive, report, settings
from leashes import leash

from pytest_ipcluster import BackgroundCluster
from pytest_ipcluster.cluster.processes import wait_gone

PATIENCE = 60.0
PEER = "Popen"

#: The share of the peer's time that ours is to take at most; with a spare engine, less.
LIMIT, LIMIT_OF_SPARE = 0.35, 0.15


def main() -> None:
    options = arguments().parse_args()
    options.ours = cases = dict(options.ours or [("fork", {}), ("spare", {"spares": 1})])
    with leash(), ExitStack() as stack:
        ways: dict[str, Callable[[], float]] = {}
        for name, traits in cases.items():
            ways[name] = partial(stack.enter_context(victims(options.n, traits)), lambda cluster, _: cluster.restore())
        with_popen = stack.enter_context(by_hand())
        ways[PEER] = partial(stack.enter_context(victims(options.n, {"launcher": "local"})), with_popen)
        runs = interleave(ways, options.rounds, lambda seconds: f"{seconds:.3f} s")
    report(__file__, compare(runs, list(cases)), file=options.json, settings=settings(options), runs=runs)


def arguments() -> argparse.ArgumentParser:
    made = parser(__doc__)
    made.add_argument("--n", type=positive, default=4, help="engines of each cluster (default: %(default)s)")
    made.add_argument("--ours", type=named, action="append", metavar="NAME[=LAUNCHER[,TRAIT=VALUE...]]")
    return made


def compare(runs: dict[str, list[float]], ours: list[str]) -> list[Row]:
    peer = median(runs[PEER])
    return [
        Row(
            "repair after a kill" + (f" ({name})" if len(ours) > 1 else ""),
            "s",
            median(runs[name]),
            peer,
            PEER,
            limit_ratio=LIMIT_OF_SPARE if "spare" in name else LIMIT,
        )
        for name in ours
    ]


#: Repairs this slot of this cluster.
Repair = Callable[[BackgroundCluster, int], object]


@contextmanager
def victims(n: int, traits: dict[str, Any]) -> Iterator[Callable[[Repair], float]]:
    """Run a cluster; hand out what kills its next engine, has it repaired, and tells how many seconds that took."""
    with BackgroundCluster(n=n, private=True, silent=True, **traits) as cluster, cluster.client() as client:
        pids = client[:].apply_async(os.getpid).get(PATIENCE)
        turn = 0

        def next_one(repair: Repair) -> float:
            nonlocal turn
            slot, turn = turn % n, turn + 1
            before = client._engines[slot]
            kill(pids[slot])
            begun = time.monotonic()
            repair(cluster, slot)
            until(lambda: client._engines.get(slot) not in (None, before))
            pids[:] = client[:].apply_async(os.getpid).get(PATIENCE)
            seconds = time.monotonic() - begun
            assert sorted(client.ids) == list(range(n)), client.ids
            assert len(set(pids)) == n, pids
            return seconds

        yield next_one


def kill(pid: int) -> None:
    """Kill this process, and return when it is gone."""
    process = psutil.Process(pid)
    process.send_signal(signal.SIGKILL)
    if wait_gone([process], PATIENCE):
        sys.exit(f"process {pid} was killed, but is still there")


@contextmanager
def by_hand() -> Iterator[Repair]:
    """Hand out what starts an engine as a user would, without anything of ours in it."""
    engines: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="repair-") as folder:
        profile = Path(folder) / "profile_default"
        profile.mkdir()

        def start_engine(cluster: BackgroundCluster, slot: int) -> None:
            connection = Path(cluster.connection_file.replace("-client.json", "-engine.json"))
            environment = {
                **os.environ,
                "IPYTHONDIR": folder,
                "IPP_PROFILE_DIR": str(profile),
                "IPP_CLUSTER_ID": cluster.cluster_id,
                "IPP_CONNECTION_INFO": json.dumps(json.loads(connection.read_text())),
            }
            command = [sys.executable, "-m", "ipyparallel.engine", f"--IPEngine.id={slot}"]
            engines.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=environment,
                    start_new_session=True,
                )
            )

        try:
            yield start_engine
        finally:
            for engine in engines:
                engine.kill()
                engine.wait()


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not reached():
        if time.monotonic() > deadline:
            sys.exit("the client has not heard of the new engine")
        time.sleep(0.002)  # a client that hears of an engine tells nobody


if __name__ == "__main__":
    main()
