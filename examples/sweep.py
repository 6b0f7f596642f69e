"""A parameter sweep on an IPython Parallel cluster that survives the loss of engines.

The question: water is poured on a square grid of cells, each of which is open with probability ``density``. How
often does it find a way to the bottom? The answer is estimated by trying, for many densities, and turns from
"hardly ever" into "nearly always" around a density of 0.593.

Each density is split into batches. A batch carries its own seed, so its result does not depend on which engine
works on it, nor on how often it had to be tried.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ipyparallel.error import RemoteError

if TYPE_CHECKING:
    from ipyparallel import AsyncResult, DirectView, LoadBalancedView

__all__ = ["Batch", "EnginesLostError", "Report", "Sweep", "Watchdog", "count_percolating", "percolates", "split"]


@dataclass(frozen=True, slots=True)
class Batch:
    """A part of the work that one engine does in one go: so many trials at one density."""

    density: float
    seed: int
    trials: int = 25
    size: int = 20


@dataclass(frozen=True, slots=True)
class Report:
    """What a sweep found: the share of percolating grids by density, who helped, and how many batches were lost."""

    shares: dict[float, float]
    engines: frozenset[int]
    retries: int


class EnginesLostError(Exception):
    """A sweep gave up because too few engines were left."""


class Watchdog:
    """Counts the engines that are lost. ``engine_lost`` is a heart failure handler and may run on any thread."""

    def __init__(self, spare: int) -> None:
        self.spare = spare
        self.lost: list[bytes] = []
        self.alarm = threading.Event()

    def engine_lost(self, heart: bytes) -> None:
        """Note the loss, and raise the alarm when more engines are gone than can be spared."""
        self.lost.append(heart)
        if len(self.lost) > self.spare:
            self.alarm.set()


def percolates(size: int, density: float, rng: random.Random) -> bool:
    """Tell whether water finds a way through one random grid, from the top row to the bottom row."""
    dry = {(row, column) for row in range(size) for column in range(size) if rng.random() < density}
    wet = [(0, column) for column in range(size) if (0, column) in dry]
    dry.difference_update(wet)
    while wet:
        row, column = wet.pop()
        if row == size - 1:
            return True
        reached = dry & {(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)}
        wet.extend(reached)
        dry -= reached
    return False


def count_percolating(batch: Batch) -> int:
    """Return in how many trials of the batch the water came through. This is what runs on the engines."""
    if not 0 <= batch.density <= 1:
        raise ValueError(f"a density is between 0 and 1, not {batch.density}")
    rng = random.Random(f"{batch.density} {batch.seed}")
    return sum(percolates(batch.size, batch.density, rng) for _ in range(batch.trials))


def split(densities: Iterable[float], batches: int = 4) -> list[Batch]:
    """Return the work for these densities, in so many batches for each."""
    return [Batch(density, seed) for density in densities for seed in range(batches)]


class Sweep:
    """Work that is handed to a view by ``submit()`` and brought home by ``collect()``.

    A batch whose engine died is submitted again, at most ``max_retries`` times. Any other error ends the sweep.
    """

    def __init__(
        self,
        view: LoadBalancedView | DirectView,
        batches: Iterable[Batch],
        *,
        max_retries: int = 2,
        watchdog: Watchdog | None = None,
        work: Callable[[Batch], int] = count_percolating,
    ) -> None:
        self._view = view
        self._work = work
        self._max_retries = max_retries
        self._watchdog = watchdog
        self._tries = dict.fromkeys(batches, 0)
        self._running: list[tuple[Batch, AsyncResult]] = []

    def submit(self) -> None:
        """Send all batches off; returns at once."""
        for batch in self._tries:
            self._send(batch)

    def collect(self, timeout: float = 60.0) -> Report:
        """Return the report when all batches are done.

        Raises TimeoutError after ``timeout`` seconds, EnginesLostError when the watchdog raises the alarm, and
        RemoteError when a batch failed for good.
        """
        deadline = time.monotonic() + timeout
        found: dict[float, list[float]] = {}
        engines: set[int] = set()
        while self._running:
            batch, result = self._running.pop(0)
            self._wait(result, deadline)
            try:
                count = result.get()
            except RemoteError as error:
                if error.ename != "EngineError" or self._tries[batch] > self._max_retries:
                    raise
                self._send(batch)
                continue
            found.setdefault(batch.density, []).append(count / batch.trials)
            engines.add(result.engine_id)
        shares = {density: sum(parts) / len(parts) for density, parts in sorted(found.items())}
        return Report(shares, frozenset(engines), sum(self._tries.values()) - len(self._tries))

    def _send(self, batch: Batch) -> None:
        self._tries[batch] += 1
        self._running.append((batch, self._view.apply_async(self._work, batch)))

    def _wait(self, result: AsyncResult, deadline: float) -> None:
        """Wait for one result. ipyparallel itself would wait for ever when no engine is left to work on it."""
        done = False
        while not done:
            done = result.wait(0.05)
            if self._watchdog is not None and self._watchdog.alarm.is_set():
                raise EnginesLostError(f"{len(self._watchdog.lost)} engines are lost, {self._watchdog.spare} to spare")
            if not done and time.monotonic() > deadline:
                raise TimeoutError("the sweep is not done yet")
