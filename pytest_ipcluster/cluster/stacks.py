"""Where each engine's Python is at the moment: asked for by a signal that needs no interpreter, read from a file.

The agent has the standard library's faulthandler write the stacks of all threads when SIGUSR1 comes. That works while
the engine computes, sleeps, or holds the interpreter's lock in C; not while it is stopped.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_ipcluster.cluster.processes import Pulse, send_signal

if TYPE_CHECKING:
    from pytest_ipcluster.cluster.engines import Engine
    from pytest_ipcluster.cluster.rollcall import RollCall

__all__ = ["read_stacks"]

#: Seconds between two looks at the files, and for how many looks nothing must have been added.
_AGAIN, _QUIET = 0.02, 2

#: The stack that faulthandler writes last is that of the thread which got the signal.
_LAST = "Current thread"


def read_stacks(roll: RollCall, timeout: float) -> list[tuple[Engine, str]]:
    """Return each engine with the stacks of its threads, or with the reason why there are none.

    Waits at most ``timeout`` seconds for all of them. Signals only processes of this very cluster that take it.
    """
    files = {engine: roll.runtime.folder.stacks / f"{engine.ident}.txt" for engine in roll.slots.engines()}
    begun = {engine: _size(file) for engine, file in files.items()}
    excuses = {engine: _excuse(engine, roll, file) for engine, file in files.items()}
    asked = [engine for engine in files if not excuses[engine]]
    for engine in asked:
        send_signal(engine.process, signal.SIGUSR1)
    _wait_quiet([(files[engine], begun[engine]) for engine in asked], timeout)
    written = {engine: excuses[engine] or _text(file, begun[engine]) for engine, file in files.items()}
    return [(engine, text or "(it has not written its stack)") for engine, text in written.items()]


def _excuse(engine: Engine, roll: RollCall, file: Path) -> str:
    """Say why this engine is not asked; empty when it can be."""
    state = Pulse(engine.process).state()
    if state != "running":
        return f"(it is {state})"
    if not file.exists() or not roll.runtime.owns(engine.process):
        return "(it has not offered to write its stack)"
    return "" if _takes(engine.pid) else "(something on it has taken the signal over)"


def _takes(pid: int) -> bool:
    """Tell whether the process handles SIGUSR1, which ends one that does not; not known but on Linux."""
    if sys.platform != "linux":
        return True
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    caught = next((int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:")), 0)
    return bool(caught >> (signal.SIGUSR1 - 1) & 1)


def _wait_quiet(files: list[tuple[Path, int]], timeout: float) -> None:
    """Wait until the last stack is in each of these, and nothing is added: nothing marks the end of that one."""
    deadline, quiet, before = time.monotonic() + timeout, 0, [""] * len(files)
    while files and quiet < _QUIET and time.monotonic() < deadline:
        time.sleep(_AGAIN)  # faulthandler tells nobody that it has written
        texts = [_text(file, begun) for file, begun in files]
        quiet = quiet + 1 if all(_LAST in text for text in texts) and texts == before else 0
        before = texts


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _text(file: Path, begun: int) -> str:
    try:
        return file.read_bytes()[begun:].decode(errors="replace").strip()
    except OSError:
        return ""
