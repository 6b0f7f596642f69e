"""What is kept in pytest's stash while there is a cluster, beside the settings: the keys, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_ipcluster.keeper import Keeper

__all__ = ["CLOCK", "KEEPER", "TIMER"]

#: Where the keeper of the session's cluster is kept while there is one: ``config.stash[KEEPER]``.
KEEPER: pytest.StashKey[Keeper] = pytest.StashKey()

#: Makes a block whose time is not charged to the running test, where pytest-timeout is: ``config.stash[CLOCK]``.
CLOCK: pytest.StashKey[Callable[[], AbstractContextManager[None]]] = pytest.StashKey()

#: The timer of pytest-timeout that runs: its test, its settings, and since when it runs by ``time.monotonic()``.
TIMER: pytest.StashKey[tuple[pytest.Item, Any, float] | None] = pytest.StashKey()
