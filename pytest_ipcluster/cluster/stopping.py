"""Stopping a whole cluster: ask, wait, kill, sweep, check, all within one deadline."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Collection

import psutil

from pytest_ipcluster.cluster.processes import KILL, kill_until_gone, send_signal, wait_gone
from pytest_ipcluster.errors import ClusterStopError

__all__ = ["stop_cluster"]

#: Seconds that engines get to leave by themselves. An idle one needs a tenth of this; a busy or paused one
#: would not leave in an hour.
_ENGINE_GRACE = 0.5

#: Seconds after the deadline within which the killed processes must be gone; only a process stuck in the kernel
#: is not.
_LAST_CALL = 10.0


def stop_cluster(
    ipcluster: psutil.Process | None,
    engines: Collection[psutil.Process],
    owned: Callable[[], set[psutil.Process]],
    *,
    kill_after: float,
) -> None:
    """Stop everything that ``owned()`` finds; when this returns nothing of it is alive.

    All engines are asked to leave, ipcluster is interrupted, and those engines that are still there after a moment
    are killed: ipcluster itself would wait 5 s for each busy one, one after the other. Freed of them it has what is
    left of ``kill_after`` seconds; then whatever remains is killed. Raises :class:`ClusterStopError` when something
    survives even that.
    """
    deadline = time.monotonic() + kill_after
    for engine in engines:
        send_signal(engine, signal.SIGTERM)
    if ipcluster is not None:
        send_signal(ipcluster, signal.SIGINT)
    for engine in wait_gone(engines, min(_ENGINE_GRACE, kill_after)):
        send_signal(engine, KILL)
    if ipcluster is not None:
        wait_gone({ipcluster}, max(0.0, deadline - time.monotonic()))
    left = kill_until_gone(owned, _LAST_CALL)
    if left:
        names = ", ".join(f"pid {p.pid} ({_status(p)})" for p in sorted(left, key=lambda p: p.pid))
        raise ClusterStopError(f"still alive {_LAST_CALL:.0f} s after being killed: {names}")


def _status(process: psutil.Process) -> str:
    try:
        return str(process.status())
    except psutil.NoSuchProcess:
        return "gone"
