"""What can be done to a cluster on purpose, as records: a fault that was injected, and what the hearts made of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

    from pytest_ipcluster.cluster.engines import Engine
    from pytest_ipcluster.cluster.rollcall import Member

    #: Whom a fault can hit.
    Victim = Engine | Member

__all__ = ["CAUSES", "EXITED", "KILLED", "LEFT", "LOST", "MISSED", "Fault", "HeartFailure", "Kind"]

#: How a heart can come to fail: a signal ended its process; that ended by itself; it is there and does not answer;
#: it was asked to shut down, and did; it ended because the controller had.
KILLED, EXITED, MISSED, LEFT, LOST = CAUSES = ("killed", "exited", "missed heartbeats", "left", "controller lost")


@dataclass(frozen=True, slots=True)
class HeartFailure:
    """The monitor's verdict on one heart. Times are seconds of ``time.monotonic()``.

    ``cause`` is ``"killed"`` (by the signal in ``signal``), ``"exited"`` (the process is gone by itself, with
    ``exit_code`` where the system still knew it), ``"missed heartbeats"`` (the process exists but did not answer),
    ``"left"`` (it was asked to shut down, by ``Client.shutdown`` for example) or ``"controller lost"`` (it is gone by
    itself, and the controller was before it).
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
    exit_code: int | None = None


@dataclass(frozen=True, slots=True)
class Kind:
    """A way to hurt: its name, the cause for which hearts will fail (empty when they won't), and the signal, if any.

    Who is hit by a ``deadly`` one is on the way out; a ``lasting`` one acts until it is taken back. ``inject`` does it
    to one engine or other member of the cluster, ``undo`` takes it back from several.
    """

    name: str
    sees: str
    inject: Callable[[Victim], object]
    undo: Callable[[Sequence[Victim]], object] = lambda _: None
    signal: int | None = None
    deadly: bool = False
    lasting: bool = False


@dataclass(slots=True)
class Fault:
    """One fault that a test injected. Times are seconds of ``time.monotonic()``.

    ``engines`` are the engines that it hit as they were then, ``members`` the other processes of the cluster; ``sees``
    is the cause for which the hearts of the engines will fail, empty when they won't. ``signal`` is what was sent.
    As a context manager it is undone at the end of the block. ``undone_at`` is None while it acts on anybody.
    """

    how: Kind = field(repr=False)
    engines: tuple[Engine, ...]
    members: tuple[Member, ...]
    declared_at: float
    _wait_for: Callable[[Engine, float, float], HeartFailure] = field(repr=False)
    injected_at: float | None = None
    undone_at: float | None = None
    _settled: set[int | Member] = field(default_factory=set, repr=False)

    @property
    def kind(self) -> str:
        """What was done."""
        return self.how.name

    @property
    def sees(self) -> str:
        """The cause for which the hearts that it hit fail; empty when they don't."""
        return self.how.sees

    @property
    def signal(self) -> int | None:
        """The number of the signal that was sent, or that ends the process; None for other ways."""
        return self.how.signal

    @property
    def slots(self) -> tuple[int, ...]:
        """The slots that it hit."""
        return tuple(engine.slot for engine in self.engines)

    @property
    def victims(self) -> tuple[Victim, ...]:
        """Whom it hit: the engines, then the others."""
        return (*self.engines, *self.members)

    @property
    def acts_on(self) -> tuple[Victim, ...]:
        """Whom it still acts on."""
        if self.undone_at is not None:
            return ()
        engines = (engine for engine in self.engines if engine.slot not in self._settled)
        return (*engines, *(member for member in self.members if member not in self._settled))

    def undo(self) -> None:
        """Let it act no longer. Engines that it has killed are replaced, under their old ids. May be called twice.

        Whom another fault of this kind still acts on is left as it is.
        """
        victims = self.acts_on
        self.settle(self.slots, self.members)
        self.how.undo(victims)

    def settle(self, slots: Iterable[int], members: Iterable[Member] = ()) -> None:
        """Take note that it acts no longer on these slots and these other processes."""
        self._settled.update(slots, members)
        if self._settled.issuperset((*self.slots, *self.members)):
            self.undone_at = self.undone_at or time.monotonic()

    def __enter__(self) -> Fault:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.undo()

    def wait(self, timeout: float = 5.0) -> HeartFailure:
        """Wait for the failure of the (first) engine that it hit, after all handlers have run.

        Raises AssertionError with the hearts' history when there is none within ``timeout`` seconds, and ValueError for
        a fault that hit no engine.
        """
        if not self.engines:
            raise ValueError(f"the fault {self.kind!r} hit no engine whose heart could fail")
        return self._failure_of(self.engines[0], timeout)

    def wait_all(self, timeout: float = 5.0) -> tuple[HeartFailure, ...]:
        """Wait for the failure of each engine that it hit; like :meth:`wait` otherwise."""
        return tuple(self._failure_of(engine, timeout) for engine in self.engines)

    def _failure_of(self, engine: Engine, timeout: float) -> HeartFailure:
        return self._wait_for(engine, self.declared_at, timeout)
