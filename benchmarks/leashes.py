"""What the benchmarks start they end: a mark in the environment of children tells what there is."""

from __future__ import annotations

import atexit
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psutil

from pytest_ipcluster.cluster import warden
from pytest_ipcluster.cluster.processes import is_alive, send_signal, wait_gone

#: The variable that marks what a benchmark has started, in the environment of children only.
RUN = "BENCHMARK_RUN"

#: Seconds for what was killed to be gone, and for a warden to clear away what its owner has left.
_SOON = 30.0


def _nobody(_process: psutil.Process) -> bool:
    return False


def _is_warden(process: psutil.Process) -> bool:
    """Tell whether the process runs the script that clears away a cluster whose owner is gone."""
    with suppress(psutil.Error):
        return warden.__file__ in process.cmdline()
    return False


def _is_our_warden(process: psutil.Process) -> bool:
    """Tell whether it is one that this process has started for itself."""
    with suppress(psutil.Error):
        return _is_warden(process) and process.ppid() == os.getpid()
    return False


class Leash:
    """Knows what was started since it was put on, by the mark in the environment of children."""

    def __init__(self, mark: str) -> None:
        self._mark = mark
        self._folders: list[Path] = []

    def folder(self, prefix: str) -> Path:
        """Make a temporary folder that is removed at the end, when nothing that was started writes into it."""
        made = Path(tempfile.mkdtemp(prefix=prefix))
        self._folders.append(made)
        atexit.register(shutil.rmtree, made, ignore_errors=True)  # ipyparallel's Cluster writes as late as then
        return made

    def left(self, but: Callable[[psutil.Process], bool] = _nobody) -> set[psutil.Process]:
        """Return the living processes that were started here, directly or not, ``but`` some."""
        return {p for p in psutil.process_iter() if self._holds(p) and is_alive(p) and not but(p)}

    def _holds(self, process: psutil.Process) -> bool:
        try:
            return process.pid != os.getpid() and process.environ().get(RUN) == self._mark
        except (psutil.Error, OSError):
            return False

    def wait(self, timeout: float, but: Callable[[psutil.Process], bool] = _nobody) -> list[str]:
        """Wait until all of them, ``but`` some, have ended; kill those that outlive ``timeout`` and tell which."""
        outlived = wait_gone(self.left(but), timeout)
        told = sorted(command(process) for process in outlived)
        _kill(outlived)
        return told

    def end(self) -> None:
        """Kill whatever is left and remove the folders.

        Wardens are killed last: with their owners gone they remove what only they know of. Those whose owner is this
        process do so when it ends.
        """
        self._kill_left(but=_is_warden)
        wait_gone(self.left(but=_is_our_warden), _SOON)
        self._kill_left(but=_is_our_warden)
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)

    def _kill_left(self, but: Callable[[psutil.Process], bool] = _nobody) -> None:
        for _ in range(3):  # one can be born between the look and the signal
            _kill(self.left(but))


def _kill(processes: set[psutil.Process]) -> None:
    """Kill processes, and wait until they are gone."""
    for process in processes:
        send_signal(process, signal.SIGKILL)
    wait_gone(processes, _SOON)


@contextmanager
def leash() -> Iterator[Leash]:
    """Mark whatever is started in the block, and end it with the block, also on Ctrl-C and SIGTERM.

    A second one does not disturb that: it is done in seconds.

    Meanwhile children may write byte code, whatever the environment says: what is not installed but run from its
    sources, as ours may be, would be compiled again by each of them.
    """
    outer = {name: os.environ.pop(name, None) for name in (RUN, "PYTHONDONTWRITEBYTECODE")}
    os.environ[RUN] = secrets.token_hex(8)
    before = signal.signal(signal.SIGTERM, _leave)
    made = Leash(os.environ[RUN])
    try:
        yield made
    finally:
        with _undisturbed():
            made.end()
        signal.signal(signal.SIGTERM, before)
        del os.environ[RUN]
        os.environ.update({name: value for name, value in outer.items() if value is not None})


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore Ctrl-C and SIGTERM in the block."""
    before = {signum: signal.signal(signum, signal.SIG_IGN) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _leave(signum: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + signum)


def command(process: psutil.Process) -> str:
    """Return what this process was started with, without the paths of this machine; empty when it has ended."""
    with suppress(psutil.Error):
        return re.sub(r"/\S*/", "", " ".join(process.cmdline()))[:100]
    return ""
