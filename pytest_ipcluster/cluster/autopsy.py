"""How a process of the cluster ended, and which death took others along.

Only a process's parent is told how it ended. Of what the warden has started or adopted, the warden tells. A dead child
that its parent has not reaped keeps its exit code, where the kernel shows it. Of the controller and of the engines that
ipcluster has started, ipcluster's own output tells, a moment later.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from pytest_ipcluster.cluster.diagnosis import tail
from pytest_ipcluster.cluster.forked import FORKSERVER_LOG, ends
from pytest_ipcluster.cluster.wakeup import Wakeup
from pytest_ipcluster.errors import Death

if TYPE_CHECKING:
    from pytest_ipcluster.cluster.rollcall import Member, RollCall
    from pytest_ipcluster.cluster.runtime import Runtime

__all__ = ["ended_with", "exit_code", "in_words", "launcher_told", "post_mortem", "sort_out", "zombie_told"]

#: Seconds within which parents have said how their children ended: the launchers of ipcluster look every 0.04 s.
_TOLD_WITHIN = 1.0

#: Seconds more for a forkserver that runs: it tells of each of its children, but a full machine may hold it up.
_HELD_UP = 10.0

#: Seconds between two looks at what is written without a notice.
_AGAIN = 0.002

#: How many of the last lines of a log are shown: a process that was killed has said nothing about it.
_LOG_LINES = 10

#: What a forkserver forks.
_FORKED = ("engine", "controller")

#: What takes the whole cluster along when it ends, the first cause first.
_VITAL = ("warden", "controller", "ipcluster")

#: What ipcluster says when it ends because of its controller.
_CONTROLLER_FIRST = "Controller stopped. Shutting down."

#: How a child is said to have ended when its warden was not there to tell.
_UNTOLD = 255


def post_mortem(roll: RollCall, missing: Sequence[Member]) -> tuple[tuple[Death, ...], tuple[Death, ...]]:
    """Return the deaths of these missing members, causes and followers, and strike off whoever is gone or going.

    When what is missing is beyond repair, the cluster's ``lost()`` says so from now on.
    """
    runtime, deadline = roll.runtime, time.monotonic() + _TOLD_WITHIN
    causes, followers = sort_out(missing, tail(runtime.folder.output, sys.maxsize))
    deaths = tuple(_describe(one, runtime, deadline) for one in causes)
    runtime.broken = runtime.broken or next((f"{one.who} has ended" for one in deaths if one.slot is None), "")
    if any(one.role in _VITAL for one in causes):
        roll.strike(roll.members)
    gone = {one.slot for one in causes if one.role == "engine"}
    roll.strike([*missing, *(one for one in roll.members if one.role == "nanny" and one.slot in gone)])
    return deaths, tuple(_describe(one, runtime) for one in followers)


def sort_out(dead: Sequence[Member], output: str) -> tuple[list[Member], list[Member]]:
    """Return those that died by themselves, and those that went down with them. ``output`` is ipcluster's.

    The end of the warden, the controller or ipcluster is the end of everything; an engine's is that of its nanny.
    """
    vital = sorted((one for one in dead if one.role in _VITAL), key=lambda one: _VITAL.index(one.role))
    if vital:
        first = vital[0]
        if [one.role for one in vital] == ["controller", "ipcluster"] and _CONTROLLER_FIRST not in output:
            first = vital[1]
        return [first], [one for one in dead if one is not first]
    engines = {one.slot for one in dead if one.role == "engine"}
    followers = [one for one in dead if one.role == "nanny" and one.slot in engines]
    return [one for one in dead if one not in followers], followers


def _describe(member: Member, runtime: Runtime, deadline: float | None = None) -> Death:
    """Say how this dead member ended; with a deadline, wait until then for whoever can tell, and show its log."""
    code = exit_code(member.process, runtime, 0.0 if deadline is None else deadline - time.monotonic())
    if code is None and deadline is not None and _will_be_told(member, runtime):
        code = exit_code(member.process, runtime, _HELD_UP)
    log = "" if deadline is None else _last_words(member, runtime)
    return Death(member.role, member.slot, member.process.pid, in_words(code), log)


def _will_be_told(member: Member, runtime: Runtime) -> bool:
    """Tell whether somebody is there who is sure to say how this member ended, sooner or later."""
    return member.role in _FORKED and runtime.forkserver is not None and runtime.forkserver.poll() is None


def _last_words(member: Member, runtime: Runtime) -> str:
    if member.log is None:
        return ""
    return tail(member.log, _LOG_LINES) or tail(runtime.folder.output, _LOG_LINES)


def in_words(code: int | None) -> str:
    """Say what an exit code means; minus a number is the signal with that number."""
    if code is None:
        return "nobody could tell how"
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def exit_code(process: psutil.Process, runtime: Runtime, patience: float) -> int | None:
    """Return how this dead process ended, as Popen.returncode tells it; None when nobody does within ``patience`` s."""
    deadline = time.monotonic() + patience
    with Wakeup() as wakeup:
        _listen(wakeup, runtime)
        while (code := _told(process, runtime)) is None and (left := deadline - time.monotonic()) > 0:
            wakeup.wait(left)
    return code


def ended_with(process: psutil.Process, logs: Path, output: Path, patience: float) -> int | None:
    """Return how this dead process ended, if the kernel, the forkserver or ipcluster's ``output`` tell; else None.

    From any thread. What has been reaped a moment ago is told a moment later, for which ``patience`` seconds are given.
    """
    deadline = time.monotonic() + patience
    while (code := _written(process, logs, output)) is None and time.monotonic() < deadline:
        time.sleep(_AGAIN)  # the kernel and two logs are asked: no one notice covers them
    return code


def _written(process: psutil.Process, logs: Path, output: Path) -> int | None:
    code = _zombie(process)
    if code is None:
        code = ends(logs / FORKSERVER_LOG).get(process.pid)
    return launcher_told(tail(output, sys.maxsize), process.pid) if code is None else code


def _listen(wakeup: Wakeup, runtime: Runtime) -> None:
    """Wake when one of those who can tell says something."""
    wakeup.watch_file(runtime.folder.output)
    if (log := runtime.folder.logs / FORKSERVER_LOG).exists():
        wakeup.watch_file(log)
    guard = runtime.folder.guard
    if guard is not None and guard.alive:
        wakeup.watch_fd(guard.fileno())


def _told(process: psutil.Process, runtime: Runtime) -> int | None:
    """Ask everybody who could know."""
    code = _written(process, runtime.folder.logs, runtime.folder.output)
    return _parent_told(process.pid, runtime) if code is None else code


def _zombie(process: psutil.Process) -> int | None:
    try:
        text = Path(f"/proc/{process.pid}/stat").read_text(errors="replace") if process.is_running() else ""
    except OSError:  # reaped, or not Linux
        return None
    return zombie_told(text)


def zombie_told(stat: str) -> int | None:
    """Return the exit code that the kernel shows of a dead, unreaped process in its ``/proc/<pid>/stat``, else None."""
    fields = stat.rpartition(")")[2].split()  # from the third on: the second is a name, which may hold anything
    return os.waitstatus_to_exitcode(int(fields[52 - 3])) if fields and fields[0] == "Z" else None


def _parent_told(pid: int, runtime: Runtime) -> int | None:
    """Return what the warden, or our own Popen object, knows of this process."""
    guard = runtime.folder.guard
    code = next((child.poll() for child in runtime.children if child.pid == pid), None)
    if guard is None:
        return code
    if code is None:
        code = guard.exit_code(pid)
    return None if code == _UNTOLD and not guard.alive else code


def launcher_told(output: str, pid: int) -> int | None:
    """Return how a process ended that one of ipcluster's launchers has started, from ipcluster's output.

    It writes ``{'exit_code': 3, 'pid': 17, ...}``, and a signal as ``-9`` or as ``<Negsignal.SIGKILL: -9>``.
    """
    found = re.findall(rf"\{{'exit_code': (?:<[\w.]+: )?(-?\d+)>?, 'pid': {pid}\b", output)
    return int(found[-1]) if found else None
