"""Bringing one running cluster back to what it was: engines in their slots, hearts beating, everything as new."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pytest_ipcluster.cluster.cleaning import Leftovers, clean_engines
from pytest_ipcluster.errors import ClusterError, RepairError
from pytest_ipcluster.settings import Settings

if TYPE_CHECKING:
    from ipyparallel import Client

    from pytest_ipcluster.cluster.background import BackgroundCluster
    from pytest_ipcluster.cluster.engines import Engine
    from pytest_ipcluster.hearts.thread import MonitorThread

__all__ = ["Upkeep"]

#: Seconds that an engine gets to drop what an earlier test left on it before it is replaced.
_PATIENCE = 2.0


class Upkeep:
    """Repairs and renews one cluster, and writes down what that took.

    ``tests`` are the files whose modules engines import anew for each test. ``excuse`` is called with an engine that is
    about to be replaced because of what a test has left there: if it dies of that, nobody else is to be blamed.
    ``restart`` is called with the reason when nothing else helps; it starts the same cluster again.
    """

    def __init__(
        self,
        cluster: BackgroundCluster,
        hearts: MonitorThread,
        settings: Settings,
        tests: Iterable[str],
        excuse: Callable[[Engine], object],
        unanswered: Callable[[], Collection[str]],
        restart: Callable[[str], object],
    ) -> None:
        self._cluster = cluster
        self._hearts = hearts
        self._tests = tuple(tests)
        self._excuse = excuse
        self._unanswered = unanswered
        self._restart = restart
        self._timeout = settings.start_timeout
        self._heart_patience = _PATIENCE + settings.heart_misses * settings.heart_period / 1000

    # -- engines -----------------------------------------------------------------------------------

    def restore(self, n: int, before: int) -> None:
        """Have ``n`` engines in their slots, hearts beating; there were to be as many as ``before``."""
        begun = time.monotonic()
        with self._or_restart(n):
            repairs = self._cluster.restore(n, self._timeout)
            self._note({repair.slot: repair.reason for repair in repairs}, begun, before)
            if silent := self._silent():
                self._replace(silent, begun)

    @contextmanager
    def _or_restart(self, n: int) -> Iterator[None]:
        """Restart the cluster with ``n`` engines when the block cannot repair it."""
        try:
            yield
        except ClusterError as error:
            self._cluster.n = n
            self._restart(f"it could not be repaired: {error}")

    def _replace(self, reasons: Mapping[int, str], begun: float) -> None:
        """Put new engines into these slots, and wait until their hearts beat."""
        self._cluster.replace(reasons, self._timeout)
        self._note(reasons, begun, self._cluster.n)
        self.wait_for_hearts()

    def _note(self, reasons: Mapping[int, str], begun: float, before: int) -> None:
        """Write down what was repaired since ``begun`` and why, and which engines are there for the first time."""
        seconds: float | None = time.monotonic() - begun
        for slot, reason in sorted(reasons.items()):
            kind = "repaired" if slot < before else "added"
            self._hearts.events.add(kind, slot=slot, detail=reason, seconds=seconds)
            seconds = None

    # -- hearts ------------------------------------------------------------------------------------

    def wait_for_hearts(self) -> None:
        """Return when the monitor hears every engine. Raises RepairError when the start timeout is over."""
        for engine in self._cluster.engines:
            if not self._beats(engine.heart, self._timeout):
                raise RepairError(f"the heart of the engine in slot {engine.slot} (pid {engine.pid}) does not beat")

    def _silent(self) -> dict[int, str]:
        """Return the slots whose hearts do not beat though their engines live, with that as the reason."""
        deadline = time.monotonic() + self._heart_patience
        return {
            engine.slot: "the engine's heart did not beat"
            for engine in self._cluster.engines
            if not self._beats(engine.heart, deadline - time.monotonic())
        }

    def _beats(self, heart: bytes, timeout: float) -> bool:
        if heart not in self._hearts.monitor.hearts:
            self._hearts.call(self._hearts.monitor.allow, heart)
        try:
            self._hearts.wait_for_heart(heart, max(0.0, timeout))
        except TimeoutError:
            return False
        return True

    # -- everything else ---------------------------------------------------------------------------

    @contextmanager
    def client(self) -> Iterator[Client]:
        """Have all engines as new, idle and empty, and connect a client for the block.

        Engines that do not come clean are replaced. When there is still work of earlier tests after that, which the
        scheduler hands to every new engine, the cluster is restarted.
        """
        abandoned = self._unanswered()
        for repair in (self._replace_for, self._restart_for, self._give_up_for):
            begun = time.monotonic()
            with self._connected() as client:
                left = self._clean(client, abandoned)
                if not left:
                    yield client
                    return
            repair(left, begun)

    def _clean(self, client: Client, abandoned: Collection[str]) -> Leftovers:
        begun = time.monotonic()
        left = clean_engines(client, self._cluster.slots, _PATIENCE, self._tests, abandoned)
        if left.dropped:
            told = f"{left.dropped} tasks that a test had not waited for"
            self._hearts.events.add("dropped", detail=told, seconds=time.monotonic() - begun)
        return left

    def _replace_for(self, left: Leftovers, begun: float) -> None:
        if not left.stuck:
            return self._restart_for(left, begun)
        for engine in self._cluster.engines:
            if engine.slot in left.stuck:
                self._excuse(engine)
        with self._or_restart(self._cluster.n):
            return self._replace(left.stuck, begun)

    def _restart_for(self, left: Leftovers, begun: float) -> None:
        self._restart(f"it could not be made as new: {left} {time.monotonic() - begun:.1f} s later")

    def _give_up_for(self, left: Leftovers, begun: float) -> None:
        took = f"{time.monotonic() - begun:.1f} s later"
        raise ClusterError(f"the cluster is not as new even after a restart: {left} {took}")

    @contextmanager
    def _connected(self) -> Iterator[Client]:
        """Connect a client on a context of its own, so that nothing of it is left when the block ends."""
        import zmq

        context = zmq.Context()
        # For sockets that the client's loop closes: messages that nobody takes would hold up the end for ever.
        context.setsockopt(zmq.LINGER, 0)
        try:
            client = self._cluster.client(context=context, timeout=self._timeout)
            try:
                yield client
            finally:
                client.close(linger=0)
        finally:
            context.destroy(linger=0)
