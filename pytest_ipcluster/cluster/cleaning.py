"""Making engines as new for the next test: nothing queued or running, the first state again, ready for work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import wait
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_ipcluster.cluster.renewal import renew

if TYPE_CHECKING:
    from ipyparallel import AsyncResult, Client, DirectView

    from pytest_ipcluster.cluster.hub import Unfinished
    from pytest_ipcluster.cluster.slots import Slots

__all__ = ["Leftovers", "clean_engines"]

#: The part of the patience after which the tasks of an engine that has not answered are aborted.
_HINT_AFTER = 0.25

#: Seconds to wait for the output of a task before another one is sent to be heard, and for one of them to be.
_HEARD_AFTER, _HEARD_WITHIN = 0.1, 0.5

#: Seconds that a turn has at least, however late it is: one that began in time, or has only to make sure.
_LAST_TURN = 0.5

_BUSY = "the engine was still busy with what a test had left"

_DIED = "the engine died"


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What could not be cleaned: engines by id with the reason, and how many tasks wait for an engine.

    ``dropped`` is how many tasks of earlier tests were aborted; these are no trouble any more.
    """

    stuck: Mapping[int, str]
    waiting: int
    dropped: int = 0

    def __bool__(self) -> bool:
        return bool(self.stuck or self.waiting)

    def __str__(self) -> str:
        lines = [f"engine {number}: {reason}" for number, reason in sorted(self.stuck.items())]
        return "; ".join(lines + [f"{self.waiting} tasks wait for an engine"] * bool(self.waiting))


def clean_engines(
    client: Client, slots: Slots, patience: float, tests: Iterable[str] = (), abandoned: Iterable[str] = ()
) -> Leftovers:
    """Renew every engine until nothing of an earlier test is left, at most ``patience`` seconds; return what is.

    ``slots`` are asked for the tasks that are under way; ``tests`` are the files whose modules are forgotten;
    ``abandoned`` are tasks, by the ids under which they come to an engine, of which it is known that an earlier test
    did not wait for them. They may be anywhere on their way.
    """
    cleaning = _Cleaning(client, slots, patience, tuple(tests), set(abandoned))
    while True:
        left = cleaning.turn()
        if cleaning.is_over(left):
            return left


class _Cleaning:
    """Turns of renewing all engines, within one limit of time."""

    def __init__(
        self, client: Client, slots: Slots, patience: float, tests: tuple[str, ...], abandoned: set[str]
    ) -> None:
        self._client = client
        self._slots = slots
        self._tests = tests
        self._hint_after = patience * _HINT_AFTER
        self._deadline = time.monotonic() + patience
        self._ours: set[str] = set()
        self._abandoned = abandoned
        self._untold = frozenset(abandoned)
        self._told_now = False
        self._dropped: set[str] = set()

    def turn(self) -> Leftovers:
        """Renew every engine once, abort what is under way, and tell what is left then."""
        deadline = max(self._deadline, time.monotonic() + _LAST_TURN)
        renewals, gone = self._renew()
        hint = min(deadline, time.monotonic() + self._hint_after)
        for renewal in renewals.values():
            renewal.wait(hint)
        under_way = self._abort(deadline, late=not all(renewal.is_done() for renewal in renewals.values()))
        for renewal in renewals.values():
            renewal.wait(deadline)
        complaints = {number: renewal.complaint(deadline) for number, renewal in renewals.items()}
        stuck = {number: complaint for number, complaint in complaints.items() if complaint}
        stuck = {**dict.fromkeys(under_way.given, _BUSY), **stuck, **dict.fromkeys(gone, _DIED)}
        return Leftovers(stuck, len(under_way.waiting), len(self._dropped - under_way.ids))

    def _renew(self) -> tuple[dict[int, _Renewal], list[int]]:
        """Send every engine its renewal; return these, and the engines that the client knows no more."""
        from ipyparallel.error import NoEnginesRegistered

        renewals: dict[int, _Renewal] = {}
        gone = []
        for engine in self._slots.engines():
            try:
                renewals[engine.id] = _Renewal(self._client, engine.id, self._tests, self._ours)
            except (LookupError, NoEnginesRegistered):
                gone.append(engine.id)
        return renewals, gone

    def _abort(self, deadline: float, *, late: bool) -> Unfinished:
        """Have the engines refuse what is under way when they come to it; return what of it the hub knows.

        What was sent to an engine directly is asked for only when that is ``late``: otherwise most of it came before
        the renewal. But a scheduler that is behind takes turns between those who have sent it something, so that the
        renewal can come before what another client had sent long ago, and the hub has not heard of that yet. So the
        engines are told of all that is known to be abandoned, wherever it is. What came before they had heard that
        is undone in the next turn.

        By name, task after task: when an engine is told to drop whatever is queued, ipyparallel does that on a thread
        that has to share the queue with the one that works, and only for tasks of one kind.
        """
        under_way = self._slots.unfinished(direct=late)
        theirs = under_way.ids - self._ours
        if names := theirs | self._untold:
            self._tell(names, deadline)
        self._told_now, self._untold = bool(self._untold), frozenset()
        self._dropped |= theirs & self._abandoned
        self._abandoned |= theirs  # one that is seen only once may just have ended, and the hub not know it yet
        return under_way

    def _tell(self, names: Iterable[str], deadline: float) -> None:
        """Have all engines refuse these tasks, and wait until they know."""
        from ipyparallel.error import NoEnginesRegistered

        with suppress(NoEnginesRegistered):  # they have died meanwhile, as their renewals tell
            told = self._client.abort(jobs=sorted(names), targets="all", block=False)
            wait([told], max(0.0, deadline - time.monotonic()))

    def is_over(self, left: Leftovers) -> bool:
        """Tell whether another turn is of no use: all is done, time is up, or there is what time does not heal."""
        if not left:
            return not self._told_now
        hopeless = any(reason != _BUSY for reason in left.stuck.values())
        return hopeless or time.monotonic() >= self._deadline


