"""Waiting for what announces itself by no event: what another process does, or the operating system."""

from __future__ import annotations

import time
from collections.abc import Callable

#: Any limit that the slowest machine keeps, in seconds.
SOON = 30.0


def until(reached: Callable[[], object]) -> None:
    """Look until something is so; fail when it has not come about in time."""
    deadline = time.monotonic() + SOON
    while not reached():
        assert time.monotonic() < deadline, "it has not come about"
        time.sleep(0.002)  # what is waited for here has no event: see above
