"""Asking the forkserver for a process: used by ipcluster's launchers, and by us when an engine is replaced.

Standard library only, since every ipcluster imports it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from pytest_ipcluster.launchers import FORKSERVER

__all__ = ["SOCKET", "Fork", "NoForkError", "can_fork", "fork", "launcher_limits"]

#: The environment variable that tells ipcluster where its forkserver listens.
SOCKET = "PYTEST_IPCLUSTER_FORKSERVER"

#: Seconds for the forkserver to answer: it may have to import first, on a machine that is busy.
_ANSWERS_WITHIN = 30.0

#: Seconds for it to listen, which it does before it imports anything, and between two looks.
_LISTENS_WITHIN, _AGAIN = 5.0, 0.01

#: The longest path that a Unix socket can have here, with a margin (bytes).
_LONGEST_PATH = 100


class NoForkError(Exception):
    """There is no forkserver, or it won't do what it was asked for; its text says why."""


class Fork:
    """A process that the forkserver has forked. ``code`` is how it ended, as ``Popen.returncode`` tells it.

    ``lost`` says that the forkserver is gone, so that nobody will tell any more.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.pid = 0
        self.code: int | None = None
        self.lost = False
        self._connection = connection
        self._heard = b""

    def fileno(self) -> int:
        """Return what can be read when the process has ended, or the forkserver."""
        return self._connection.fileno()

    def wait(self, timeout: float | None = 0.0) -> int | None:
        """Wait until the process has ended, at most ``timeout`` seconds (None: no limit); return its exit code."""
        if self.code is None and not self.lost:
            news = self._next_line(timeout)
            if news is not None:
                self.code = news.get("ended")
                self.lost = self.code is None
            if self.code is not None or self.lost:
                self.close()
        return self.code

    def close(self) -> None:
        """Hear no more of it."""
        self._connection.close()

    def begin(self, timeout: float) -> None:
        """Take the first answer. Raises NoForkError when it is not a pid."""
        answer = self._next_line(timeout)
        if not answer or "pid" not in answer:
            self.close()
            silent = f"it has not answered for {timeout:g} s" if answer is None else "it has ended"
            raise NoForkError((answer or {}).get("refused", silent))
        self.pid = answer["pid"]

    def _next_line(self, timeout: float | None) -> dict[str, int] | None:
        """Return what the forkserver says next, {} when it has ended, None when it says nothing in time."""
        while b"\n" not in self._heard:
            if not _readable(self._connection, timeout):
                return None
            chunk = b""
            with contextlib.suppress(ConnectionResetError):
                chunk = self._connection.recv(4096)
            if not chunk:
                return {}
            self._heard += chunk
        line, _, self._heard = self._heard.partition(b"\n")
        return dict(json.loads(line))


def _readable(connection: socket.socket, timeout: float | None) -> bool:
    poll = select.poll()  # select() refuses descriptors above 1023
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(None if timeout is None else timeout * 1000))


def fork(
    path: str | os.PathLike[str],
    run: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    output: str | os.PathLike[str],
    folder: str | None = None,
    hold: Path | None = None,
) -> Fork:
    """Have the forkserver that listens at ``path`` run a module, as ``python -m run *arguments`` would.

    In a session of its own, in ``folder`` (default: the current one), with exactly this environment, its output at the
    end of a file. With ``hold`` it is an engine that waits at this named pipe until it is told its id. Raises
    :class:`NoForkError`.
    """
    order = {"run": run, "arguments": list(arguments), "environment": dict(environment)}
    order |= {} if hold is None else {"hold": str(hold)}
    where = {"folder": os.path.abspath(folder or os.getcwd()), "output": os.path.abspath(output)}
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(_ANSWERS_WITHIN)
        _connect(connection, os.fspath(path))
        connection.sendall(json.dumps({**order, **where}).encode() + b"\n")
    except OSError as error:
        connection.close()
        raise NoForkError(f"it cannot be reached: {error}") from error
    child = Fork(connection)
    child.begin(_ANSWERS_WITHIN)
    return child


def _connect(connection: socket.socket, path: str) -> None:
    """Connect to the forkserver, which may be a moment late; one that is gone has left its socket."""
    deadline = time.monotonic() + _LISTENS_WITHIN
    while not os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(_AGAIN)  # there is no event to wait for
    connection.connect(path)


def launcher_limits(launcher: str, path: Path) -> list[str]:
    """Say what this system does not offer that the launcher would need; empty on Linux."""
    if launcher != FORKSERVER or can_fork(path):
        return []
    return ["no forkserver here: engines are started one by one, which takes longer"]


def can_fork(path: Path) -> bool:
    """Tell whether there can be a forkserver that listens at this path.

    Only Linux is known to let a process go on after a fork without becoming another program; macOS's own libraries
    forbid it.
    """
    return sys.platform == "linux" and hasattr(os, "pidfd_open") and len(os.fsencode(path)) <= _LONGEST_PATH
