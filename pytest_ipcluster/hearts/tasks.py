"""Which task an engine works on, told by the engine itself while it works, where others can read it.

Each engine has a small file beside its card, ``<ident>.task``. As long as it works on a task, the file begins with the
id of the task's message; otherwise with a zero. To write it is a copy of some bytes in memory, so it costs a task
nothing that can be measured, and what is there when the process dies stays there.

This runs on engines, so it needs nothing but the standard library.
"""

from __future__ import annotations

import inspect
import mmap
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

__all__ = ["task_file", "tell_tasks"]

#: Bytes of the file. ipyparallel's ids have less than 100.
_SIZE = 256

#: The messages that are tasks.
_TASKS = ("apply_request", "execute_request")


def task_file(cards: Path, ident: str) -> Path:
    """Return the file of the engine with this uuid."""
    return cards / f"{ident}.task"


def tell_tasks(kernel: Any, file: Path) -> None:
    """Have this kernel tell from now on what it works on."""
    board = _board(file)
    for kind in _TASKS:
        if kind in kernel.shell_handlers:
            kernel.shell_handlers[kind] = _telling(kernel.shell_handlers[kind], board)


def _board(file: Path) -> mmap.mmap:
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        # A disk that is full must be an error now: later, a write into memory without a place on it would be the end.
        os.write(descriptor, bytes(_SIZE))
        return mmap.mmap(descriptor, _SIZE)
    finally:
        os.close(descriptor)


def _telling(handler: Callable[..., Any], board: mmap.mmap) -> Callable[..., Awaitable[None]]:
    """Wrap a handler of messages; it may be a coroutine or not, as the versions of ipykernel differ."""

    async def handle(stream: Any, idents: Any, message: Any) -> None:
        name = message["header"]["msg_id"].encode("ascii", "replace")[: _SIZE - 1]
        board[: len(name) + 1] = name + b"\0"
        try:
            result = handler(stream, idents, message)
            if inspect.isawaitable(result):
                await result
        finally:
            board[0] = 0

    return handle
