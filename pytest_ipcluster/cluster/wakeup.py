"""Sleep until something happens: a process ends, a file in a folder changes, a socket can be read, or time is up.

On Linux the kernel tells: pidfd for processes, inotify for folders. Elsewhere the sleeper looks around at a
short interval.
"""

from __future__ import annotations

import ctypes
import os
import selectors
import sys
import time
from pathlib import Path
from types import TracebackType

import psutil

__all__ = ["Wakeup"]

# From <sys/inotify.h>.
_IN_MODIFY, _IN_CLOSE_WRITE, _IN_MOVED_TO, _IN_CREATE, _IN_DELETE = 0x2, 0x8, 0x80, 0x100, 0x200
_IN_NONBLOCK, _IN_CLOEXEC = getattr(os, "O_NONBLOCK", 0), getattr(os, "O_CLOEXEC", 0)
_FOLDER_EVENTS = _IN_CLOSE_WRITE | _IN_MOVED_TO | _IN_CREATE | _IN_DELETE

#: Seconds between two looks where the kernel cannot tell.
_LOOK_EVERY = 0.02


class Wakeup:
    """A sleeper with several alarm clocks. Not thread-safe; a context manager that closes its descriptors.

    A wake-up says only *that* something may have happened: the caller looks what. Spurious wake-ups are
    allowed.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._own: list[int] = []
        self._watched: set[psutil.Process] = set()
        self._must_look = False
        self._inotify: int | None = None

    def __enter__(self) -> Wakeup:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def watch_process(self, process: psutil.Process) -> bool:
        """Wake when this process ends. False when it has ended already; watching twice is watching once."""
        if process in self._watched:
            return True
        if not hasattr(os, "pidfd_open"):
            self._must_look = True
            return bool(process.is_running())
        try:
            pidfd = os.pidfd_open(process.pid)
        except ProcessLookupError:
            return False
        self._watch_own(pidfd)
        self._watched.add(process)
        return bool(process.is_running())

    def watch_folder(self, folder: Path) -> None:
        """Wake when a file in this folder is written, renamed into it or removed."""
        self._watch_path(folder, _FOLDER_EVENTS)

    def watch_file(self, file: Path) -> None:
        """Wake when something is written to this file, which must exist; its writer need not close it."""
        self._watch_path(file, _IN_MODIFY)

    def _watch_path(self, path: Path, events: int) -> None:
        if sys.platform != "linux":
            self._must_look = True
            return
        libc = ctypes.CDLL(None, use_errno=True)
        if self._inotify is None:
            self._inotify = libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC)
            if self._inotify < 0:
                self._inotify = None
                self._must_look = True
                return
            self._watch_own(self._inotify)
        if libc.inotify_add_watch(self._inotify, os.fsencode(path), events) < 0:
            self._must_look = True

    def watch_fd(self, fd: int) -> None:
        """Wake when this descriptor can be read. It stays the caller's; watching twice is watching once."""
        if fd not in self._selector.get_map():
            self._selector.register(fd, selectors.EVENT_READ)

    def ignore_fd(self, fd: int) -> None:
        """Do not wake for this descriptor any more, because it is about to be closed."""
        self._selector.unregister(fd)

    def _watch_own(self, fd: int) -> None:
        self._own.append(fd)
        self._selector.register(fd, selectors.EVENT_READ)

    def wait(self, timeout: float) -> None:
        """Sleep until an alarm rings, at most ``timeout`` seconds."""
        if timeout <= 0:
            return
        if self._must_look:
            timeout = min(timeout, _LOOK_EVERY)
        if not self._selector.get_map():
            time.sleep(timeout)  # nothing can be selected here (Windows): looking around is all there is
            return
        for key, _ in self._selector.select(timeout):
            self._acknowledge(key.fd)

    def _acknowledge(self, fd: int) -> None:
        """Empty the inotify queue; forget a process that has ended, for its pidfd stays readable for ever."""
        if fd == self._inotify:
            os.read(fd, 65536)
        elif fd in self._own:
            self._selector.unregister(fd)
            self._own.remove(fd)
            os.close(fd)

    def close(self) -> None:
        """Close every descriptor of ours; may be called twice."""
        self._selector.close()
        for fd in self._own:
            os.close(fd)
        self._own.clear()
