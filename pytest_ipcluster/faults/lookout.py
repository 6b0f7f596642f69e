"""Who of a cluster has died or was stopped, look by look. A look reads one small file of the kernel's per process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_ipcluster.cluster.autopsy import exit_code, in_words
from pytest_ipcluster.cluster.processes import Pulse
from pytest_ipcluster.errors import ClusterError, Death
from pytest_ipcluster.faults.reach import Down, Place, Sight

if TYPE_CHECKING:
    import psutil

    from pytest_ipcluster.cluster.engines import Engine
    from pytest_ipcluster.cluster.rollcall import RollCall

__all__ = ["Lookout"]

#: Seconds for which a process must have been stopped before nobody waits for it any more, and how many of them one
#: look can show at most: when the last look was longer ago than that, we may have been stopped as well.
_STOPPED_FOR, _LONGEST_STEP = 0.8, 0.1

#: Seconds that those who know how a process has ended get to tell.
_ENDED_HOW = 0.03

#: Parts of a cluster that no call goes through.
_ASIDE = ("warden", "ipcluster", "forkserver", "engine", "nanny")


class Lookout:
    """Looks at the processes of one running cluster. Good for any thread; ``clock`` is that of ``time.monotonic``.

    Engines are followed through repairs: those of earlier times stay known until ``forget_replaced``, so that what was
    sent to one of them is still judged by its own end.
    """

    def __init__(self, roll: RollCall, clock: Callable[[], float] = time.monotonic) -> None:
        self._roll = roll
        self._clock = clock
        self._lock = threading.Lock()
        self._parts = [_Watched(one.role, None, one.process) for one in roll.members if one.role not in _ASIDE]
        self._engines: dict[str, tuple[_Watched, _Watched | None]] = {}
        self._strangers: set[str] = set()
        self._leaves = sum(part.role.startswith("broadcast scheduler (") for part in self._parts)
        self._told: dict[tuple[str, int], Death] = {}
        self.look()

    @property
    def roll(self) -> RollCall:
        """The roll of the cluster, from which nobody is struck off here."""
        return self._roll

    def look(self, *, rested: bool = False) -> Sight:
        """Look at everybody once; less than a millisecond for a cluster of four engines.

        ``rested`` says that nobody has looked since the last time for want of a reason, not of the chance.
        """
        with self._lock:
            now = self._clock()
            current = self._current()
            parts = {down.role: down for part in self._parts if (down := part.look(now, rested=rested)) is not None}
            places = {ident: self._place(*pair, now, rested) for ident, pair in self._engines.items()}
            return Sight(now, parts, places, current, self._leaves)

    def forget_replaced(self) -> None:
        """Follow the engines in the slots alone from now on: nobody waits for those of earlier times any more."""
        with self._lock:
            current = self._current()
            self._engines = {ident: self._engines[ident] for ident in current}
            self._strangers &= {engine.ident for engine in self._roll.slots.engines()}
            watched = {(one.role, one.process.pid) for one in self._everybody()}
            self._told = {key: death for key, death in self._told.items() if key in watched}

    def _current(self) -> tuple[str, ...]:
        """Take in engines that are new, and return the idents of those that are in the slots now."""
        engines = self._roll.slots.engines()
        for engine in engines:
            if engine.ident not in self._engines and engine.ident not in self._strangers:
                self._take_in(engine)
        return tuple(engine.ident for engine in engines if engine.ident in self._engines)

    def _take_in(self, engine: Engine) -> None:
        """Watch an engine of this host; of a process elsewhere the pid says nothing here."""
        if not self._roll.runtime.owns(engine.process):
            self._strangers.add(engine.ident)
            return
        nanny = None if engine.nanny is None else _Watched("nanny", engine.slot, engine.nanny)
        self._engines[engine.ident] = _Watched("engine", engine.slot, engine.process), nanny

    def _place(self, engine: _Watched, nanny: _Watched | None, now: float, rested: bool) -> Place:
        slot = engine.slot if engine.slot is not None else -1
        down = engine.look(now, rested=rested)
        told = None if nanny is None else nanny.look(now, rested=rested)
        if down is not None and told is not None and nanny is not None and not told.stopped:
            told = nanny.ended(lambda process: self._exit_code(process, 0.0)) or told
        return Place(slot, down, told, has_nanny=nanny is not None)

    def death(self, down: Down) -> Death:
        """Say how somebody who is down came to that; the last words in its log are left to whoever reports the test."""
        if down.stopped:
            return Death(down.role, down.slot, down.pid, "stopped by a signal")
        key = (down.role, down.pid)
        if key not in self._told:
            self._told[key] = Death(down.role, down.slot, down.pid, in_words(self._code(key)))
        return self._told[key]

    def _code(self, key: tuple[str, int]) -> int | None:
        with self._lock:
            process = next(one.process for one in self._everybody() if (one.role, one.process.pid) == key)
        return self._exit_code(process, _ENDED_HOW)

    def _exit_code(self, process: psutil.Process, patience: float) -> int | None:
        try:
            return exit_code(process, self._roll.runtime, patience)
        except ClusterError:  # the warden, who would know, has just gone
            return None

    def _everybody(self) -> Iterable[_Watched]:
        yield from self._parts
        for engine, nanny in self._engines.values():
            yield engine
            if nanny is not None:
                yield nanny

    def states(self) -> list[str]:
        """Say in a line for each process of the cluster how it is now; engines that were replaced are left out."""
        return [f"{Death(one.role, one.slot, one.process.pid, '').who}: {one.pulse.state()}" for one in self._present()]

    def _present(self) -> list[_Watched]:
        aside = [_Watched(one.role, None, one.process) for one in self._roll.members if one.role in _ASIDE[:3]]
        with self._lock:
            current = [watched for ident in self._current() for watched in self._engines[ident] if watched is not None]
            return [*aside, *self._parts, *current]

    def given(self, timeout: float) -> dict[str, str]:
        """Ask the hub which engine (ident) each load-balanced task waits at; nothing when it does not answer."""
        with self._lock:
            idents = {one.slot: ident for ident, (one, _) in self._engines.items() if one.slot is not None}
        try:
            with self._roll.runtime.hub() as hub:
                found = hub.unfinished(timeout, direct=False).given
        except ClusterError:
            return {}
        return {task: idents[number] for number, tasks in found.items() if number in idents for task in tasks}


@dataclass(slots=True)
class _Watched:
    """One process, and since when it has been in a state other than running."""

    role: str
    slot: int | None
    process: psutil.Process
    _pulse: Pulse | None = None
    _stopped_at: float | None = None
    _stopped_for: float = 0.0
    _looked_at: float = float("-inf")
    _down: Down | None = None
    _explained: bool = False
    _well_at: float = float("-inf")

    @property
    def pulse(self) -> Pulse:
        if self._pulse is None:
            self._pulse = Pulse(self.process)
        return self._pulse

    def look(self, now: float, *, rested: bool = False) -> Down | None:
        """Return what is wrong with the process; who has died stays dead, who was stopped may go on."""
        past, self._looked_at = now - self._looked_at, now
        step = min(past, _LONGEST_STEP)
        if self._down is not None and not self._down.stopped:
            self._down = replace(self._down, watched=self._down.watched + (past if rested else step))
            return self._down
        state = self.pulse.state()
        if state == "dead":
            self._down = self._as_down(now)
        elif state != "paused":
            self._stopped_at, self._down, self._well_at = None, None, now
        elif self._stopped_at is None:
            self._stopped_at, self._stopped_for = now, 0.0
        else:
            self._stopped_for += step
            if self._down is None and self._stopped_for >= _STOPPED_FOR:
                self._down = self._as_down(self._stopped_at, stopped=True)
        return self._down

    def _as_down(self, since: float, *, stopped: bool = False, killed: bool = False) -> Down:
        watched = 0.0 if self._down is None else self._down.watched
        return Down(self.role, self.process.pid, since, self.slot, stopped, killed, self._well_at, watched)

    def ended(self, how: Callable[[psutil.Process], int | None]) -> Down | None:
        """Find out, until it is known, whether a signal has ended this dead process."""
        if self._down is not None and not self._explained and (code := how(self.process)) is not None:
            self._explained = True
            self._down = self._as_down(self._down.since, killed=code < 0)
        return self._down
