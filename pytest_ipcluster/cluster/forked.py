"""The Popen object of a process that the forkserver has forked for us.

Nothing is kept open for it: how it ended is read in the forkserver's log.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from pytest_ipcluster.cluster.guard import UNKNOWN, Child, Guard
from pytest_ipcluster.cluster.processes import is_alive, wait_gone

__all__ = ["FORKSERVER_LOG", "ForkedChild", "ends"]

#: The name of the forkserver's log, in the folder of the logs.
FORKSERVER_LOG = "forkserver.log"

#: Seconds between two looks for what the forkserver writes a moment after the end of a process.
_AGAIN = 0.005

#: Seconds in which those who know how a process has ended, and have just reaped it, get to say so.
_SILENCE = 1.0


class ForkedChild(Child):
    """A Popen object of a process that the forkserver (``server``) has forked, and which writes its end into ``log``.

    Only what stands there after the byte ``begun`` counts, for an earlier process may have had this pid: the log's
    length before the fork. When the forkserver is gone the warden tells, which adopts its children. ``returncode`` is
    255 when nobody could.
    """

    def __init__(
        self, args: Sequence[str], pid: int, guard: Guard, server: psutil.Process | None, log: Path, begun: int = 0
    ) -> None:
        super().__init__(args, pid, guard)
        self._server = server
        self._log = log
        self._begun = begun
        self._silent_since: float | None = None

    def poll(self) -> int | None:
        """Look whether the process has ended: its exit code, minus the signal's number for a signal, else None."""
        if self.returncode is None and not self._is_alive():
            silent = self._is_silent()
            code = self._told()
            self.returncode = UNKNOWN if code is None and silent else code
        return self.returncode

    def _is_silent(self) -> bool:
        """Tell whether nobody is left who will say how the process has ended."""
        if not self._is_reaped() or (self._server is not None and is_alive(self._server)):
            return False
        if self._silent_since is None:
            self._silent_since = time.monotonic()
        return not self._guard.alive or time.monotonic() - self._silent_since > _SILENCE

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the process has ended; raise subprocess.TimeoutExpired after ``timeout`` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            left = 1.0 if deadline is None else deadline - time.monotonic()
            if left <= 0:
                assert timeout is not None
                raise subprocess.TimeoutExpired(self.args, timeout)
            if self._process is None or not wait_gone({self._process}, min(1.0, left)):
                time.sleep(_AGAIN)  # there is no event to wait for
        return code

    def _is_reaped(self) -> bool:
        return self._process is None or not self._process.is_running()

    def _told(self) -> int | None:
        code = ends(self._log, self._begun).get(self.pid)
        return self._guard.exit_code(self.pid) if code is None else code


def ends(log: Path, begun: int = 0) -> dict[int, int]:
    """Return the exit codes by pid that a forkserver has written into its log, from this byte on."""
    found = {}
    with suppress(FileNotFoundError), log.open("rb") as lines:
        lines.seek(begun)
        for line in lines:
            if line.startswith(b'{"ended": ') and line.endswith(b"\n"):
                told = json.loads(line)
                found[told["ended"]] = told["code"]
    return found
