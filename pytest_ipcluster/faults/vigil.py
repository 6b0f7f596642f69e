"""The deadman: watches the processes behind calls that wait, and ends the calls that nobody can answer any more."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

from pytest_ipcluster.errors import CallOverdueError, ClusterLostError, ControllerLost, EngineLost, SchedulerLost
from pytest_ipcluster.faults.deadman import GuardedClient, missing_names
from pytest_ipcluster.faults.lookout import Lookout
from pytest_ipcluster.faults.overdue import overdue_report
from pytest_ipcluster.faults.reach import BALANCED, OUTPUT, Call, Down, Sight, loss
from pytest_ipcluster.network.lanes import CLIENT

if TYPE_CHECKING:
    from ipyparallel import Client

    from pytest_ipcluster.cluster.background import BackgroundCluster

__all__ = ["POLL", "Deadman"]

#: Seconds between two looks while a call waits. While none does there are no looks.
POLL = 0.03

#: Seconds between two questions to the hub, which is asked only while an engine is stopped, and how long it gets.
_ASK_AGAIN, _ANSWERS = 0.3, 0.2

#: Seconds that the hub takes longer to go than its children, when all are killed at once: it is the bigger process.
_BIGGER = 0.2

#: Seconds for what a lane has held back to arrive after its healing, with ipyparallel's own news of the loss.
_ARRIVES = 1.5

#: Which error tells of the loss of whom; of everybody else :class:`SchedulerLost` does.
_ERRORS: dict[str, type[ClusterLostError]] = {
    "engine": EngineLost,
    "nanny": EngineLost,
    "controller": ControllerLost,
    "heart monitor of the hub": ControllerLost,
}


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)


class Deadman:
    """Ends the calls of ipyparallel clients that wait for somebody who has died or was stopped.

    ::

        with BackgroundCluster(n=2, private=True) as cluster, Deadman(cluster) as deadman:
            client = cluster.client()
            deadman.guard(client)

    Such a call raises :class:`EngineLost`, :class:`SchedulerLost` or :class:`ControllerLost`, each a
    :class:`ClusterLostError`, within 0.1 s of a death and 1 s of a stop. What ipyparallel tells by itself within
    1.5 s it is left to. While a client's own lane is hurt, and 1.5 s longer, what it had sent before is waited for: the
    answer may be on its way. Only processes of this host are watched. Clients are let go when they are closed, and by
    ``close()``. ``tell`` takes in words what cannot be watched, instead of a RuntimeWarning.
    """

    def __init__(
        self, cluster: BackgroundCluster, *clients: Client, tell: Callable[[str], object] | None = None
    ) -> None:
        self._cluster = cluster
        self._tell = tell or _warn
        self._told: set[str] = set()
        self._guarded: list[tuple[GuardedClient, Lookout]] = []
        self._abandoned: set[str] = set()
        self._lookout: Lookout | None = None
        self._lock = threading.RLock()
        self._called = threading.Event()
        self._asleep = True
        self._ended = False
        self._limit: tuple[float, Callable[[], bool]] | None = None
        self._given: dict[str, str] = {}
        self._asked_at = 0.0
        self._thread = threading.Thread(target=self._watch, name="ipcluster-deadman", daemon=True)
        self._thread.start()
        for client in clients:
            self.guard(client)

    def __enter__(self) -> Deadman:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # -- clients -----------------------------------------------------------------------------------

    def guard(self, client: Client) -> None:
        """Watch over the calls that this client sends from now on. A second call does nothing.

        A client of an ipyparallel that is not what it was is left alone, and that is told. Raises ClusterError when the
        cluster is not running.
        """
        if missing := missing_names(client):
            self._tell_once(f"the deadman can't watch clients, whose calls may wait for ever: no {', '.join(missing)}")
            return
        lookout = self._current_lookout()
        with self._lock:
            if not any(its is lookout and not guarded.closed for guarded, its in self._guarded):
                lookout.forget_replaced()
            if not any(guarded.client is client for guarded, _ in self._guarded):
                entering = lambda: self._entering(lookout)  # noqa: E731
                self._guarded.append((GuardedClient(client, entering, self._called.set), lookout))

    def _tell_once(self, limit: str) -> None:
        if limit not in self._told:
            self._told.add(limit)
            self._tell(limit)

    def _current_lookout(self) -> Lookout:
        """Return who looks at the cluster as it runs now: it may have been stopped and started again."""
        with self._lock:
            if self._lookout is None or self._lookout.roll.slots is not self._cluster.slots:
                self._lookout = Lookout(self._cluster.roll_call())
            return self._lookout

    def _entering(self, lookout: Lookout) -> None:
        """Before the first call after a pause, see who has died meanwhile."""
        if self._asleep:
            lookout.look(rested=True)

    def expire_at(self, limit: float | None, holds: Callable[[], bool] = lambda: True) -> None:
        """Have every call that still waits at this time (of ``time.monotonic()``) fail with a report; None for never.

        ``holds`` is asked then whether the limit still does.
        """
        self._limit = None if limit is None else (limit, holds)

    def take_unanswered(self) -> set[str]:
        """Return the tasks of which no engine has sent the end, by the ids under which they come to an engine.

        Those of clients that were closed meanwhile are among them, once.
        """
        with self._lock:
            self._let_go()
            closed, self._abandoned = self._abandoned, set()
            return closed.union(*(guarded.unanswered() for guarded, _ in self._guarded))

    def close(self) -> None:
        """Fail what can't be answered any more without further patience, and let all clients go."""
        if self._ended:
            return
        self._ended = True
        self._called.set()
        self._thread.join()
        with self._lock:
            self._look(patient=False)
            for guarded, _ in self._guarded:
                guarded.release()
            self._guarded.clear()

    # -- the thread --------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._ended:
            with self._lock:
                self._look()
                self._expire()
                busy = any(guarded.busy for guarded, _ in self._guarded)
            if busy:
                time.sleep(POLL)  # of a stop nothing tells but the state of the process
            else:
                self._sleep()

    def _sleep(self) -> None:
        """Wait for a call, without looking at anything."""
        self._asleep = True
        self._called.clear()
        if not self._ended and not any(guarded.busy for guarded, _ in tuple(self._guarded)):
            self._called.wait()
        self._asleep = False

    def _look(self, *, patient: bool = True) -> None:
        """Look once at everybody, and fail the calls that wait in vain."""
        self._let_go()
        for lookout in {id(lookout): lookout for _, lookout in self._guarded}.values():
            sight = lookout.look()
            if sight.all_well:
                continue
            sight = sight if patient else replace(sight, now=float("inf"), patience=False)
            clients = [guarded for guarded, its in self._guarded if its is lookout]
            self._judge(clients, lookout, self._with_given(sight, clients, lookout))

    def _let_go(self) -> None:
        """Let go of the clients that have been closed; what they were sent no answer for is kept in mind."""
        for guarded, _ in [pair for pair in self._guarded if pair[0].closed]:
            guarded.release()
            self._abandoned |= guarded.unanswered()
        self._guarded = [pair for pair in self._guarded if not pair[0].closed]

    def _judge(self, clients: list[GuardedClient], lookout: Lookout, sight: Sight) -> None:
        for guarded in clients:
            held = self._is_held_back(guarded, sight)
            for call in guarded.waiting():
                if call.sent > sight.now:  # who was down then may have gone on before this call
                    continue
                down = loss(call, sight)
                if down is not None and not (held and call.sent < down.since):
                    guarded.fail(call, _error(call, down, lookout, sight))

    def _is_held_back(self, guarded: GuardedClient, sight: Sight) -> bool:
        """Tell whether answers to this client may be on their way still, because its own network is hurt, or was."""
        lanes = self._cluster.lanes
        if lanes is not None and CLIENT in lanes.hurt and lanes.client_ports()["mux"] == guarded.port:
            guarded.hurt_at = sight.now
        return sight.patience and sight.now - guarded.hurt_at <= _ARRIVES

    def _with_given(self, sight: Sight, clients: list[GuardedClient], lookout: Lookout) -> Sight:
        """While an engine is stopped, have the hub tell which load-balanced tasks it has: the client is not told."""
        stopped = any((down := sight.places[ident].down) is not None and down.stopped for ident in sight.current)
        balanced = any(call.lane == BALANCED for guarded in clients for call in guarded.waiting())
        if not (stopped and balanced) or "controller" in sight.parts:
            return sight
        if time.monotonic() >= self._asked_at + _ASK_AGAIN:
            self._given, self._asked_at = lookout.given(_ANSWERS), time.monotonic()
        return replace(sight, given=self._given)

    def _expire(self) -> None:
        """When the time limit is almost up, end whatever waits, and say how things stand."""
        limit = self._limit  # which the main thread may take away meanwhile
        if limit is None or time.monotonic() < limit[0] or not limit[1]():
            return
        for guarded, lookout in self._guarded:
            if not (calls := guarded.heeded()):
                continue
            report = overdue_report(calls, lookout)
            for call in calls:
                guarded.fail(call, CallOverdueError(_in_words(call, lookout.look()), report))


