"""Dying from inside: what an engine does to itself when it is told to, also in the middle of a task.

The order is a file in the folder of the cards, ``<ident>.crash``, that holds one of the words of :data:`WAYS`; then
comes the signal :data:`CRASH`. Python runs the handler in the main thread as soon as that executes Python code, or
waits in a call that a signal interrupts. A task that keeps the interpreter to itself in C is not interrupted. A signal
that comes when the thread is just about to wait does not wake it, so whoever sends one has to send it again.

This runs on engines, so it needs nothing but the standard library.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

__all__ = ["CRASH", "EXIT_CODE", "WAYS", "obey", "order_file"]

#: The signal that brings the order; None on systems without real-time signals, which can't be told.
CRASH: int | None = signal.SIGRTMIN + 7 if hasattr(signal, "SIGRTMIN") else None

#: The exit code of an engine that exits.
EXIT_CODE = 3

#: How much memory is filled before the end (bytes).
_ROOM = 64 << 20


def order_file(cards: Path, ident: str) -> Path:
    """Return where the engine with this uuid looks for its order."""
    return cards / f"{ident}.crash"


def obey(file: Path) -> None:
    """Have this process die as ``file`` says when the signal comes. Only the main thread may call this."""
    if CRASH is not None:
        signal.signal(CRASH, _Obedience(file))


class _Obedience:
    """The signal's handler, for the first of them that is heard."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __call__(self, signum: int, _: object) -> None:
        signal.signal(signum, signal.SIG_IGN)  # it may take a while to die
        WAYS[self._file.read_text()]()


def _exit() -> None:
    os._exit(EXIT_CODE)


def _segfault() -> None:
    import ctypes

    _without_dump()
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)  # faulthandler would write a report first
    ctypes.string_at(0)


def _abort() -> None:
    _without_dump()
    os.abort()


def _fill_memory() -> None:
    """Use up all that the process may have, by a limit of its own, and be ended as the kernel would: by SIGKILL."""
    import resource

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _ROOM, resource.RLIM_INFINITY))
    hoard, size = [], 1 << 20
    while size:
        try:
            hoard.append(bytearray(size))
        except MemoryError:
            size //= 2
    os.kill(os.getpid(), signal.SIGKILL)


def _without_dump() -> None:
    """Leave no file of the dead process's memory behind."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


#: The ways to die, by name.
WAYS: dict[str, Callable[[], None]] = {"exit": _exit, "segfault": _segfault, "abort": _abort, "oom": _fill_memory}
