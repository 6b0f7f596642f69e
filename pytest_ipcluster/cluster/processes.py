"""Which processes are ours, are they alive, and how do they end: a process is a pid plus its start time.

:class:`psutil.Process` is exactly that pair: it compares equal only to the same pid with the same start time,
and refuses to signal a pid that was given to somebody else since. Nothing here ever looks for a process by its
name.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

__all__ = [
    "KILL",
    "MARK",
    "Pulse",
    "carries",
    "children",
    "descendants",
    "environment",
    "find",
    "is_alive",
    "is_doomed",
    "is_paused",
    "kill_until_gone",
    "marked",
    "resume",
    "send_signal",
    "wait_gone",
]

#: Environment variable whose exact value says to which cluster a process belongs. It is set for children only.
MARK = "PYTEST_IPCLUSTER_MARK"

#: The signal that nothing survives. Windows has none, but psutil makes TerminateProcess of SIGTERM there.
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)

#: Seconds that Linux gets to start a program: its file may have to be read from a slow disk.
_EXEC = 1.0


def find(pid: int) -> psutil.Process | None:
    """Return the process that has this pid now, or None."""
    try:
        return psutil.Process(pid)
    except (psutil.NoSuchProcess, ValueError):
        return None


def is_alive(process: psutil.Process) -> bool:
    """Tell whether the very same process still runs; one that is dead but not yet reaped does not.

    Linux calls it "dead" instead of a zombie for the moment in which its parent reaps it.
    """
    try:
        return process.is_running() and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def is_paused(process: psutil.Process) -> bool:
    """Tell whether the process is stopped by a signal."""
    try:
        return bool(process.status() == psutil.STATUS_STOPPED)
    except psutil.NoSuchProcess:
        return False


class Pulse:
    """The state of one process, for those who ask often: on Linux a look costs a fifth of what psutil's takes."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._path = f"/proc/{process.pid}/stat"
        self._begun = _stat(self._path)[1]
        if not process.is_running():  # the pid may have been somebody else's already
            self._begun = ""

    def state(self) -> str:
        """Return ``"running"``, ``"paused"`` (stopped by a signal) or ``"dead"``, whether reaped or not."""
        if sys.platform != "linux":
            return _state_by_psutil(self._process)
        letter, begun = _stat(self._path)
        if letter in ("", "Z", "X") or begun != self._begun:
            return "dead"
        return "paused" if letter == "T" else "running"


def _stat(path: str) -> tuple[str, str]:
    """Return the state and the start time that Linux tells of a process; both empty when it is gone."""
    try:
        with open(path, "rb", buffering=0) as file:
            fields = file.read(4096).rpartition(b")")[2].split()  # the name before them may hold anything
    except OSError:
        return "", ""
    return fields[0].decode(), fields[19].decode()


def _state_by_psutil(process: psutil.Process) -> str:
    if not is_alive(process):
        return "dead"
    return "paused" if is_paused(process) else "running"


def is_doomed(process: psutil.Process) -> bool:
    """Tell whether the process has been killed but has not come to its end, as far as this system says.

    The last act of a test can be a kill, and a big process takes a while to go, on a full machine seconds.
    """
    try:
        with open(f"/proc/{process.pid}/status", "rb", buffering=0) as file:
            text = file.read()
    except OSError:
        return False
    pending = (text.partition(name)[2].partition(b"\n")[0] for name in (b"SigPnd:", b"ShdPnd:"))
    return any(int(mask, 16) >> (KILL - 1) & 1 for mask in pending)


def send_signal(process: psutil.Process, signum: int) -> bool:
    """Send a signal to this very process; return False when it has ended already.

    Raises ValueError for pid 0 and 1 and for ourselves, whatever the caller believes to own.
    """
    if process.pid <= 1 or process.pid == os.getpid():
        raise ValueError(f"refusing to send signal {signum} to pid {process.pid}")
    try:
        process.send_signal(signum)
    except psutil.NoSuchProcess:
        return False
    return True


