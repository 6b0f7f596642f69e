"""Taking leave: an engine that is asked to shut down says so before it does, where others can read it.

A file ``<ident>.left`` beside its card tells an engine that ends on request from one that just ends.

This runs on engines, so it needs nothing but the standard library.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

__all__ = ["farewell_file", "say_farewell"]

_REQUEST = "shutdown_request"


def farewell_file(cards: Path, ident: str) -> Path:
    """Return the file of the engine with this uuid."""
    return cards / f"{ident}.left"


def say_farewell(kernel: Any, file: Path) -> None:
    """Have this kernel say so when it is asked to shut down, on whichever channel."""
    for handlers in (kernel.control_handlers, kernel.shell_handlers):
        if _REQUEST in handlers:
            handlers[_REQUEST] = _saying(handlers[_REQUEST], file)


def _saying(handler: Callable[..., Any], file: Path) -> Callable[..., Awaitable[None]]:
    async def handle(stream: Any, idents: Any, message: Any) -> None:
        file.touch(mode=0o600)
        result = handler(stream, idents, message)
        if inspect.isawaitable(result):
            await result

    return handle
