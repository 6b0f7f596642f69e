"""What can be done to an engine, as records: a fault that was injected, and the failure that the hearts made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_ipcluster.cluster.engines import Engine

__all__ = ["CAUSES", "Fault", "HeartFailure", "Target", "check_slot", "targets"]

#: What a test may say about whom to hurt: one slot, several, or ``"all"``.
Target = int | Iterable[int] | str

#: How a heart can come to fail.
CAUSES = ("killed", "exited", "missed heartbeats")


@dataclass(frozen=True, slots=True)
class HeartFailure:
    """The monitor's verdict on one heart. Times are seconds of ``time.monotonic()``.

    ``cause`` is ``"killed"`` (by the signal in ``signal``, which a fault of ours sent), ``"exited"`` (the
    process is gone by itself) or ``"missed heartbeats"`` (the process exists but did not answer).
    ``injected_at`` is None when no fault of the test preceded it, ``last_pong`` when the heart never answered.
    ``misses`` counts the beats without an answer.
    """

    slot: int | None
    heart: bytes
    cause: str
    signal: int | None
    injected_at: float | None
    last_pong: float | None
    verdict_at: float
    misses: int


@dataclass(slots=True)
class Fault:
    """One fault that a test injected. Times are seconds of ``time.monotonic()``.

    ``engines`` are the engines as they were then, ``signal`` is what they were sent. ``undone_at`` is None
    while the fault lasts; what was killed stays so.
    """

    kind: str
    engines: tuple[Engine, ...]
    declared_at: float
    signal: int
    _wait_for: Callable[[Engine, float, float], HeartFailure] = field(repr=False)
    injected_at: float | None = None
    undone_at: float | None = None

    @property
    def slots(self) -> tuple[int, ...]:
        """The slots that it hit."""
        return tuple(engine.slot for engine in self.engines)

    def wait(self, timeout: float = 5.0) -> HeartFailure:
        """Wait for the failure of the (first) engine that it hit, after all handlers have run.

        Raises AssertionError with the hearts' history when there is none within ``timeout`` seconds.
        """
        return self._failure_of(self.engines[0], timeout)

    def wait_all(self, timeout: float = 5.0) -> tuple[HeartFailure, ...]:
        """Wait for the failure of each engine that it hit; like :meth:`wait` otherwise."""
        return tuple(self._failure_of(engine, timeout) for engine in self.engines)

    def _failure_of(self, engine: Engine, timeout: float) -> HeartFailure:
        return self._wait_for(engine, self.declared_at, timeout)


def targets(target: Target, n: int) -> tuple[int, ...]:
    """Return the slots that ``target`` means in a cluster of ``n`` engines.

    Raises ValueError for a slot that does not exist, an empty selection, and a word other than ``"all"``.
    """
    if target == "all":
        return tuple(range(n))
    if isinstance(target, int):
        return (check_slot(target, n),)
    if isinstance(target, str) or not isinstance(target, Iterable) or not (slots := tuple(target)):
        raise ValueError(f"slot {target!r}: expected a number from 0 to {n - 1}, several of them, or 'all'")
    return tuple(dict.fromkeys(check_slot(slot, n) for slot in slots))


def check_slot(slot: object, n: int) -> int:
    """Return the slot; raise ValueError when a cluster of ``n`` engines has none of this number."""
    if isinstance(slot, bool) or not isinstance(slot, int) or not 0 <= slot < n:
        raise ValueError(f"slot {slot!r}: expected a number from 0 to {n - 1}")
    return slot