def resume(process: psutil.Process) -> bool:
    """Let a stopped process go on; return False when it has ended, or where processes cannot be stopped at all."""
    signum = getattr(signal, "SIGCONT", None)
    return signum is not None and send_signal(process, signum)


def children(process: psutil.Process) -> list[psutil.Process]:
    """Return the children of a process, also those that have ended and that it has not reaped."""
    lists, threads = [], f"/proc/{process.pid}/task"
    with suppress(OSError):  # another system, or it has ended
        for thread in os.listdir(threads):
            with suppress(OSError):  # that has ended
                lists.append(Path(f"{threads}/{thread}/children").read_text())
    if not lists:
        with suppress(psutil.NoSuchProcess):
            return list(process.children())
    pids = sorted(int(pid) for text in lists for pid in text.split())
    return [child for pid in pids if (child := find(pid)) is not None]


def descendants(root: psutil.Process) -> set[psutil.Process]:
    """Return all living processes that descend from ``root`` (itself excluded)."""
    try:
        return set(root.children(recursive=True))
    except psutil.NoSuchProcess:
        return set()


def marked(mark: str) -> set[psutil.Process]:
    """Return all processes, ourselves excluded, whose environment was given exactly this mark."""
    return {p for p in psutil.process_iter() if p.pid != os.getpid() and carries(p, mark)}


def carries(process: psutil.Process, mark: str) -> bool:
    """Tell whether this process was given exactly this mark."""
    return environment(process).get(MARK) == mark


def environment(process: psutil.Process) -> Mapping[str, str]:
    """Return the environment that a process was given; nothing where it has ended or may not be read.

    A process that is just being started shows an empty one for some milliseconds, while its parent already goes on:
    it is asked again when it has its arguments.
    """
    with suppress(psutil.Error, OSError):
        return process.environ() or _environment_after_exec(process)
    return {}


def _environment_after_exec(process: psutil.Process) -> Mapping[str, str]:
    """Wait while Linux has given the process its program, and neither arguments nor an environment yet."""
    deadline = time.monotonic() + _EXEC
    while process.exe() and not process.cmdline() and time.monotonic() < deadline:
        time.sleep(0.001)  # the end of an exec announces itself to nobody
    return process.environ()


def wait_gone(processes: Iterable[psutil.Process], timeout: float) -> set[psutil.Process]:
    """Wait until all of them have ended, at most ``timeout`` seconds; return those that are still alive."""
    deadline = time.monotonic() + timeout
    alive = {p for p in processes if is_alive(p)}
    while alive and (left := deadline - time.monotonic()) > 0:
        _wait_for_one(next(iter(alive)), left)
        alive = {p for p in alive if is_alive(p)}
    return alive


def _wait_for_one(process: psutil.Process, timeout: float) -> None:
    """Block until the process ends or time is up, without reaping it."""
    from pytest_ipcluster.cluster.wakeup import Wakeup

    with Wakeup() as wakeup:
        if wakeup.watch_process(process):
            wakeup.wait(timeout)


def kill_until_gone(owned: Callable[[], set[psutil.Process]], timeout: float) -> set[psutil.Process]:
    """Kill whatever ``owned()`` finds and look again, until it finds nothing twice; return what outlived ``timeout``.

    One look is not enough: a process can fork between the look and the signal, and its child is found by the
    next.
    """
    deadline = time.monotonic() + timeout
    quiet = 0
    alive: set[psutil.Process] = set()
    while quiet < 2 and time.monotonic() < deadline:
        alive = {p for p in owned() if is_alive(p)}
        quiet = 0 if alive else quiet + 1
        for process in alive:
            send_signal(process, KILL)
        wait_gone(alive, min(1.0, max(0.0, deadline - time.monotonic())))
    return {p for p in alive if is_alive(p)}
