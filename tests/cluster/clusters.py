"""Questions that several tests put to a cluster."""

from __future__ import annotations

import os
import signal

import psutil

from pytest_ipcluster import BackgroundCluster
from pytest_ipcluster.cluster.processes import is_alive, marked, send_signal, wait_gone


def pids(cluster: BackgroundCluster) -> list[int]:
    """Ask the engines themselves, through a new client, for their pids in order of their ids."""
    client = cluster.client()
    try:
        return list(client[:].apply_async(os.getpid).get(30))
    finally:
        client.close()


def kill(*processes: psutil.Process) -> None:
    """Kill processes and wait until they are gone."""
    for process in processes:
        send_signal(process, signal.SIGKILL)
    assert wait_gone(processes, 10) == set()


def left_of(cluster: BackgroundCluster) -> list[int]:
    """Return the pids of all processes that still carry the mark of this cluster's last run."""
    folder = cluster._folder
    return [] if folder is None else sorted(process.pid for process in marked(folder.mark) if is_alive(process))
