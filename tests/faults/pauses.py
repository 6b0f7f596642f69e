"""Processes that stand still for a while."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
from waiting import until

from pytest_ipcluster.cluster.processes import is_paused, send_signal


@contextmanager
def stopped(process: psutil.Process) -> Iterator[None]:
    """Stop a process for the block, which begins when it stands still."""
    send_signal(process, signal.SIGSTOP)
    try:
        until(lambda: is_paused(process))
        yield
    finally:
        send_signal(process, signal.SIGCONT)
