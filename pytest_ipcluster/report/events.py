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


class EventLog:
    """A thread-safe, append-only list of events that can be waited on."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._events: list[Event] = []
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._events)

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
            self._changed.notify_all()
        return event

    def since(self, mark: int = 0) -> list[Event]:
        """Return the events from position ``mark`` on; ``len(log)`` is the mark of now."""
        with self._changed:
            return self._events[mark:]

    def wait_for(self, predicate: Callable[[Event], bool], timeout: float, *, since: int = 0) -> Event | None:
        """Return the first event from ``since`` on that fits, or None after ``timeout`` seconds.

        ``predicate`` may take its time: nobody who adds an event waits for it.
        """
        deadline = time.monotonic() + timeout
        seen = since
        while True:
            last = time.monotonic() >= deadline
            found = self.since(seen)
            for event in found:
                if predicate(event):
                    return event
            if last:
                return None
            seen += len(found)
            self._wait_beyond(seen, deadline)

    def _wait_beyond(self, mark: int, deadline: float) -> None:
        """Wait until there is an event from position ``mark`` on, or time is up."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._events) > mark, max(0.0, deadline - time.monotonic()))


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
