"""What the ``heart_failure`` fixture hands out: hurts engines on purpose, and asserts what the failure handlers did."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from pytest_ipcluster.cluster.processes import KILL, resume, send_signal, wait_gone
from pytest_ipcluster.errors import FaultError
from pytest_ipcluster.faults.expectations import Expectation, check_cause
from pytest_ipcluster.faults.kinds import Fault, HeartFailure, Target, check_slot, targets
from pytest_ipcluster.faults.recorder import Recorder

if TYPE_CHECKING:
    from pytest_ipcluster.cluster.background import BackgroundCluster
    from pytest_ipcluster.cluster.engines import Engine
    from pytest_ipcluster.hearts.thread import MonitorThread
    from pytest_ipcluster.report.events import Event, EventLog

__all__ = ["FaultInjector"]

#: Faults after which an engine is on its way out.
_DEADLY = ("kill", "terminate")

#: Seconds for an engine that was told to die; one that is busy would only go after its task.
_GRACE = 1.0


class FaultInjector:
    """Injects faults into the engines of one cluster and records the heart failures that follow.

    A slot is a number from 0, several of them, or ``"all"``. Durations are seconds. ``close()`` undoes what can
    be undone; to replace what died is the cluster's ``restore``. ``allow`` is told of every engine that is asked to
    die, before a fault hits it or when an expected failure turns out to be its end.
    """

    def __init__(
        self,
        cluster: BackgroundCluster,
        hearts: MonitorThread,
        log: EventLog,
        allow: Callable[[Engine], object] = lambda _: None,
    ) -> None:
        self._cluster = cluster
        self._hearts = hearts
        self._allow = allow
        self._recorder = Recorder(hearts, log, cluster.engines)
        self._faults: list[Fault] = []

    # -- faults ------------------------------------------------------------------------------------

    def kill(self, slot: Target) -> Fault:
        """Kill engines with SIGKILL: they die at once, in the middle of whatever they do."""
        return self._signal("kill", slot, KILL)

    def terminate(self, slot: Target) -> Fault:
        """Ask engines to end with SIGTERM. An idle one does so at once, a busy one only after its task."""
        return self._signal("terminate", slot, signal.SIGTERM)

    def pause(self, slot: Target) -> Fault:
        """Stop engines with SIGSTOP: they exist but answer nothing, the classic lost heartbeat."""
        return self._signal("pause", slot, _signal_named("SIGSTOP"))

    def resume(self, slot: Target) -> Fault:
        """Let paused engines go on with SIGCONT; their hearts are soon heard again."""
        fault = self._signal("resume", slot, _signal_named("SIGCONT"))
        for pause in self._lasting():
            if set(pause.slots) <= set(fault.slots):
                pause.undone_at = fault.injected_at
        return fault

    def _signal(self, kind: str, slot: Target, signum: int) -> Fault:
        """Declare the fault, then send the signal. Raises FaultError for an engine that is dead already or not ours."""
        by_slot = {engine.slot: engine for engine in self._cluster.engines}
        engines = tuple(by_slot[number] for number in targets(slot, len(by_slot)))
        fault = Fault(kind, engines, time.monotonic(), signal=int(signum), _wait_for=self._wait_for)
        for engine in engines:
            self._refuse(engine, kind)
        self._faults.append(fault)
        self._recorder.declare(fault)
        if kind in _DEADLY:
            for engine in engines:
                self._allow(engine)
        fault.injected_at = time.monotonic()  # the verdict may be there before the last of the signals is sent
        for engine in engines:
            send_signal(engine.process, signum)
        return fault

    def _refuse(self, engine: Engine, kind: str) -> None:
        """Refuse to hurt an engine that is dead, and a process that is not the cluster's."""
        if engine.state == "dead":
            raise FaultError(f"cannot {kind} slot {engine.slot}: its engine (pid {engine.pid}) is dead already")
        if not self._cluster.owns(engine.process):
            raise FaultError(f"refusing to {kind} pid {engine.pid} in slot {engine.slot}: it is not of this cluster")

    def _lasting(self) -> list[Fault]:
        return [fault for fault in self._faults if fault.kind == "pause" and fault.undone_at is None]

    def close(self) -> None:
        """Undo every fault that can be undone, see off what was killed, and stop recording. May be called twice."""
        self._recorder.close()
        for fault in self._lasting():
            for engine in fault.engines:
                if resume(engine.process):
                    self._recorder.undone(engine, f"resumed pid {engine.pid}")
            fault.undone_at = time.monotonic()
        self._see_off()

    def _see_off(self) -> None:
        """Wait until what was told to die is dead, and insist where it is not: the next test must not meet it."""
        doomed = {engine.process for fault in self._faults if fault.kind in _DEADLY for engine in fault.engines}
        for process in wait_gone(doomed, _GRACE):
            send_signal(process, KILL)
        wait_gone(doomed, _GRACE)

    # -- records -----------------------------------------------------------------------------------

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
        injected = [f for f in self._faults[before:] if f.kind != "resume" and (slot is None or slot in f.slots)]
        if injected:
            expectation.since = injected[0].declared_at
        self._recorder.wait_for(expectation.concerns, expectation.since + within - time.monotonic())
        self._hearts.monitor.raise_handler_errors()
        if complaint := expectation.complaint(self.failures):
            self._fail(complaint)
        expectation.failure = next(filter(expectation.concerns, self.failures))
        self._allow_end(expectation.failure)
        if expectation.failure.cause in ("killed", "exited"):
            self._cluster.slots.wait_dropped(expectation.failure.heart.decode())

    def _allow_end(self, failure: HeartFailure) -> None:
        """Take a failure that the test has expected for a death that it has asked for, if it is one."""
        for engine in self._cluster.engines:
            if engine.heart == failure.heart and failure.cause != "missed heartbeats":
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


def _signal_named(name: str) -> int:
    """Return the signal; raise FaultError on a system that has none of this name."""
    if not hasattr(signal, name):
        raise FaultError(f"this system has no {name}, so engines cannot be paused here")
    return int(getattr(signal, name))
