"""What the hearts made of a test: every verdict with its cause, as a failure handler like any other sees it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_ipcluster.cluster.processes import is_alive, is_doomed, wait_gone
from pytest_ipcluster.faults.kinds import EXITED, KILLED, LEFT, LOST, MISSED, Fault, HeartFailure
from pytest_ipcluster.report.events import Event, describe

if TYPE_CHECKING:
    from collections.abc import Iterable

    import psutil

    from pytest_ipcluster.cluster.engines import Engine
    from pytest_ipcluster.faults.kinds import Victim
    from pytest_ipcluster.hearts.thread import MonitorThread
    from pytest_ipcluster.report.events import EventLog

__all__ = ["Recorder"]

#: Seconds for the handlers that run after ours to finish; a handler that takes longer holds up every heart
#: anyway.
_HANDLERS = 30.0

#: Seconds for an engine that is dying to end, and then for those who reap it to tell how it ended.
_TELLING = 1.0


class Recorder:
    """Listens to one monitor from its creation until ``close()``, and knows which engine a heart belonged to.

    ``how_ended`` returns the exit code of a process that has ended, minus the number of the signal, or None when that
    is not known within some seconds.
    """

    def __init__(
        self,
        hearts: MonitorThread,
        log: EventLog,
        engines: Iterable[Engine],
        how_ended: Callable[[psutil.Process, float], int | None],
        controller: psutil.Process | None,
    ) -> None:
        self._hearts = hearts
        self._how_ended = how_ended
        self._controller = controller
        self._log = log
        self._begun = log.hold()
        self._engines = {engine.heart: engine for engine in engines}
        self._faults: dict[bytes, Fault] = {}
        self._lock = threading.Lock()
        self._failures: list[HeartFailure] = []
        self._unsure: list[int] = []  # which of them were not complete when they were recorded
        hearts.monitor.add_heart_failure_handler(self._record)

    def close(self) -> None:
        """Listen no more, and let the log drop what was heard when it has enough that is newer. May be called twice."""
        self._hearts.monitor.remove_heart_failure_handler(self._record)
        self._log.release(self._begun)

    def declare(self, fault: Fault) -> None:
        """Learn of a fault before it is injected, so that the verdict that follows can name it."""
        for engine in fault.engines:
            self._engines[engine.heart] = engine
            self._faults[engine.heart] = fault
            self._log.add("fault", heart=engine.heart, slot=engine.slot, detail=f"{fault.kind} pid {engine.pid}")
        for member in fault.members:
            detail = f"{fault.kind} {member.role} pid {member.process.pid}"
            self._log.add("fault", slot=member.slot, detail=detail)

    def undone(self, victim: Victim, detail: str) -> None:
        """Write down that a fault no longer acts on this one."""
        self._log.add("undone", heart=getattr(victim, "heart", None), slot=victim.slot, detail=detail)

    def _record(self, heart: bytes) -> None:
        """Run on the monitor's thread for each verdict; it waits for nothing, for the next handler is waiting."""
        verdict = self._hearts.monitor.failure_of(heart)
        if verdict is None:
            return
        engine, fault = self._engines.get(heart), self._faults.get(heart)
        failure = HeartFailure(
            slot=None if engine is None else engine.slot,
            heart=heart,
            cause=EXITED,
            signal=None,
            injected_at=None if fault is None else fault.injected_at,
            last_pong=verdict.last_pong,
            verdict_at=verdict.verdict_at,
            misses=verdict.misses,
        )
        dying = engine is not None and _is_dying(engine, fault)  # before the cause: it may end just now
        failure = _with_end(failure, *self._cause(engine, fault, 0.0))
        known = failure.signal is not None or failure.exit_code is not None or (failure.cause == MISSED and not dying)
        with self._lock:
            if not known:
                self._unsure.append(len(self._failures))
            self._failures.append(failure)
        self._log.add("verdict", heart=heart, slot=failure.slot, detail=_told(failure))

    def _complete(self) -> None:
        """Find out how those ended of whom nobody had told that when they were recorded."""
        with self._lock:
            unsure = [(number, self._failures[number]) for number in self._unsure]
        for number, failure in unsure:
            end = self._cause(self._engines.get(failure.heart), self._faults.get(failure.heart), _TELLING)
            with self._lock:
                if number in self._unsure:  # nobody else has done it meanwhile
                    self._unsure.remove(number)
                    self._failures[number] = _with_end(failure, *end)

    def _cause(self, engine: Engine | None, fault: Fault | None, patience: float) -> tuple[str, int | None]:
        """Return why this engine's heart fell silent, and its exit code, minus the number of a signal, where known.

        The system is asked first, for so many seconds; what a fault was to do is the second-best source, for who has
        reaped the process knows more, but tells it later.
        """
        if engine is None:
            return EXITED, None
        dying = _is_dying(engine, fault)  # before the look whether it lives: it may end just now
        if is_alive(engine.process) and (not dying or wait_gone([engine.process], patience)):
            return MISSED, None
        code = self._how_ended(engine.process, patience)
        deadly = fault is not None and fault.how.deadly
        if not deadly and engine.has_left and (code is None or code >= 0):
            return LEFT, code
        if not deadly and self._controller is not None and not is_alive(self._controller):
            return LOST, code
        if code is None and fault is not None and fault.sees == KILLED and fault.signal is not None:
            code = -fault.signal
        return (KILLED if code is not None and code < 0 else EXITED), code

    @property
    def failures(self) -> tuple[HeartFailure, ...]:
        """The verdicts so far, in order, each with all that can be known of it; that may take a moment."""
        self._complete()
        with self._lock:
            return tuple(self._failures)

    @property
    def events(self) -> tuple[Event, ...]:
        """Everything that happened to the hearts so far, in order, with slots where they are known."""
        return tuple(map(self._with_slot, self._log.since(self._begun)))

    def _with_slot(self, event: Event) -> Event:
        engine = self._engines.get(event.heart) if event.heart is not None else None
        return event if engine is None or event.slot is not None else replace(event, slot=engine.slot)

    def history(self) -> str:
        """Return the events as text, one line each, with times relative to the first."""
        return describe(self.events)

    def wait_for(self, fits: Callable[[HeartFailure], bool], timeout: float) -> HeartFailure | None:
        """Return the first verdict that fits, once every handler has run; None when none came within ``timeout`` s.

        The monitor writes the event of a failure after all handlers were told of it.
        """

        def matches(event: Event) -> bool:
            return event.kind == "failed" and self._find(fits, event.heart) is not None

        event = self._log.wait_for(matches, timeout, since=self._begun)
        return None if event is None else self._find(fits, event.heart)

    def _find(self, fits: Callable[[HeartFailure], bool], heart: bytes | None) -> HeartFailure | None:
        return next((failure for failure in self.failures if failure.heart == heart and fits(failure)), None)


def _is_dying(engine: Engine, fault: Fault | None) -> bool:
    """Tell whether an engine that still lives is on its way out, which takes many beats on a full machine."""
    return (fault is not None and fault.how.deadly) or is_doomed(engine.process)


def _with_end(failure: HeartFailure, cause: str, code: int | None) -> HeartFailure:
    """Return the failure with this cause, and this exit code, minus the number of a signal."""
    killed = code is not None and code < 0
    return replace(
        failure,
        cause=cause,
        signal=-code if code is not None and killed else None,
        exit_code=None if killed else code,
    )


def _told(failure: HeartFailure) -> str:
    after = "" if failure.injected_at is None else f", {failure.verdict_at - failure.injected_at:.3f} s after the fault"
    signum = "" if failure.signal is None else f" by signal {failure.signal}"
    code = "" if failure.exit_code is None else f" with code {failure.exit_code}"
    return f"{failure.cause}{signum}{code}{after}"
