"""Pytest's end of the warden: starts it, has it start processes, hears how they ended, and lets it go."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from pytest_ipcluster.cluster.processes import MARK, find, is_alive, send_signal
from pytest_ipcluster.errors import ClusterError

__all__ = ["UNKNOWN", "Child", "Guard"]

_WARDEN = Path(__file__).with_name("warden.py")

#: Seconds for the warden to do what takes it a few milliseconds; it is late only on a machine that is stuck.
_ANSWERS_WITHIN = 30.0

#: What a child is said to have ended with when nobody could tell, since its warden was gone.
UNKNOWN = 255


class Guard:
    """A running warden, and the private folder that it keeps.

    ``folder`` is one that an earlier warden has left, None for a new one; ``grace`` the seconds that what it has
    started gets to end by itself once this process is gone; ``boss`` the pid of a process without which this one is
    as good as gone. ``missing`` names what this system does not offer it.
    Good for any thread; in a forked child of this process it does nothing. Raises ClusterError when there is no warden
    to be had.
    """

    def __init__(
        self, mark: str | None = None, folder: Path | None = None, grace: float = 1.0, boss: int | None = None
    ) -> None:
        self.mark = mark or secrets.token_hex(16)
        self.grace = grace
        self.boss = boss
        self._owner = os.getpid()
        self._lock = threading.RLock()
        self._heard = b""
        self._orders = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self._codes: dict[int, int] = {}
        self._ready: dict[str, Any] | None = None
        self._warden = subprocess.Popen(
            [sys.executable, "-P", str(_WARDEN)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        self.process = psutil.Process(self._warden.pid)
        self._greet(folder)

    def _greet(self, folder: Path | None) -> None:
        hello = {
            "owner": self._owner,
            "since": psutil.Process().create_time(),
            "mark": (MARK, self.mark),
            "parent": tempfile.gettempdir(),
            "folder": None if folder is None else str(folder),
            "grace": self.grace,
            "boss": self.boss,
        }
        try:
            self._tell(hello)
            ready = self._wait_for(lambda: self._ready)
        except BaseException:
            self.dismiss()
            raise
        self.folder = Path(ready["ready"])
        self.missing: tuple[str, ...] = tuple(ready["missing"])

    @property
    def alive(self) -> bool:
        """Whether the warden runs."""
        return is_alive(self.process)

    def spawn(self, command: Sequence[str], output: Path, environment: Mapping[str, str]) -> Child:
        """Have the warden start a process in a session of its own, its output into a file.

        Raises OSError when the command cannot be run, ClusterError when the warden is gone.
        """
        with self._lock:
            self._orders += 1
            number = self._orders
            order = {"start": number, "command": list(command), "environment": dict(environment)}
            self._tell({**order, "output": str(output), "folder": os.getcwd()})
            answer = self._wait_for(lambda: self._answers.pop(number, None))
        if "failed" in answer:
            raise OSError(answer["errno"], answer["strerror"], answer["filename"])
        return Child(command, answer["pid"], self)

    def exit_code(self, pid: int) -> int | None:
        """Return how a child of the warden ended, as Popen.returncode tells it; None when that is not known (yet)."""
        with self._lock, contextlib.suppress(ClusterError):
            self._listen(0)
        return self._codes.get(pid)

    def fileno(self) -> int:
        """Return what can be read when the warden has said something. Raises ClusterError when it is gone."""
        assert self._warden.stdout is not None
        if self._warden.stdout.closed:
            raise self._gone()
        return self._warden.stdout.fileno()

    def wait_for_news(self, timeout: float) -> None:
        """Wait until the warden says something, at most ``timeout`` seconds. Raises ClusterError when it is gone."""
        with self._lock:
            self._listen(timeout)

    def dismiss(self) -> None:
        """Have the warden end whatever is left, remove the folder, and end. May be called twice."""
        if os.getpid() != self._owner:
            return
        with self._lock:
            with contextlib.suppress(ClusterError):  # gone already
                self._tell({"end": True})
            for pipe in (self._warden.stdin, self._warden.stdout):
                assert pipe is not None
                with contextlib.suppress(OSError):  # what could not be written cannot be written now
                    pipe.close()
        try:
            self._warden.wait(_ANSWERS_WITHIN)
        except subprocess.TimeoutExpired:
            send_signal(self.process, 9)
            self._warden.wait()

    # -- the wire ----------------------------------------------------------------------------------

    def _tell(self, line: Mapping[str, Any]) -> None:
        assert self._warden.stdin is not None
        try:
            self._warden.stdin.write(json.dumps(line).encode() + b"\n")
            self._warden.stdin.flush()
        except (BrokenPipeError, ValueError) as error:
            raise self._gone() from error

    def _wait_for(self, answer: Callable[[], dict[str, Any] | None]) -> dict[str, Any]:
        deadline = time.monotonic() + _ANSWERS_WITHIN
        while (found := answer()) is None:
            if (left := deadline - time.monotonic()) <= 0:
                raise ClusterError(f"the warden (pid {self._warden.pid}) has not answered for {_ANSWERS_WITHIN:g} s")
            self._listen(left)
        return dict(found)

    def _listen(self, timeout: float) -> None:
        """Take in what the warden has said, waiting for it at most ``timeout`` seconds."""
        source = self.fileno()
        poll = select.poll()  # select() refuses descriptors above 1023
        poll.register(source, select.POLLIN)
        while poll.poll(timeout * 1000):
            chunk = os.read(source, 65536)
            if not chunk:
                raise self._gone()
            *lines, self._heard = (self._heard + chunk).split(b"\n")
            for line in lines:
                self._note(line)
            timeout = 0

    def _note(self, line: bytes) -> None:
        with contextlib.suppress(ValueError):  # the rest of a line that an interrupt has cut
            news = json.loads(line)
            if "ready" in news:
                self._ready = news
            elif "ended" in news:
                self._codes[news["ended"]] = news["code"]
            elif "started" in news:
                self._codes.pop(news["pid"], None)  # of an earlier process with this pid
                self._answers[news["started"]] = news
            else:
                self._answers[news["failed"]] = news

    def _gone(self) -> ClusterError:
        return ClusterError(f"the warden (pid {self._warden.pid}), which keeps the cluster, has ended")


class Child(subprocess.Popen[bytes]):
    """A Popen object of a process whose parent is the warden: what ``poll`` and ``wait`` tell comes from there.

    ``returncode`` is 255 when it ended and nobody was there to tell how.
    """

    def __init__(self, args: Sequence[str], pid: int, guard: Guard) -> None:
        # Not Popen's own: there is nothing to start. Its finalizer asks for this before anything else.
        self._child_created = False
        self.args = list(args)
        self.pid = pid
        self.stdin = self.stdout = self.stderr = None
        self.returncode: int | None = None
        self._guard = guard
        self._process = find(pid)

    def poll(self) -> int | None:
        """Look whether the process has ended: its exit code, minus the signal's number for a signal, else None."""
        if self.returncode is None:
            self.returncode = self._guard.exit_code(self.pid)
        if self.returncode is None and not self._guard.alive and not self._is_alive():
            self.returncode = UNKNOWN
        return self.returncode

    def _is_alive(self) -> bool:
        return self._process is not None and is_alive(self._process)

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the process has ended; raise subprocess.TimeoutExpired after ``timeout`` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            left = 1.0 if deadline is None else min(1.0, deadline - time.monotonic())
            if left <= 0:
                assert timeout is not None
                raise subprocess.TimeoutExpired(self.args, timeout)
            try:
                self._guard.wait_for_news(left)
            except ClusterError:
                if self._process is not None:
                    with contextlib.suppress(psutil.TimeoutExpired):
                        self._process.wait(left)
        return code

    def send_signal(self, sig: int) -> None:
        """Send a signal to this very process; nothing when it has ended."""
        if self.poll() is None and self._process is not None:
            send_signal(self._process, sig)
