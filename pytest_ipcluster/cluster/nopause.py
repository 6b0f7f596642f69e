"""A controller that is forked does not pause in the middle of its start.

ipyparallel's sleeps for a quarter of a second when it has made the hub's sockets but for one, which is as much as the
rest of its start takes. Nothing happens meanwhile, and nobody is waited for: the processes that this once gave some
time to are started later today.
"""

from __future__ import annotations

import time
from types import ModuleType

__all__ = ["PAUSE", "start_without_the_pause"]

#: How long it is, in seconds. Other sleeps, should there ever be any, are left alone.
PAUSE = 0.25


def start_without_the_pause() -> None:
    """Have the controller that this process is going to be start without its pause."""
    from ipyparallel.controller import app

    app.time = _Sleepless()


class _Sleepless(ModuleType):
    """The module ``time`` as one module sees it, without the pause."""

    def __init__(self) -> None:
        super().__init__(time.__name__, time.__doc__)
        vars(self).update(vars(time), sleep=_sleep)


def _sleep(seconds: float) -> None:
    if seconds != PAUSE:
        time.sleep(seconds)  # not ours: whoever asks for it has the reason
