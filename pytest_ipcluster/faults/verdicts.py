"""What the hearts made of a test, and what a test asserts about it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from pytest_ipcluster.faults.expectations import Expectation, check_cause
from pytest_ipcluster.faults.kinds import EXITED, KILLED, LEFT, MISSED, Fault, HeartFailure
from pytest_ipcluster.faults.recorder import Recorder
from pytest_ipcluster.faults.targets import check_slot

if TYPE_CHECKING:
    from pytest_ipcluster.cluster.background import BackgroundCluster
    from pytest_ipcluster.cluster.engines import Engine
    from pytest_ipcluster.faults.kinds import Victim
    from pytest_ipcluster.hearts.thread import MonitorThread
    from pytest_ipcluster.report.events import Event, EventLog

__all__ = ["Verdicts"]


class Verdicts:
    """Records every fault and every heart failure of one test, and asserts that failure handlers fired.

    ``allow`` is told of an engine whose end the test has expected.
    """

    def __init__(
        self, cluster: BackgroundCluster, hearts: MonitorThread, log: EventLog, allow: Callable[[Engine], object]
    ) -> None:
        self._cluster = cluster
        self._hearts = hearts
        self._log = log
        self._allow = allow
        self._recorder = Recorder(hearts, log, cluster.engines, cluster.how_ended, cluster.controller)
        self._faults: list[Fault] = []

    def _free(self, victims: Iterable[Victim], *kinds: str) -> list[Victim]:
        """Return those on whom no fault of these kinds acts."""
        acting = [victim for fault in self._faults if fault.kind in kinds for victim in fault.acts_on]
        return [victim for victim in victims if victim not in acting]

    def _present(self, victims: Collection[Victim]) -> list[Engine]:
        """Return the engines among these that are still in their slots: who has been replaced is hurt no more."""
        return [engine for engine in self._cluster.engines if engine in victims]

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Every fault of this test, in order."""
        return tuple(self._faults)

    @property
    def failures(self) -> tuple[HeartFailure, ...]:
        """Every verdict since this test began, in order."""
        return self._recorder.failures

    @property
    def events(self) -> tuple[Event, ...]:
        """Everything that happened to the hearts since this test began, in order."""
        return self._recorder.events

    # -- assertions --------------------------------------------------------------------------------

    @contextmanager
    def expect(
        self, slot: int | None = None, *, cause: str | None = None, within: float = 5.0
    ) -> Iterator[Expectation]:
        """Assert that the failure handlers fire exactly once for this slot, for this cause, in time.

        ``within`` seconds run from the first fault that the block injects into the slot; from the block's
        beginning when it injects none. The block's end waits for the verdict and for all handlers to have run, and
        after a death until the hub has dropped the engine (1 s at most), so that no task is sent to it any more.
        An engine that died, however it was ended, has died because the test asked for it.
        Without ``slot`` any engine will do. Raises AssertionError with the hearts' history; an exception of a
        handler is raised as it is.
        """
        check_cause(cause)
        if slot is not None:
            check_slot(slot, len(self._cluster.engines))
        expectation = Expectation(slot, cause, within, time.monotonic())
        before = len(self._faults)
        yield expectation
        injected = [f for f in self._faults[before:] if f.sees and (slot is None or slot in f.slots)]
        if injected:
            expectation.since = injected[0].declared_at
        self._recorder.wait_for(expectation.concerns, expectation.since + within - time.monotonic())
        self._hearts.monitor.raise_handler_errors()
        if complaint := expectation.complaint(self.failures):
            self._fail(complaint)
        expectation.failure = next(filter(expectation.concerns, self.failures))
        self._allow_end(expectation.failure)
        if expectation.failure.cause in (KILLED, EXITED, LEFT):
            self._cluster.slots.wait_dropped(expectation.failure.heart.decode())

    def _allow_end(self, failure: HeartFailure) -> None:
        """Take a failure that the test has expected for a death that it has asked for, if it is one."""
        for engine in self._cluster.engines:
            if engine.heart == failure.heart and failure.cause != MISSED:
                self._allow(engine)

    def assert_fired(self, slot: int | None = None, *, cause: str | None = None, times: int = 1) -> None:
        """Assert that the failure handlers have fired so many times for this slot (in all, without ``slot``) by now."""
        check_cause(cause)
        found = [f for f in self.failures if slot in (None, f.slot) and cause in (None, f.cause)]
        if len(found) != times:
            about = "" if slot is None else f" for slot {slot}"
            because = "" if cause is None else f" because of {cause!r}"
            self._fail(f"the failure handlers fired {len(found)} times{about}{because}, not {times}")

    def assert_not_fired(self, slot: int | None = None) -> None:
        """Assert that no failure handler has fired for this slot (for any, without ``slot``) by now."""
        self.assert_fired(slot, times=0)

    def _wait_for(self, engine: Engine, since: float, timeout: float) -> HeartFailure:
        failure = self._recorder.wait_for(lambda f: f.heart == engine.heart and f.verdict_at >= since, timeout)
        self._hearts.monitor.raise_handler_errors()
        if failure is None:
            self._fail(f"no failure handler fired for slot {engine.slot} within {timeout:g} s")
        return failure

    def _fail(self, complaint: str) -> NoReturn:
        raise AssertionError(f"{complaint}\nwhat happened to the hearts:\n{self._recorder.history()}")
