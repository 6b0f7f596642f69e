"""Waiting for what announces itself by no event: what another process does, or the operating system."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_ipcluster import BackgroundCluster

#: Any limit that the slowest machine keeps, in seconds.
SOON = 30.0

#: Any limit that the slowest machine keeps for a whole run of pytest, which may take half a minute on an idle one.
WHOLE_RUN = 300.0

#: Beats that a heart misses before it is failed, where no innocent one may be: with the default of three and a short
#: period a machine that has much else to do starves one for long enough.
MISSES = 10


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


def announced_by(cluster: BackgroundCluster) -> list[int]:
    """Return the engines that the hub names to a client that has just come.

    An older one may have missed a notice for good, if that was published before its subscription had arrived.
    """
    with cluster.client() as client:
        return client.ids
