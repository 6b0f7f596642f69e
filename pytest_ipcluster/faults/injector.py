"""What the ``heart_failure`` fixture hands out: it hurts a cluster on purpose, and heals it."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from pytest_ipcluster.cluster.processes import KILL, is_alive, resume, send_signal, wait_gone
from pytest_ipcluster.cluster.rollcall import Member
from pytest_ipcluster.errors import FaultError
from pytest_ipcluster.faults.kinds import EXITED, KILLED, MISSED, Fault, Kind
from pytest_ipcluster.faults.moments import Running, wait_until_running
from pytest_ipcluster.faults.network import NetworkFaults
from pytest_ipcluster.faults.plan import Plan, Step, steps
from pytest_ipcluster.faults.targets import Target, members_of, targets
from pytest_ipcluster.hearts.crash import CRASH, WAYS, order_file

if TYPE_CHECKING:
    import psutil

    from pytest_ipcluster.cluster.background import BackgroundCluster
    from pytest_ipcluster.cluster.engines import Engine
    from pytest_ipcluster.faults.kinds import Victim
    from pytest_ipcluster.hearts.thread import MonitorThread
    from pytest_ipcluster.report.events import EventLog

__all__ = ["FaultInjector"]

#: Seconds for an engine that was told to die; one that is busy would only go after its task.
_GRACE = 1.0

#: How often a process that does not obey is told again, and after how many seconds each time.
_TIMES, _AGAIN = 20, 0.05

#: Seconds for the heart of an engine that replaces a killed one.
_FIRST_BEAT = 30.0

#: What each way to crash looks like from outside: the signal, or None where the process exits.
_CRASHES = {"exit": None, "segfault": "SIGSEGV", "abort": "SIGABRT", "oom": "SIGKILL"}


class FaultInjector(NetworkFaults):
    """Injects faults into one cluster and records the heart failures that follow.

    Engines are hit by slot: a number from 0, several of them, or ``"one"``, ``"minority"``, ``"majority"`` (chosen with
    ``seed``) or ``"all"``. With ``role`` a fault hits the processes of that role instead: ``"hub"`` (or
    ``"controller"``), ``"direct scheduler"``, ``"task scheduler"``, ``"control scheduler"``, ``"broadcast scheduler"``,
    ``"iopub relay"``, ``"heart monitor of the hub"``, ``"ipcluster"``, and ``"nanny"``, there with or without slots.

    Every fault is declared before it acts, and returned as a :class:`Fault`, which can be undone, and is at the end of
    a ``with`` block. Durations are seconds. ``close()`` undoes what can be undone; to replace what died is the
    cluster's ``restore``. ``allow`` is told of every engine, ``allow_members`` of the other processes that are asked to
    die, before a fault hits them or when an expected failure turns out to be an engine's end. ``tell`` is given what
    chance has decided, and how to have it decide the same again, ``replay``. ``zombies`` is what is done about an
    engine that the hub has dropped, when it goes on after a pause: ``"replace"``, ``"keep"``, or ``"fail"`` with a
    FaultError.
    """

    def __init__(
        self,
        cluster: BackgroundCluster,
        hearts: MonitorThread,
        log: EventLog,
        allow: Callable[[Engine], object] = lambda _: None,
        *,
        allow_members: Callable[[Iterable[Member]], object] = lambda _: None,
        seed: object = None,
        replay: str = "the seed",
        zombies: str = "replace",
        tell: Callable[[str], object] = lambda _: None,
    ) -> None:
        super().__init__(cluster, hearts, log, allow)
        self._allow_members = allow_members
        self._seed = random.randrange(2**32) if seed is None else seed
        self._chance = random.Random(str(self._seed))
        self._replay = replay
        self._zombies = zombies
        self._tell = tell
        self._plans = 0
        self._closed = False
        # A plan injects from a thread of its own.
        self._lock = threading.RLock()

    # -- faults ------------------------------------------------------------------------------------

    def kill(self, slot: Target | None = None, *, role: str = "engine") -> Fault:
        """Kill with SIGKILL: an engine dies at once, in the middle of whatever it does."""
        kind = Kind("kill", KILLED, _sender(KILL), self._replace, int(KILL), deadly=True)
        return self._hit(kind, slot, role)

    def terminate(self, slot: Target | None = None, *, role: str = "engine") -> Fault:
        """Ask to end with SIGTERM. An idle engine does so at once, a busy one only after its task."""
        kind = Kind("terminate", EXITED, _sender(signal.SIGTERM), self._replace, int(signal.SIGTERM), deadly=True)
        return self._hit(kind, slot, role)

    def pause(self, slot: Target | None = None, *, role: str = "engine") -> Fault:
        """Stop with SIGSTOP: an engine exists but answers nothing, the classic lost heartbeat."""
        signum = _signal_named("SIGSTOP")
        return self._hit(Kind("pause", MISSED, _sender(signum), self._resume, signum, lasting=True), slot, role)

    def resume(self, slot: Target | None = None, *, role: str = "engine") -> Fault:
        """Let what is paused go on with SIGCONT; hearts are soon heard again."""
        signum = _signal_named("SIGCONT")
        fault = self._hit(Kind("resume", "", _sender(signum), signal=signum), slot, role)
        for pause in self._lasting():
            if pause.kind == "pause":
                pause.settle(fault.slots, fault.members)
        self._see_to_zombies(fault.engines)
        return fault

    def crash(self, slot: Target, how: str = "exit") -> Fault:
        """Let engines die from inside, also in the middle of a task.

        ``how`` is ``"exit"`` (with a code, without any cleaning up), ``"segfault"``, ``"abort"``, or ``"oom"``: it
        fills its memory up to a limit that it sets itself, and ends by SIGKILL, as the kernel's out-of-memory killer
        would end it. It happens when Python code runs in the engine's main thread; a task that keeps the interpreter to
        itself puts it off. This returns when they are dead, or after a second.
        """
        if how not in WAYS:
            raise ValueError(f"how={how!r}: expected one of {', '.join(map(repr, WAYS))}")
        if CRASH is None:
            raise FaultError("this system has no real-time signals, so engines cannot be told to crash here")
        name = _CRASHES[how]
        signum = None if name is None else _signal_named(name)
        sees = EXITED if signum is None else KILLED

        kind = Kind("crash", sees, partial(self._order, how, CRASH), self._replace, signum, deadly=True)
        fault = self._hit(kind, slot, "engine")
        _insist({engine.process for engine in fault.engines}, CRASH)
        return fault

    def kill_controller(self) -> Fault:
        """Kill the hub, the coordinator; ipcluster then ends the engines. The next test has a new cluster."""
        return self.kill(role="controller")

    @contextmanager
    def during(self, result: Any, slot: Target | None = None, *, timeout: float = 10.0) -> Iterator[Running]:
        """Wait until a task of ``result``, an AsyncResult, runs on an engine; the block has that engine and its slot.

        The proof is the engine's own word, not time that has passed. With ``slot`` it must be there. Raises
        AssertionError when all its tasks were done before, or none has begun within ``timeout`` seconds.
        """
        slots = None if slot is None else targets(slot, len(self._cluster.engines), self._chance)
        yield wait_until_running(lambda: self._cluster.engines, result, timeout, slots)

    @contextmanager
    def plan(
        self,
        seed: object = None,
        *,
        rate: float = 1.0,
        kinds: Sequence[str] = ("kill", "pause"),
        count: int | None = None,
    ) -> Iterator[Plan]:
        """Inject random faults while the block runs, one at a time; all is healed at its end.

        ``rate`` is how many a second, on average, not counting the time until a verdict and for healing; ``kinds`` are
        ``"kill"``, ``"pause"`` and ``"crash"``; ``count`` is how many in all. The same seed gives the same faults in
        the same order; without one it follows from ``--ipcluster-seed``, the test and the number of the plan in it.
        Raises what goes wrong with the plan itself, such as a fault that the heart monitor does not notice.
        """
        self._plans += 1
        given = seed is not None
        seed = seed if given else f"{self._seed}:{self._plans}"
        planned = steps(seed, len(self._cluster.engines), rate=rate, kinds=kinds)
        replay = f"plan(seed={seed!r})" if given else self._replay
        plan = Plan(planned, count, self._carry_out, self._wait_until_heard, seed=seed, replay=replay)
        try:
            with plan:
                yield plan
        finally:
            self._tell(f"plan {self._plans} by seed {seed!r}; {plan}")

    def _carry_out(self, step: Step) -> Fault:
        if step.kind == "crash":
            return self.crash(step.slot, step.how)
        return self.kill(step.slot) if step.kind == "kill" else self.pause(step.slot)

    # -- how they are done -------------------------------------------------------------------------

    def _hit(self, kind: Kind, slot: Target | None, role: str) -> Fault:
        """Choose whom to hit, declare the fault, then do it.

        Raises FaultError for who is dead already or not of this cluster, ValueError for a slot or a role that is not
        there.
        """
        with self._lock:
            fault = Fault(kind, *self._chosen(slot, role), time.monotonic(), self._wait_for)
            for victim in fault.victims:
                self._refuse(victim, kind.name)
            self._declare(fault)
            fault.injected_at = time.monotonic()  # the verdict may be there before the last of the signals is sent
            for victim in fault.victims:
                kind.inject(victim)
        return fault

    def _declare(self, fault: Fault) -> None:
        self._faults.append(fault)
        self._recorder.declare(fault)
        if fault.how.deadly:
            for engine in fault.engines:
                self._allow(engine)
            self._allow_members(fault.members)

    def _order(self, how: str, signum: int, victim: Victim) -> None:
        """Tell an engine, by a file and a signal, to do it itself."""
        ident = next(engine.ident for engine in self._cluster.engines if engine.slot == victim.slot)
        order_file(self._cluster.folder.cards, ident).write_text(how)
        send_signal(victim.process, signum)

    def _chosen(self, slot: Target | None, role: str) -> tuple[tuple[Engine, ...], tuple[Member, ...]]:
        by_slot = {engine.slot: engine for engine in self._cluster.engines}
        slots = None if slot is None else targets(slot, len(by_slot), self._chance)
        if isinstance(slot, str) and slot != "all":
            self._tell(f"{slot} of the engines: slots {slots}; to replay: {self._replay}")
        if role == "engine":
            if slots is None:
                raise ValueError("which engines? Say a slot, several of them, or a word such as 'all'; or say a role")
            return tuple(by_slot[number] for number in slots), ()
        return (), members_of(self._cluster.roll_call().members, role, slots)

    def _refuse(self, victim: Victim, kind: str) -> None:
        """Refuse to hurt who is dead, and a process that is not the cluster's."""
        who = f"role {victim.role!r}" if isinstance(victim, Member) else f"slot {victim.slot}"
        if not is_alive(victim.process):
            raise FaultError(f"cannot {kind} {who}: its process (pid {victim.process.pid}) is dead already")
        if not self._cluster.owns(victim.process):
            raise FaultError(f"refusing to {kind} pid {victim.process.pid} in {who}: it is not of this cluster")

    def _lasting(self) -> list[Fault]:
        """Return the faults that act until they are taken back, and have not been."""
        return [fault for fault in self._faults if fault.how.lasting and fault.undone_at is None]

    def _resume(self, victims: Sequence[Victim]) -> None:
        free = self._free(victims, "pause")
        for victim in free:
            if resume(victim.process):
                self._recorder.undone(victim, f"resumed pid {victim.process.pid}")
        self._see_to_zombies(self._present(free))

    def _see_to_zombies(self, engines: Sequence[Engine]) -> None:
        """Replace engines that the hub has dropped while they did not answer, or whatever is asked for."""
        zombies = self._cluster.slots.zombies(engines) if engines and not self._closed else []
        for engine in zombies:
            self._log.add(
                "zombie", heart=engine.heart, slot=engine.slot, detail=f"the hub has dropped pid {engine.pid}"
            )
        if zombies and self._zombies == "fail":
            slots = ", ".join(str(engine.slot) for engine in zombies)
            raise FaultError(
                f"the hub has dropped the engines in slots {slots}, though they live: they never come back"
            )
        if zombies and self._zombies == "replace":
            self._put_new(zombies)

    def _replace(self, victims: Sequence[Victim]) -> None:
        """Put new engines in the slots of those that have died. What else has died is for the repair after the test."""
        self._see_off()
        if lost := self._present(victims):
            self._put_new(lost)

    def _put_new(self, lost: Sequence[Engine]) -> None:
        """Put new engines in the place of these, and wait until they are heard."""
        self._cluster.replace([engine.slot for engine in lost])
        for old in lost:
            new = self._cluster.engines[old.slot]
            self._hearts.wait_for_heart(new.heart, _FIRST_BEAT)
            self._recorder.undone(old, f"pid {old.pid} replaced by pid {new.pid}")

    def _wait_until_heard(self, fault: Fault) -> None:
        for slot in fault.slots:
            self._hearts.wait_for_heart(self._cluster.engines[slot].heart, _FIRST_BEAT)

    def close(self) -> None:
        """Undo every fault that can be undone, see off what was killed, and stop recording. May be called twice."""
        self._recorder.close()
        self._closed = True  # what the hub has dropped is for the repair after the test
        for fault in self._lasting():
            fault.undo()
        self._see_off()

    def _see_off(self) -> None:
        """Wait until what was told to die is dead, and insist where it is not: the next test must not meet it."""
        deadly = [fault for fault in self._faults if fault.how.deadly]
        doomed = {victim.process for fault in deadly for victim in fault.victims}
        for process in wait_gone(doomed, _GRACE):
            send_signal(process, KILL)
        wait_gone(doomed, _GRACE)


def _insist(processes: set[psutil.Process], signum: int) -> None:
    """Send a signal again while they live: Python does not hear one that comes just before it begins to wait."""
    for _ in range(_TIMES):
        processes = wait_gone(processes, _AGAIN)
        for process in processes:
            send_signal(process, signum)


def _sender(signum: int) -> Callable[[Victim], object]:
    return lambda victim: send_signal(victim.process, signum)


def _signal_named(name: str) -> int:
    """Return the signal; raise FaultError on a system that has none of this name."""
    if not hasattr(signal, name):
        raise FaultError(f"this system has no {name}, so this cannot be done to processes here")
    return int(getattr(signal, name))
