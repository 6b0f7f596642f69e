"""The one cluster of a session: started when a test first asks for it, reshaped for the next, stopped at the end."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from traceback import format_exception
from typing import TYPE_CHECKING

from pytest_ipcluster.cluster.cleaning import clean_engines
from pytest_ipcluster.errors import ClusterError, ClusterStartError
from pytest_ipcluster.report.events import EventLog
from pytest_ipcluster.settings import Settings, Shape

if TYPE_CHECKING:
    import pytest
    from ipyparallel import Client
    from traitlets.config import Config

    from pytest_ipcluster.cluster.background import BackgroundCluster
    from pytest_ipcluster.cluster.profile import RunFolder
    from pytest_ipcluster.cluster.slots import Repair
    from pytest_ipcluster.hearts.thread import MonitorThread

__all__ = ["Keeper", "importable_folders"]

#: Seconds that an engine gets to drop what an earlier test left on it before it is replaced.
_PATIENCE = 2.0

#: Seconds that the local cluster of a run that is gone gets to end by itself.
_ORPHAN_GRACE = 1.0


class Keeper:
    """Provides the cluster of the shape that a test wants, and keeps it in that shape.

    ``importable`` are the folders that functions sent to the engines may be imported from.
    """

    def __init__(self, settings: Settings, importable: Iterable[str]) -> None:
        self._settings = settings
        self._importable = tuple(importable)
        self._kind: tuple[object, ...] | None = None
        self._failed: dict[tuple[Shape, tuple[object, ...]], ClusterStartError] = {}
        self._process = os.getpid()
        self._folder: RunFolder | None = None
        self._cluster: BackgroundCluster | None = None
        self._hearts: MonitorThread | None = None
        self.events = EventLog()

    @property
    def hearts(self) -> MonitorThread:
        """The thread that watches the hearts of the running cluster. Raises ClusterError when none runs."""
        if self._hearts is None:
            raise ClusterError("no cluster is running")
        return self._hearts

    def provide(self, shape: Shape, config: Config) -> BackgroundCluster:
        """Return a running cluster of this shape, all its hearts beating.

        When the running one differs only in its number of engines it grows or shrinks; otherwise it is
        replaced. Raises :class:`ClusterStartError`; the same again, at once, for every further test that wants
        the same cluster.
        """
        kind = (shape.engines, shape.extra_args, shape.profile, repr(config))
        if (shape, kind) in self._failed:
            raise self._failed[shape, kind]
        if self._cluster is None or self._kind != kind:
            self.close()
            try:
                self._start(shape, config)
            except ClusterStartError as error:
                self._failed[shape, kind] = error
                raise
            self._kind = kind
        elif self._cluster.n != shape.n:
            self.restore(shape.n)
        return self._running()

    def _start(self, shape: Shape, config: Config) -> None:
        from pytest_ipcluster.cluster.background import BackgroundCluster
        from pytest_ipcluster.cluster.profile import EngineSetup, RunFolder

        # Engines on other hosts are ended by ipcluster alone, which takes its time.
        self._folder = RunFolder.guarded(_ORPHAN_GRACE if shape.engines == "local" else self._settings.kill_after)
        try:
            hearts = self._listen(*self._folder.heart_urls())
            self._cluster = BackgroundCluster(
                folder=self._folder,
                n=shape.n,
                private=shape.profile is None,
                profile=shape.profile or "default",
                launcher="" if shape.engines == "local" else shape.engines,
                extra_args=list(shape.extra_args),
                cluster_config=config,
                engine_setup=EngineSetup(hearts.ping_url, hearts.pong_url, self._importable),
                silent=True,
            )
            self._bring_up(self._cluster)
        except BaseException:
            self.close()
            raise

    def _bring_up(self, cluster: BackgroundCluster) -> None:
        """Start the cluster and wait for its engines and their hearts, all within the start timeout."""
        cluster.bring_up(self._settings.start_timeout, retrying=self._retry)
        cluster.slots.leaving = self._forget
        self._wait_for_hearts()

    def _retry(self, error: ClusterStartError) -> None:
        """Write down that the start is tried again, and forget the engines of the first try."""
        self.events.add("retried", detail=error.cause)
        for heart in self.hearts.call(lambda: list(self.hearts.monitor.hearts)):
            self._forget(heart)

    def _listen(self, ping: str, pong: str) -> MonitorThread:
        from pytest_ipcluster.hearts.thread import MonitorThread

        self._hearts = MonitorThread(
            ping,
            pong,
            period=self._settings.heart_period,
            misses=self._settings.heart_misses,
            events=self.events,
        )
        self._hearts.start()
        return self._hearts

    def restore(self, n: int | None = None) -> None:
        """Bring the cluster back to ``n`` engines (as many as it has, by default) in their slots, hearts beating.

        A cluster that cannot be repaired, because its controller is gone for example, is restarted. Raises
        :class:`ClusterError` when that fails as well.
        """
        cluster = self._running()
        try:
            self._note(cluster.restore(n, self._settings.start_timeout))
        except ClusterError as error:
            cluster.n = cluster.n if n is None else n
            self._restart(f"it could not be repaired: {error}")

    def _restart(self, reason: str) -> None:
        """Stop the cluster and start it again; tests keep the same object."""
        begun, cluster = time.monotonic(), self._running()
        cluster.stop(self._settings.kill_after)
        self._bring_up(cluster)
        self.events.add("restarted", detail=f"{reason}; took {time.monotonic() - begun:.2f} s")

    @contextmanager
    def client(self) -> Iterator[Client]:
        """Make the cluster as new, all engines there, idle and empty, and connect a client for the block.

        Engines that do not come clean are replaced. When there is still work of earlier tests after that, which the
        scheduler hands to every new engine, the cluster is restarted.
        """
        self.restore()
        for repair in (self._replace, self._restart_for):
            with self._connected() as client:
                left = _Leftovers(clean_engines(client, _PATIENCE), self._running().slots.backlog())
                if not left.stuck and not left.backlog:
                    yield client
                    return
            repair(left)
        with self._connected() as client:
            yield client

    def _replace(self, left: _Leftovers) -> None:
        self._note(self._running().replace(left.stuck, self._settings.start_timeout))

    def _restart_for(self, left: _Leftovers) -> None:
        self._restart(f"an earlier test left engines {left.stuck} busy and {left.backlog} tasks queued")

    @contextmanager
    def _connected(self) -> Iterator[Client]:
        """Connect a client on a context of its own, so that nothing of it is left when the block ends."""
        import zmq

        context = zmq.Context()
        try:
            client = self._running().client(context=context, timeout=self._settings.start_timeout)
            try:
                yield client
            finally:
                client.close(linger=0)
        finally:
            context.destroy(linger=0)

    def _running(self) -> BackgroundCluster:
        if self._cluster is None:
            raise ClusterError("no cluster is running")
        return self._cluster

    def _note(self, repairs: Iterable[Repair]) -> None:
        """Write repairs down, and wait until the hearts of the new engines beat."""
        for repair in repairs:
            self.events.add("repaired", slot=repair.slot, detail=f"{repair.reason}; took {repair.seconds:.2f} s")
        self._wait_for_hearts()

    def _wait_for_hearts(self) -> None:
        for engine in self._running().engines:
            self.hearts.wait_for_heart(engine.heart, self._settings.start_timeout)

    def _forget(self, heart: bytes) -> None:
        """Have the monitor drop the heart of an engine that is ended on purpose."""
        self.hearts.call(self.hearts.monitor.forget, heart)

    @contextmanager
    def watch(self, item: pytest.Item) -> Iterator[None]:
        """Watch over the body of one test: what its heart handlers raise fails it, what it registered is taken back.

        When the test fails by itself, a handler's exception becomes a section of its report.
        """
        monitor = self.hearts.monitor if self._hearts is not None else None
        if monitor is None:
            yield
            return
        try:
            with monitor.temporary_handlers():
                yield
        except BaseException:
            for error in monitor.take_handler_errors():
                item.add_report_section("call", "heart handler", "".join(format_exception(error.exception)))
            raise
        self.raise_handler_errors()

    def raise_handler_errors(self) -> None:
        """Raise what heart handlers have raised since this was last asked."""
        self.hearts.monitor.raise_handler_errors()

    def close(self) -> None:
        """Stop the cluster and the monitor and remove their folder. May be called twice.

        Does nothing in a forked child that goes on as if it were pytest: the cluster is not its own.
        """
        if os.getpid() != self._process:
            return
        with ExitStack() as stack:
            if self._folder is not None:
                stack.callback(self._folder.remove)
            if self._hearts is not None:
                stack.callback(self._hearts.stop)
            if self._cluster is not None:
                stack.callback(self._cluster.stop, self._settings.kill_after)
        self._cluster = self._hearts = self._folder = None


@dataclass(frozen=True, slots=True)
class _Leftovers:
    """What an earlier test left: engines that do not come clean, and tasks that wait in the scheduler."""

    stuck: list[int]
    backlog: int


def importable_folders(config: pytest.Config, items: Iterable[pytest.Item]) -> list[str]:
    """Return the folders that tests can be imported from here, so that engines can do it too.

    That is the rootdir, the folder of every test, and whatever pytest or the user has put on ``sys.path``.
    """
    folders = [config.rootpath, *(item.path.parent for item in items), *(Path(entry) for entry in sys.path if entry)]
    return [str(folder) for folder in dict.fromkeys(folders) if folder.is_dir()]
