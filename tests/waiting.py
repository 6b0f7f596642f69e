"""Waiting for what announces itself by no event: what another process does, or the operating system."""

from __future__ import annotations

import time
from collections.abc import Callable

#: Any limit that the slowest machine keeps, in seconds.
SOON = 30.0


def comes_about(reached: Callable[[], object], within: float) -> bool:
    """Look until something is so; tell whether that has come about within so many seconds."""
    deadline = time.monotonic() + within
    while not reached():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)  # what is waited for here has no event: see above
    return True


def until(reached: Callable[[], object]) -> None:
    """Look until something is so; fail when it has not come about in time."""
    assert comes_about(reached, SOON), "it has not come about"
