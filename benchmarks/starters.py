"""One contestant of ``start.py`` in a process of its own: starts n workers, says when all of them have answered.

Run by ``start.py``; prints two lines, the monotonic clock after the imports and after the first answer of all, then
stops its workers when its input ends.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

#: Seconds for the workers to come up.
PATIENCE = 120


@contextmanager
def ours(n: int, **traits: Any) -> Iterator[list[int]]:
    """A BackgroundCluster in a private profile."""
    import os

    from pytest_ipcluster import BackgroundCluster

    said()
    with BackgroundCluster(n=n, private=True, silent=True, **traits) as cluster, cluster.client() as client:
        yield client[:].apply_sync(os.getpid)


@contextmanager
def ipyparallel_default(n: int) -> Iterator[list[int]]:
    """ipyparallel's own Cluster, as its documentation starts it."""
    import os

    import ipyparallel

    said()
    cluster = ipyparallel.Cluster(n=n)
    with cluster.start_and_connect_sync() as client:
        yield client[:].apply_sync(os.getpid)
    cluster.stop_cluster_sync()


@contextmanager
def ipyparallel_tuned(n: int) -> Iterator[list[int]]:
    """The same without what it waits for by default: the hub beats every 100 ms, and nothing is delayed."""
    import os
    import tempfile
    from pathlib import Path

    import ipyparallel
    from traitlets.config import Config

    said()
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "profile_default"
        profile.mkdir()
        (profile / "ipcontroller_config.py").write_text("c = get_config()\nc.HeartMonitor.period = 100\n")
        config = Config({"Cluster": {"delay": 0}, "LocalEngineSetLauncher": {"delay": 0}})
        cluster = ipyparallel.Cluster(n=n, profile_dir=str(profile), config=config)
        with cluster.start_and_connect_sync() as client:
            yield client[:].apply_sync(os.getpid)
        cluster.stop_cluster_sync()


@contextmanager
def dask(n: int) -> Iterator[list[int]]:
    """dask's LocalCluster of processes, without its dashboard."""
    import os

    from distributed import Client, LocalCluster

    said()
    with (
        LocalCluster(n_workers=n, processes=True, threads_per_worker=1, dashboard_address=None) as cluster,  # type: ignore[no-untyped-call]
        Client(cluster) as client,  # type: ignore[no-untyped-call]
    ):
        client.wait_for_workers(n, timeout=PATIENCE)
        yield list(client.run(os.getpid).values())


CONTESTANTS: dict[str, Callable[..., Any]] = {
    "ours": ours,
    "ipyparallel": ipyparallel_default,
    "ipyparallel-tuned": ipyparallel_tuned,
    "dask": dask,
}


def said() -> None:
    print(time.monotonic(), flush=True)


def main() -> None:
    import json

    name, n, traits = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    with CONTESTANTS[name](n, **traits) as pids:
        if len(set(pids)) != n:
            sys.exit(f"{name}: {n} workers were to answer, but {pids} did")
        said()
        sys.stdin.read()


if __name__ == "__main__":
    main()
