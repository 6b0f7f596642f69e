"""Hearts that are suspected to be dead: is their process gone? Asked at once, and again until it can be told."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from pytest_ipcluster.hearts.handlers import HandlerError
from pytest_ipcluster.hearts.monitor import HeartMonitor

__all__ = ["Suspects", "SuspiciousMonitor"]

#: A process that dies closes its connections before it has ended; these are the pauses between two looks (seconds).
_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.256
#: Looks without a pause for anything else: each may cost a tenth of a millisecond.
_AT_ONCE = 32


class Suspects:
    """Asks about suspects and never blocks.

    ``gone`` says of a heart whether its process has ended; None means that nobody can tell, or that it does not matter
    any more. ``condemn`` is called with a heart whose process has ended. ``later`` calls a function after so many
    seconds.
    """

    def __init__(
        self,
        gone: Callable[[bytes], bool | None],
        condemn: Callable[[bytes], object],
        later: Callable[[float, Callable[[], None]], object],
    ) -> None:
        self._gone = gone
        self._condemn = condemn
        self._later = later
        self._asking: deque[tuple[bytes, float, object]] = deque()
        # The suspicions that count, and whose first look is still to come: a connection may break as often as it likes.
        self._suspicions: dict[bytes, object] = {}
        self._fresh: set[bytes] = set()
        self._working = False

    def add(self, heart: bytes) -> None:
        """Suspect this heart: its process is looked at for half a second from now on, or until it has ended."""
        if heart not in self._fresh:
            self._fresh.add(heart)
            self._suspicions[heart] = suspicion = object()
            self._ask(heart, _FIRST_PAUSE, suspicion)

    def _ask(self, heart: bytes, pause: float, suspicion: object) -> None:
        self._asking.append((heart, pause, suspicion))
        if not self._working:
            self._work()

    def _work(self) -> None:
        self._working = True
        try:
            for _ in range(min(len(self._asking), _AT_ONCE)):
                self._look(*self._asking.popleft())
        finally:
            self._working = bool(self._asking)
            if self._asking:
                self._later(0.0, self._work)

    def _look(self, heart: bytes, pause: float, suspicion: object) -> None:
        if self._suspicions.get(heart) is not suspicion:
            return
        self._fresh.discard(heart)
        gone = self._gone(heart)
        if gone is False and pause <= _LONGEST_PAUSE:
            self._later(pause, lambda: self._ask(heart, 2 * pause, suspicion))
            return
        del self._suspicions[heart]
        if gone:
            self._condemn(heart)


class SuspiciousMonitor(HeartMonitor):
    """A monitor that does not wait for missed beats when a connection has broken and the process is gone.

    ``gone`` says whether the process of a heart whose connection has broken has ended; None if it cannot tell.
    """

    def __init__(self, *, gone: Callable[[bytes], bool | None] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._gone = gone
        self._suspects = Suspects(self._is_gone, self._condemn, self._later)
        # Of whose broken connections has been told since the last beat.
        self._told: set[bytes] = set()
        self._told_since = self.tic

    def _suspect(self, hearts: Iterable[bytes]) -> list[bytes]:
        """Suspect hearts whose connection has broken; return those that may well be alive."""
        hearts = list(hearts)
        for heart in hearts:
            self._suspects.add(heart)
        alive = [heart for heart in hearts if heart in self._ledger.hearts]
        if self._told_since != self.tic:
            self._told_since = self.tic
            self._told.clear()
        for heart in alive:
            if heart not in self._told:
                self._told.add(heart)
                self._note("suspected", heart, "its connection broke", at=self._clock())
        return alive

    def _is_gone(self, heart: bytes) -> bool | None:
        """Look whether the process has ended; what the question raises is treated as if a handler had raised it."""
        if self._gone is None or heart not in self._ledger.hearts or not self._running:
            return None
        try:
            return self._gone(heart)
        except Exception as error:
            self._handler_errors.append(HandlerError(self._gone, heart, error))
            return None

    def _condemn(self, heart: bytes) -> None:
        self._fail(heart, "its connection broke and its process is gone, ")

    def _later(self, seconds: float, function: Callable[[], None]) -> None:
        self.loop.call_later(seconds, function)