class _Renewal:
    """One engine's renewal, sent on both ways that are its own, so that on either it comes after what was sent before.

    The third way, by load balancing, leads to any engine; what is under way there is known to the hub. ``ours`` takes
    the ids of the tasks that are sent here.
    """

    def __init__(self, client: Client, number: int, tests: tuple[str, ...], ours: set[str]) -> None:
        self._direct = client[[number]]
        self._ours = ours
        self._tasks = [self._send(view, renew, tests) for view in (self._direct, client.broadcast_view([number]))]

    def _send(self, view: DirectView, function: Callable[..., object], *args: object) -> AsyncResult:
        task = view.apply_async(function, *args)
        self._ours.update(task.msg_ids)
        return task

    def wait(self, deadline: float) -> None:
        for task in self._tasks:
            task.wait(max(0.0, deadline - time.monotonic()))

    def is_done(self) -> bool:
        return all(task.ready() for task in self._tasks)

    def complaint(self, deadline: float) -> str:
        """Say why this engine is not as new; empty when it is."""
        if not self.is_done():
            return _BUSY
        complaints = dict.fromkeys(line for task in self._tasks for line in _outcome(task))
        if not complaints and not self._is_heard(deadline):
            return "the engine's output did not arrive"
        return "; ".join(complaints)

    def _is_heard(self, deadline: float) -> bool:
        """Wait until the client hears what this engine publishes.

        The subscription of a new client takes a moment to reach every engine. Until then the output of a task is lost,
        and ``execute(block=True)`` waits for it for ever.
        """
        task = self._tasks[0]
        deadline = max(deadline, time.monotonic() + _HEARD_WITHIN)  # whoever else has taken all the time there was
        while not task.wait_for_output(_HEARD_AFTER):
            if time.monotonic() > deadline:
                return False
            task = self._send(self._direct, _nothing)
            task.wait(max(0.0, deadline - time.monotonic()))
        return True


def _outcome(task: AsyncResult) -> list[str]:
    """Return what the engine could not bring back."""
    if task.successful():
        return [line for complaints in task.get(0) for line in complaints]
    error = task.exception()
    name, message = error.elist[0][:2] if hasattr(error, "elist") else (type(error).__name__, str(error))
    if name == "EngineError":
        return [_DIED]
    return [f"the engine could not be renewed: {name}: {str(message).partition(chr(10))[0]}"]


def _nothing() -> None:
    """Make the engine publish that it is busy, and that it is idle again."""
