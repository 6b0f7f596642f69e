"""Processes as the checks of ended runs see them: whose they are, what they hold, what they are called."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass

import psutil

from pytest_ipcluster.cluster.processes import environment, wait_gone
from pytest_ipcluster.cluster.wakeup import Wakeup

#: Seconds that anything may take before a test gives up.
PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class Left:
    """What was left of a run, and the seconds after pytest's end until nothing was, or until time was up."""

    processes: tuple[str, ...]
    folders: tuple[str, ...]
    seconds: float


def carries(process: psutil.Process, name: str, value: str | None = None) -> bool:
    """Tell whether the process was started with this variable, of exactly this value if one is given."""
    found = environment(process).get(name)
    return found is not None and value in (None, found)


def links_of(process: psutil.Process) -> set[str]:
    links = set()
    for entry in os.scandir(f"/proc/{process.pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            links.add(os.readlink(entry.path))
    return links


def wait_until_gone(process: psutil.Process) -> None:
    """Wait until a process has ended."""
    assert wait_gone({process}, PATIENCE) == set()


def wait_for_one(processes: Iterable[psutil.Process], timeout: float) -> None:
    with Wakeup() as wakeup:
        for process in processes:
            wakeup.watch_process(process)
        wakeup.wait(timeout)


def told(processes: Iterable[psutil.Process]) -> list[str]:
    """Describe processes in order of their start."""
    return [_told(process) for process in sorted(processes, key=lambda p: (p.create_time(), p.pid))]


def _told(process: psutil.Process) -> str:
    try:
        return f"{process.pid} ({process.status()}, child of {process.ppid()}): {' '.join(process.cmdline())[:140]}"
    except psutil.Error:
        return f"{process.pid} (gone meanwhile)"