def _error(call: Call, down: Down, lookout: Lookout, sight: Sight) -> ClusterLostError:
    """Return the error for a call whose answer this loss has cost; where the hub had gone before, that is to blame."""
    hub = sight.parts.get("controller")
    if hub is None or hub.stopped or hub is down or hub.since > down.since + _BIGGER:
        return _error_of(call, down, lookout, sight)
    error = _error_of(call, hub, lookout, sight)
    error.__cause__ = _error_of(call, down, lookout, sight)
    return error


def _error_of(call: Call, down: Down, lookout: Lookout, sight: Sight) -> ClusterLostError:
    noticed = time.time() - (time.monotonic() - down.since)
    return _ERRORS.get(down.role, SchedulerLost)(lookout.death(down), waiting=_in_words(call, sight), at=noticed)


def _in_words(call: Call, sight: Sight) -> str:
    """Say what waits, for whom and for how long."""
    slots = sorted(sight.places[ident].slot for ident in call.engines if ident in sight.places)
    whom = "" if not slots else f" to the engine in slot {slots[0]}" if len(slots) == 1 else f" to the engines {slots}"
    what = "the output of " * (call.lane == OUTPUT) + call.what
    way = f" ({call.lane})" if call.lane == BALANCED else ""
    return f"{what}{way}{whom}, sent {time.monotonic() - call.sent:.2f} s ago"
