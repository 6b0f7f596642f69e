"""What tasks leave in an engine that no code can undo: threads, processes, standard files that were closed or bent.

This runs on engines, so it needs nothing but the standard library.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

__all__ = ["Remains"]

#: The name of the thread in which an engine's heart beats.
_HEART = "ipcluster-heart"

#: Seconds that the threads of earlier tasks get to come to their ends, and in how many parts at least: however long the
#: machine stands still meanwhile, it runs in all parts but one.
_GRACE, _PARTS = 0.1, 10

#: The most times that the children are read while threads come and go.
_READS = 100


class Remains:
    """Remembers the threads, processes and standard files of now; ``complaints()`` tells what has changed since."""

    def __init__(self) -> None:
        self._threads = set(threading.enumerate())
        self._nameless = _nameless()
        self._hearts = [thread for thread in self._threads if thread.name == _HEART]
        self._children = set(_children())
        self._files = _standard_files()

    def complaints(self) -> list[str]:
        """Return a line for each thing that an earlier task left."""
        return [
            *("a test stopped its heart" for heart in self._hearts if not heart.is_alive()),
            *(f"a thread that a test started still runs there: {name!r}" for name in self._new_threads()),
            *(f"a process that a test started there still runs: pid {pid}" for pid in self._new_children()),
            *(f"a test closed or redirected its file descriptor {fd}" for fd in self._bent_files()),
            *(f"a test closed its {stream}" for stream in ("stdout", "stderr") if getattr(sys, stream).closed),
        ]

    def _new_threads(self) -> list[str]:
        deadline, parts = time.monotonic() + _GRACE, _PARTS
        while (working := self._working()) and (time.monotonic() < deadline or parts > 0):
            working[0].join(_GRACE / _PARTS)
            parts -= 1
        return [thread.name for thread in self._working()] + ["(no name)"] * len(_nameless() - self._nameless)

    def _working(self) -> list[threading.Thread]:
        """Return the threads that are new and do something, the one that asks excluded."""
        frames = sys._current_frames()
        new = set(threading.enumerate()) - self._threads - {threading.current_thread()}
        return [thread for thread in new if not _waits_for_work(frames.get(thread.ident or 0))]

    def _new_children(self) -> list[int]:
        return sorted(pid for pid in _children() if pid not in self._children | _helpers())

    def _bent_files(self) -> list[int]:
        return [fd for fd, file in _standard_files().items() if file != self._files[fd]]


def _nameless() -> set[int]:
    """Return the threads that Python knows but its module threading does not."""
    return set(sys._current_frames()) - {thread.ident for thread in threading.enumerate()}


def _waits_for_work(frame: FrameType | None) -> bool:
    """Tell whether this is where an idle thread of a ThreadPoolExecutor stands: those may stay, like what is cached."""
    pool = sys.modules.get("concurrent.futures.thread")
    return frame is not None and pool is not None and frame.f_code is pool._worker.__code__


def _children() -> list[int]:
    """Return the living children of this process, where Linux tells them.

    A thread that ends hands its children to another one, whose list may have been read by then. So all are read again.
    """
    found: set[str] = set()
    for _ in range(_READS):
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread has ended meanwhile
            for thread in os.listdir("/proc/self/task"):
                found.update(Path(f"/proc/self/task/{thread}/children").read_text().split())
            break
    return [int(pid) for pid in found if _runs(pid)]


def _runs(pid: str) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # it has ended meanwhile
        return False
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")


def _helpers() -> set[int | None]:
    """Return the helper processes of multiprocessing, which come once and stay as long as this process."""
    tracker = sys.modules.get("multiprocessing.resource_tracker")
    server = sys.modules.get("multiprocessing.forkserver")
    return {
        getattr(getattr(tracker, "_resource_tracker", None), "_pid", None),
        getattr(getattr(server, "_forkserver", None), "_forkserver_pid", None),
    }


def _standard_files() -> dict[int, tuple[int, int] | None]:
    return {fd: _identity(fd) for fd in (0, 1, 2)}


def _identity(fd: int) -> tuple[int, int] | None:
    """Return what tells an open file from others; None for a descriptor that is not open."""
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino
