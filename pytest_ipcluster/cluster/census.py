"""Which processes tasks have left behind: whatever belongs to a cluster and is none of its own.

Own are ipcluster and the forkserver, what they start except through engines, the engines and their nannies. What an
engine starts is not, unless it is the engine's nanny.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable

import psutil

from pytest_ipcluster.cluster.engines import Engine
from pytest_ipcluster.cluster.processes import KILL, carries, find, is_alive, send_signal, wait_gone

__all__ = ["Census", "end"]

#: Parts of the command lines of helpers that Python starts beside a program that needs them, and that end with it.
#: They are shared by everything that runs on the engine, so they are left alone.
_HELPERS = ("resource_tracker import main", "forkserver import main")


class Census:
    """The processes of one cluster over time: each is judged once, when it is first seen.

    A look costs one listing of the pids and a close look at those that are new, not a scan of the whole system.
    ``mark`` is that of the cluster's private folder.
    """

    def __init__(self, mark: str) -> None:
        self._mark = mark
        self._others: set[int] = set()
        self._family: set[psutil.Process] = set()
        self._own: set[psutil.Process] = set()
        self._engines: set[psutil.Process] = set()  # and nannies, those of engines that were replaced, too
        self._foster: psutil.Process | None = None

    def strays(
        self,
        heads: Collection[psutil.Process | None],
        engines: Iterable[Engine],
        foster: psutil.Process | None = None,
    ) -> set[psutil.Process]:
        """Return the living processes of the cluster that are none of its own.

        Own are the ``heads``, ipcluster and the forkserver, and what they start. What was its own at an earlier look
        stays so: the children of a controller that has died, for example. Orphans are children of ``foster``.
        """
        self._foster = foster
        self._count()
        guests = {process for engine in engines for process in (engine.process, engine.nanny) if process is not None}
        self._engines = (self._engines | guests) & self._family
        all_heads = {*heads, *self._engines}
        self._own |= {process for process in self._family - self._own if self._is_own(process, all_heads)}
        return {process for process in self._family - self._own if is_alive(process) and not _is_helper(process)}

    def alive(self) -> set[psutil.Process]:
        """Return every living process of the cluster, its own and others."""
        self._count()
        return {process for process in self._family if is_alive(process)}

    def _count(self) -> None:
        """Take in who is new: of the family is who has the mark, a parent in it, or a foster parent."""
        pids = set(psutil.pids()) - {os.getpid()}
        # A pid that somebody else had is looked at again once it has been free. One that is given again between two
        # looks is missed, which takes as many new processes as there are pids.
        self._others &= pids
        self._family = {process for process in self._family if process.is_running()}
        self._own &= self._family
        known = {process.pid for process in self._family}
        fresh = {process for pid in pids - self._others - known if (process := find(pid)) is not None}
        while related := {process for process in fresh if self._is_related(process)}:
            self._family |= related
            fresh -= related
        self._others |= {process.pid for process in fresh}

    def _is_related(self, process: psutil.Process) -> bool:
        parent = _parent(process)
        return carries(process, self._mark) or (
            parent is not None and (parent in self._family or parent == self._foster)
        )

    def _is_own(self, process: psutil.Process, heads: Collection[psutil.Process | None]) -> bool:
        """Follow the parents up to somebody who is the cluster's own, but not through an engine or a nanny."""
        if process in heads:
            return True
        parent = _parent(process)
        if parent is None or parent in self._engines or parent not in self._family:
            return False
        return parent in self._own or self._is_own(parent, heads)


def end(processes: Iterable[psutil.Process], timeout: float) -> set[psutil.Process]:
    """Kill these very processes; return those that are still alive after ``timeout`` seconds."""
    processes = set(processes)
    for process in processes:
        send_signal(process, KILL)
    return wait_gone(processes, timeout)


def _parent(process: psutil.Process) -> psutil.Process | None:
    try:
        return process.parent()
    except psutil.Error:
        return None


def _is_helper(process: psutil.Process) -> bool:
    try:
        command = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return any(helper in command for helper in _HELPERS)
