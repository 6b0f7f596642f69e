"""Keeping n engines in slots 0..n-1: waiting for them, replacing them under their old ids, changing their number."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from pytest_ipcluster.cluster.engines import Engine, read_engines
from pytest_ipcluster.cluster.hub import Hub, Unfinished
from pytest_ipcluster.cluster.liveness import state_of
from pytest_ipcluster.cluster.processes import (
    KILL,
    children,
    descendants,
    find,
    is_alive,
    is_doomed,
    is_paused,
    resume,
    send_signal,
    wait_gone,
)
from pytest_ipcluster.cluster.proof import Proof
from pytest_ipcluster.cluster.runtime import Runtime
from pytest_ipcluster.cluster.starts import Crew, EngineStarts, take_back
from pytest_ipcluster.cluster.startup import StartWatch
from pytest_ipcluster.cluster.wakeup import Wakeup
from pytest_ipcluster.errors import ClusterError, ClusterStartError, RepairError

__all__ = ["Repair", "Slots"]

#: Seconds for a process to be gone after SIGKILL, and for the hub to drop an engine that it was told is gone.
_SOON = 10.0

#: Seconds that the hub gets to say who has registered when the time for the start is over.
_ANSWER = 1.0

#: Seconds for what the hub tells all to be heard by the schedulers.
_TOLD = 0.02


@dataclass(frozen=True, slots=True)
class Repair:
    """What was done to a slot to make it usable again, why, and how long the whole repair took in seconds."""

    slot: int
    reason: str
    seconds: float


class Slots:
    """The engines of one running cluster. ``arguments`` are given to engines that are started here.

    ``spares`` is how many engines are kept ready to replace others.

    ``leaving`` is called with the heart of an engine that is about to be ended or replaced on purpose, ``arrived`` with
    that of one that was started here.
    """

    def __init__(self, runtime: Runtime, arguments: Sequence[str] = (), spares: int = 0) -> None:
        self._runtime = runtime
        self._starts = EngineStarts(runtime, arguments, spares)
        self._engines: dict[int, Engine] = {}
        self._proven: set[str] = set()
        self.leaving: Callable[[bytes], object] = _ignore
        self.arrived: Callable[[bytes], object] = _ignore

    def engines(self) -> tuple[Engine, ...]:
        """Return the engines by slot as they were last seen. From any thread."""
        return tuple(engine for _, engine in sorted(self._engines.copy().items()))

    # -- readiness ---------------------------------------------------------------------------------

    def wait_for(self, n: int, deadline: float) -> None:
        """Wait until ``n`` engines are registered, and each scheduler has carried a task to each of them.

        At most until ``deadline`` on the clock of ``time.monotonic()``. Raises ClusterStartError; at once when a
        process that it takes has ended.
        """
        with Wakeup() as wakeup, closing(self._runtime.watch(wakeup)) as watch:
            try:
                with self._runtime.hub() as hub:
                    self._come_up(hub, set(range(n)), deadline, wakeup, watch)
            except ClusterStartError:
                raise
            except ClusterError as error:  # the hub has gone again, and its file with it, or says nothing any more
                raise watch.ended(str(error)) from error
        self._starts.fill_spares()

    def _come_up(self, hub: Hub, wanted: set[int], deadline: float, wakeup: Wakeup, watch: StartWatch) -> None:
        """Wait until these engines are registered, and prove that tasks reach them."""
        registered = hub.wait_until(lambda ids: ids.keys() >= wanted, deadline, wakeup, watch.check)
        if registered is None:
            found, age = sorted(hub.engines(_ANSWER)), self._runtime.age
            cause = f"{len(found)} of {len(wanted)} engines were registered {age:.1f} s after the start: {found}"
            raise watch.error(cause, self._any_log())
        self._engines = self._found(registered)
        if missing := wanted - self._engines.keys():
            cause = f"the engines in slots {sorted(missing)} registered without the plugin's agent"
            raise watch.error(cause, self._any_log())
        with closing(Proof(hub.connection, wakeup, watch.check)) as proof:
            self._prove(hub, proof, registered, wanted, deadline, partial(self._not_carried, watch))

    def _not_carried(self, watch: StartWatch, complaint: str) -> ClusterStartError:
        controller = self._runtime.roles().controller
        cause = f"{complaint} {self._runtime.age:.1f} s after the start"
        return watch.error(cause, controller.log if controller else None)

    def _prove(
        self,
        hub: Hub,
        proof: Proof,
        registered: dict[int, str],
        slots: Collection[int],
        deadline: float,
        error: Callable[[str], ClusterError],
    ) -> None:
        """Prove that tasks reach the engines in these slots; raise ``error`` of who is not reached at the deadline.

        Engines that have work already are left out, and all of them while tasks wait for the next one that is
        free: their answers would wait for the end of that work.
        """
        new = {slot for slot in slots if registered[slot] not in self._proven}
        if not new:
            return
        unassigned, working = hub.load(_SOON)
        if unassigned:
            return
        idle = {slot: registered[slot] for slot in new - working}
        if complaint := proof.carry(idle, deadline):
            raise error(complaint)
        self._proven |= set(idle.values())

    def _any_log(self) -> Path | None:
        return next((role.log for role in self._runtime.roles().engines), None)

    def _found(self, registered: dict[int, str]) -> dict[int, Engine]:
        """Return the engines that are registered and have left their card, also those that somebody else added."""
        logs = {role.pid: role.log for role in self._runtime.roles().engines if role.pid and role.log}
        return read_engines(registered, self._runtime.folder.cards, {**logs, **self._starts.logs}, self._state)

    def _state(self, engine: Engine) -> str:
        return state_of(engine, self._runtime.hub)

    def wait_dropped(self, ident: str, patience: float = 1.0) -> None:
        """Wait until the hub knows that the engine of this uuid is gone, at most ``patience`` seconds.

        Its nanny tells the hub, some milliseconds after the death; until then tasks may go there. One without a nanny
        is not waited for to the end.
        """
        with suppress(ClusterError), self._runtime.hub() as hub, Wakeup() as wakeup:
            deadline = time.monotonic() + patience
            if hub.wait_until(lambda ids: ident not in ids.values(), deadline, wakeup, _nothing) is not None:
                time.sleep(_TOLD)  # the hub's news reach the schedulers, and no notice tells of that

    def zombies(self, engines: Iterable[Engine]) -> list[Engine]:
        """Return those of these engines that live and that the hub has dropped: they never come back by themselves."""
        with self._runtime.hub() as hub:
            registered = set(hub.engines(_SOON).values())
        return [engine for engine in engines if engine.ident not in registered and is_alive(engine.process)]

    def unfinished(self, *, direct: bool = False) -> Unfinished:
        """Return the load-balanced tasks, and with ``direct`` those sent directly, that have not come to an end."""
        with self._runtime.hub() as hub:
            return hub.unfinished(_SOON, direct=direct)

    # -- repair ------------------------------------------------------------------------------------

    def restore(self, n: int, timeout: float) -> list[Repair]:
        """Make the slots 0..n-1, and no others, hold a usable engine each; return what had to be done.

        Paused engines are resumed, lanes are healed. Dead ones, and those that the hub has dropped, are replaced under
        the same id. Raises :class:`RepairError` when that cannot be done within ``timeout`` seconds.
        """
        begun = time.monotonic()
        if lost := self._runtime.lost() or self._lost_part():
            raise RepairError(lost)
        with self._runtime.hub() as hub:
            registered = hub.engines(min(timeout, _SOON))
            self._engines = {**self._found(registered), **self._engines}
            paused = [slot for slot, engine in self._engines.items() if slot < n and is_paused(engine.process)]
            broken = () if self._runtime.lanes is None else self._runtime.lanes.broken
            reasons = {slot: reason for slot in range(n) if (reason := self._defect(slot, registered, broken))}
            surplus = {*registered, *self._engines} - set(range(n))
            if reasons or surplus:
                self._vacate(hub, {*reasons, *surplus})
                self._fill(hub, sorted(reasons), begun + timeout, wanted=range(n), gone=surplus)
            hurt = self._heal_lanes(n)
        seconds = time.monotonic() - begun
        reasons = {**hurt, **dict.fromkeys(paused, "the engine was paused"), **reasons}
        return [Repair(slot, reason, seconds) for slot, reason in sorted(reasons.items())]

    def _heal_lanes(self, n: int) -> dict[int, str]:
        """Heal the lanes that were hurt; return the slots below ``n`` to which they belong, with that as the reason."""
        lanes = self._runtime.lanes
        if lanes is None:
            return {}
        hurt = [slot for slot in lanes.hurt if isinstance(slot, int) and slot < n]
        lanes.heal_all()
        return dict.fromkeys(hurt, "the engine's network was hurt")

    def _lost_part(self) -> str:
        """Say which part of the controller is of no use any more: without all of them no engine can register."""
        controller = self._runtime.controller
        for part in [] if controller is None else [controller, *children(controller)]:
            if not is_alive(part):
                return f"a part of the controller (pid {part.pid}) has ended"
            if is_paused(part):
                return f"a part of the controller (pid {part.pid}) is paused"
        return ""

    def _defect(self, slot: int, registered: dict[int, str], broken: Collection[int]) -> str:
        """Say why this slot needs a new engine; resume it if that is all it needs."""
        engine = self._engines.get(slot)
        if engine is None:
            return "there was no engine"
        resume(engine.process)  # whatever its state looks like: a stop that was just sent may not show yet
        if is_doomed(engine.process) or not is_alive(engine.process):  # in this order: it may end just now
            return "the engine was dead"
        if engine.nanny is not None and not is_alive(engine.nanny):
            return "the engine's nanny was dead"
        if registered.get(slot) != engine.ident:
            return "the hub had dropped the engine"
        if slot in broken:
            return "the engine's connections were broken"
        return ""

    def replace(self, slots: Iterable[int], timeout: float) -> list[Repair]:
        """Replace the engines in these slots whatever their state, for example because they are stuck in a task.

        The others may be in any state as well. Raises :class:`RepairError` after ``timeout`` seconds.
        """
        begun = time.monotonic()
        wanted = sorted(slots)
        with self._runtime.hub() as hub:
            self._vacate(hub, wanted)
            self._fill(hub, wanted, begun + timeout, wanted=wanted)
        return [Repair(slot, "the engine was stuck", time.monotonic() - begun) for slot in wanted]

    def _vacate(self, hub: Hub, slots: Collection[int]) -> None:
        """End whatever is left of these slots' engines and of what tasks started there, and have the hub forget them.

        The nanny must be gone before a new engine takes the id: its farewell names only the id, and would
        strike the new one off.
        """
        leaving = [self._engines[slot] for slot in slots if slot in self._engines]
        # Whom somebody else has killed is to have ended before we say of him that we end him.
        wait_gone([engine.process for engine in leaving if is_doomed(engine.process)], _SOON)
        processes: set[psutil.Process] = set()
        for engine in leaving:
            self.leaving(engine.heart)
            processes |= {p for p in (engine.nanny, engine.process) if p is not None}
            if engine.process.is_running():  # who is gone for good has no children, and they take a while to find
                processes |= descendants(engine.process)
        for process in processes:
            send_signal(process, KILL)
        if left := wait_gone(processes, _SOON):
            raise RepairError(
                f"engine processes {sorted(p.pid for p in left)} are still alive {_SOON:g} s after being killed"
            )
        self._forget(leaving, processes)
        for slot in slots:
            self._engines.pop(slot, None)
            if self._runtime.lanes is not None:  # a nanny's farewell that waits there would strike off the new engine
                self._runtime.lanes.clear(slot)
            hub.unregister(slot)  # also when it is not registered, for its registration may be pending

    def _forget(self, engines: Iterable[Engine], processes: Collection[psutil.Process]) -> None:
        """Keep nothing of engines that are gone, with these processes: a session may replace any number of them."""
        self._runtime.forget(processes)
        for engine in engines:
            self._proven.discard(engine.ident)
            self._starts.logs.pop(engine.pid, None)

    def _fill(
        self, hub: Hub, slots: Sequence[int], deadline: float, *, wanted: Iterable[int], gone: Iterable[int] = ()
    ) -> None:
        """Start engines in these slots, all at once, and wait until the hub knows all ``wanted`` and none ``gone``.

        Raises :class:`RepairError` when one of the wanted ones ends meanwhile.
        """
        wanted, old = set(wanted), {*slots, *gone}
        crew = Crew([engine for slot, engine in self._engines.items() if slot in wanted])
        with Wakeup() as wakeup:
            complaint = "the hub did not drop the old engines"
            self._wait(hub, lambda ids: not ids.keys() & old, deadline, wakeup, crew, complaint)
            try:
                for slot in slots:
                    crew.starts.append(self._starts.start(slot))
                for start in crew.starts:
                    if (process := find(start.process.pid)) is not None:
                        wakeup.watch_process(process)
                complaint = "the new engines did not register"
                with closing(Proof(hub.connection, wakeup, crew.check)) as proof:
                    registered = self._wait(hub, lambda ids: ids.keys() >= wanted, deadline, wakeup, crew, complaint)
                    self._prove(hub, proof, registered, slots, deadline, RepairError)
            except BaseException:
                take_back(hub, crew.starts, _SOON)
                raise
        self._starts.fill_spares()
        found = self._found(registered)
        self._engines |= found
        if missing := wanted - found.keys():
            raise RepairError(f"the engines in slots {sorted(missing)} registered without the plugin's agent")
        for slot in slots:
            self.arrived(self._engines[slot].heart)

    def _wait(
        self,
        hub: Hub,
        reached: Callable[[dict[int, str]], bool],
        deadline: float,
        wakeup: Wakeup,
        crew: Crew,
        otherwise: str,
    ) -> dict[int, str]:
        registered = hub.wait_until(reached, deadline, wakeup, crew.check)
        if registered is None:
            found, logs = sorted(hub.engines(_SOON)), crew.logs()
            raise RepairError(f"{otherwise} in time; registered are {found}\n{logs}".rstrip())
        return registered


def _nothing() -> None:
    """Check nothing while waiting."""


def _ignore(heart: bytes) -> None:
    """Do nothing: nobody listens to this heart."""
