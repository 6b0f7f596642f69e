"""One time line that everything writes to: what happened to which heart, and when."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

__all__ = ["Event", "EventLog", "describe"]


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened, at ``time`` (seconds of the log's monotonic clock).

    ``kind`` is a short word such as ``"new heart"``, ``"missed"``, ``"failed"``, ``"returned"``, ``"fault"``,
    ``"undone"``, ``"repaired"`` or ``"limited"``; ``heart`` and ``slot`` say to whom, where that is known.
    ``seconds`` is how long it took, where that was measured; of several things that were done at once only the first
    has it.
    """

    time: float
    kind: str
    heart: bytes | None = None
    slot: int | None = None
    detail: str = ""
    seconds: float | None = None


#: How many of the newest events a log keeps at least, which is some megabytes. A repair makes about ten, so they reach
#: back for a thousand of them.
_KEPT = 10_000


class EventLog:
    """A thread-safe, append-only list of events that can be waited on.

    At least the newest ``kept`` events are there, and all from a position on that somebody holds; older ones are
    dropped, some at a time, for a session may last for days. Positions count those as well.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, kept: int = _KEPT) -> None:
        self._clock = clock
        self._kept = kept
        self._events: list[Event] = []
        self._dropped = 0
        self._held: list[int] = []
        self._changed = threading.Condition()

    def __len__(self) -> int:
        """Return how many events there have been."""
        with self._changed:
            return self._dropped + len(self._events)

    def add(
        self,
        kind: str,
        *,
        heart: bytes | None = None,
        slot: int | None = None,
        detail: str = "",
        at: float | None = None,
        seconds: float | None = None,
    ) -> Event:
        """Append an event and wake everyone who waits for one."""
        event = Event(self._clock() if at is None else at, kind, heart, slot, detail, seconds)
        with self._changed:
            self._events.append(event)
            self._drop_oldest()
            self._changed.notify_all()
        return event

    def hold(self) -> int:
        """Keep all events from now on, until the mark that this returns is released."""
        with self._changed:
            self._held.append(mark := len(self))
        return mark

    def release(self, mark: int) -> None:
        """Hold this mark no more; nothing when that has been said already."""
        with self._changed:
            if mark in self._held:
                self._held.remove(mark)

    def _drop_oldest(self) -> None:
        needed = min(self._held, default=len(self))
        surplus = min(len(self._events) - self._kept, needed - self._dropped)
        if surplus > self._kept // 10:  # one at a time would move all others each time
            del self._events[:surplus]
            self._dropped += surplus

    def since(self, mark: int = 0) -> list[Event]:
        """Return the events from position ``mark`` on that are kept; ``len(log)`` is the mark of now."""
        return self.read(mark)[0]

    def read(self, mark: int = 0) -> tuple[list[Event], int]:
        """Return the events from position ``mark`` on that are kept, and the mark from which to read on."""
        with self._changed:
            return self._events[max(0, mark - self._dropped) :], len(self)

    def wait_for(self, predicate: Callable[[Event], bool], timeout: float, *, since: int = 0) -> Event | None:
        """Return the first event from ``since`` on that fits, or None after ``timeout`` seconds.

        ``predicate`` may take its time: nobody who adds an event waits for it.
        """
        deadline = time.monotonic() + timeout
        seen = since
        while True:
            last = time.monotonic() >= deadline
            found, seen = self.read(seen)
            for event in found:
                if predicate(event):
                    return event
            if last:
                return None
            self._wait_beyond(seen, deadline)

    def _wait_beyond(self, mark: int, deadline: float) -> None:
        """Wait until there is an event from position ``mark`` on, or time is up."""
        with self._changed:
            self._changed.wait_for(lambda: len(self) > mark, max(0.0, deadline - time.monotonic()))


def describe(events: Iterable[Event], *, origin: float | None = None) -> str:
    """Return the events as lines of text, with times in seconds after ``origin`` (the first event's time)."""
    lines = []
    for event in events:
        origin = event.time if origin is None else origin
        who = f"slot {event.slot}" if event.slot is not None else ""
        heart = event.heart.decode("utf-8", "backslashreplace")[:13] if event.heart else ""
        took = "" if event.seconds is None else f"; took {event.seconds:.2f} s"
        line = f"{event.time - origin:+9.3f} s  {event.kind:<10} {who:<8} {heart:<14} {event.detail}{took}"
        lines.append(line.rstrip())
    return "\n".join(lines) if lines else "(nothing happened)"
