"""The one cluster of a session: started when a test first asks for it, reshaped for the next, stopped at the end."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from traceback import format_exception
from typing import TYPE_CHECKING

from pytest_ipcluster.errors import ClusterError, ClusterStartError
from pytest_ipcluster.launchers import LOCAL, LOCAL_LAUNCHERS
from pytest_ipcluster.report.events import EventLog
from pytest_ipcluster.settings import Settings, Shape
from pytest_ipcluster.upkeep import Upkeep

if TYPE_CHECKING:
    import pytest
    from ipyparallel import Client
    from traitlets.config import Config

    from pytest_ipcluster.cluster.background import BackgroundCluster
    from pytest_ipcluster.cluster.profile import RunFolder
    from pytest_ipcluster.deathwatch import DeathWatch
    from pytest_ipcluster.faults.vigil import Deadman
    from pytest_ipcluster.hearts.keys import MonitorKeys
    from pytest_ipcluster.hearts.thread import MonitorThread

#: From so many hearts on a thread beside a test that computes is late for its beats.
_MANY_HEARTS = 32

__all__ = ["Keeper", "importable_folders", "test_files"]

#: Seconds that the local cluster of a run that is gone gets to end by itself.
_ORPHAN_GRACE = 1.0


class Keeper:
    """Provides the cluster of the shape that a test wants, and keeps it in that shape.

    ``deaths`` watches the cluster's processes; ``importable`` are the folders that functions sent to the engines may be
    imported from; ``tests`` are the files of the tests, whose modules engines import anew for each test; ``boss`` is
    the pid of a process without which this one is as good as gone.
    """

    def __init__(
        self,
        settings: Settings,
        deaths: DeathWatch,
        importable: Iterable[str],
        tests: Iterable[str] = (),
        *,
        boss: int | None = None,
    ) -> None:
        self._settings = settings
        self.deaths = deaths
        self._importable = tuple(importable)
        self._tests = tuple(tests)
        self._boss = boss
        self._shape = settings.shape
        self._kind: tuple[object, ...] = ()
        self._failed: dict[tuple[Shape, tuple[object, ...]], ClusterError] = {}
        self._restarted = False
        self._process = os.getpid()
        self._folder: RunFolder | None = None
        self._cluster: BackgroundCluster | None = None
        self._hearts: MonitorThread | None = None
        self._upkeep: Upkeep | None = None
        self._deadman: Deadman | None = None
        self.events = EventLog()

    @property
    def cluster(self) -> BackgroundCluster | None:
        """The cluster that was provided last; None before that and after the close."""
        return self._cluster

    @property
    def folder(self) -> RunFolder | None:
        """Its private folder."""
        return self._folder

    @property
    def hearts(self) -> MonitorThread:
        """The thread that watches the hearts of the running cluster. Raises ClusterError when none runs."""
        if self._hearts is None:
            raise ClusterError("no cluster is running")
        return self._hearts

    def provide(self, shape: Shape, config: Config) -> BackgroundCluster:
        """Return a running cluster of this shape, all its hearts beating.

        When the running one differs only in its number of engines it grows or shrinks; otherwise it is
        replaced. Raises :class:`ClusterError`; the same again, at once, for every further test that wants the same
        cluster.
        """
        kind = (shape.engines, shape.extra_args, shape.profile, shape.network, repr(config))
        if (shape, kind) in self._failed:
            raise self._failed[shape, kind]
        if self._cluster is None or self._kind != kind:
            self.close()
            try:
                self._start(shape, config)
            except ClusterError as error:
                self._failed[shape, kind] = error
                raise
            self._shape, self._kind = shape, kind
        elif self._cluster.n != shape.n:
            self.restore(shape.n)
        return self._running()

    def _start(self, shape: Shape, config: Config) -> None:
        from pytest_ipcluster.cluster.background import BackgroundCluster
        from pytest_ipcluster.cluster.forks import launcher_limits
        from pytest_ipcluster.cluster.profile import EngineSetup, RunFolder
        from pytest_ipcluster.faults.vigil import Deadman

        # Engines on other hosts are ended by ipcluster alone, which takes its time.
        grace = _ORPHAN_GRACE if shape.engines in LOCAL_LAUNCHERS else self._settings.kill_after
        self._folder = RunFolder.guarded(grace, self._boss)
        for limit in [*self._folder.limits, *launcher_limits(shape.engines, self._folder.forkserver)]:
            self.events.add("limited", detail=limit)
        try:
            hearts = self._listen(self._folder, n=shape.n)
            self._cluster = BackgroundCluster(
                folder=self._folder,
                n=shape.n,
                private=shape.profile is None,
                profile=shape.profile or "default",
                launcher="" if shape.engines == LOCAL else shape.engines,
                extra_args=list(shape.extra_args),
                network=shape.network,
                cluster_config=config,
                engine_setup=EngineSetup(
                    hearts.ping_url,
                    hearts.pong_url,
                    self._importable,
                    str(self._folder.key_file) if self._folder.key_file.exists() else "",
                ),
                spares=self._settings.spares,
                silent=True,
            )
            self._deadman = Deadman(self._cluster, tell=lambda limit: self.events.add("limited", detail=limit))
            self._cluster.handing_out = self._deadman.guard
            self._upkeep = Upkeep(
                self._cluster,
                hearts,
                self._settings,
                self._tests,
                excuse=self.deaths.allow,
                unanswered=self._deadman.take_unanswered,
                restart=self._restart_once,
            )
            self._bring_up(self._cluster)
        except BaseException:
            self.close()
            raise

    def _bring_up(self, cluster: BackgroundCluster) -> None:
        """Start the cluster and wait for its engines and their hearts, all within the start timeout."""
        cluster.bring_up(self._settings.start_timeout, retrying=self._retry)
        cluster.slots.leaving, cluster.slots.arrived = self._forget, self._welcome
        self._maintained().wait_for_hearts()
        self.deaths.begin(cluster)
        if cluster.unforked:
            self.events.add("limited", detail=cluster.unforked)

    def _retry(self, error: ClusterStartError) -> None:
        """Write down that the start is tried again, and forget the engines of the first try."""
        self.events.add("retried", detail=error.cause)
        for heart in self.hearts.call(lambda: list(self.hearts.monitor.hearts)):
            self._forget(heart)

    def _listen(self, folder: RunFolder, *, n: int) -> MonitorThread:
        from pytest_ipcluster.hearts.process import MonitorProcess
        from pytest_ipcluster.hearts.thread import MonitorThread

        ping, pong = folder.heart_urls()
        apart = self._settings.monitor == "process" or (self._settings.monitor == "auto" and n >= _MANY_HEARTS)
        self._hearts = (MonitorProcess if apart and os.name == "posix" else MonitorThread)(
            ping,
            pong,
            period=self._settings.heart_period,
            misses=self._settings.heart_misses,
            events=self.events,
            allowed=(),  # engines are, as soon as they are known
            gone=self._is_gone,
            keys=self._make_keys(folder) if ping.startswith("tcp:") else None,
        )
        self._hearts.start()
        return self._hearts

    def _make_keys(self, folder: RunFolder) -> MonitorKeys | None:
        """Keep others from sockets that are not in the folder: what engines need for that goes to a file in it."""
        import zmq

        from pytest_ipcluster.hearts.keys import MonitorKeys

        if not zmq.has("curve"):
            self.events.add("limited", detail="libzmq has no CURVE: any user of this machine can talk to the monitor")
            return None
        keys = MonitorKeys.generate()
        keys.hearts.write(folder.key_file)
        return keys

    def _is_gone(self, heart: bytes) -> bool | None:
        """Tell the monitor, on its thread, whether the engine with this heart has ended; None for an unknown one."""
        from pytest_ipcluster.cluster.engines import is_gone

        cluster = self._cluster
        try:
            return None if cluster is None else is_gone(cluster.engines, heart)
        except ClusterError:  # it does not run yet, or any more
            return None

    def renew(self, shape: Shape | None = None) -> None:
        """Before a test that wants a cluster of this shape (None: whichever runs), have all engines there and beating.

        A cluster of another kind is left as it is: it is about to be replaced. Raises ClusterError.
        """
        if self._cluster is None or (shape is not None and shape.replaced(n=self._shape.n) != self._shape):
            return
        self.restore(self._shape.n if shape is None else shape.n)

    def restore(self, n: int | None = None) -> None:
        """Bring the cluster back to ``n`` engines (as many as it has, by default) in their slots, hearts beating.

        A cluster that cannot be repaired, because its controller is gone for example, is restarted. Raises
        :class:`ClusterError` when that fails as well; the same again, at once, whenever this is asked for.
        """
        n = self._running().n if n is None else n
        if (self._shape.replaced(n=n), self._kind) in self._failed:
            raise self._failed[self._shape.replaced(n=n), self._kind]
        self._maintained().restore(n, self._shape.n)
        self._shape = self._shape.replaced(n=n)

    def allow_restart(self) -> None:
        """Allow one restart from here on: a test's setup may take one, and its teardown."""
        self._restarted = False

    def _restart_once(self, reason: str) -> None:
        """Restart, unless that has not helped already; remember when it fails, so that no other test waits for it."""
        if self._restarted:
            raise ClusterError(f"the cluster was restarted already, and again {reason}")
        self._restarted = True
        try:
            self._restart(reason)
        except ClusterError as error:
            error.add_note(f"The cluster was being restarted: {reason}")
            self._failed[self._shape.replaced(n=self._running().n), self._kind] = error
            raise

    def _restart(self, reason: str) -> None:
        """Stop the cluster and start it again; tests keep the same object."""
        begun, cluster = time.monotonic(), self._running()
        self.deaths.end()
        cluster.stop(self._settings.kill_after)
        self._bring_up(cluster)
        self.events.add("restarted", detail=reason, seconds=time.monotonic() - begun)

    @contextmanager
    def client(self) -> Iterator[Client]:
        """Make the cluster as new, all engines there, idle and empty, and connect a client for the block."""
        self.restore()
        with self._maintained().client() as client:
            yield client

    def _running(self) -> BackgroundCluster:
        if self._cluster is None:
            raise ClusterError("no cluster is running")
        return self._cluster

    def _maintained(self) -> Upkeep:
        if self._upkeep is None:
            raise ClusterError("no cluster is running")
        return self._upkeep

    def _welcome(self, heart: bytes) -> None:
        """Have the monitor watch the heart of a new engine, whoever asked for that, and strangers no more."""
        self.hearts.call(self.hearts.monitor.allow, heart)

    def _forget(self, heart: bytes) -> None:
        """Have the monitor drop the heart of an engine that is ended on purpose, and nobody be blamed for its end."""
        self.deaths.leaving(heart)
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

    def expire_at(self, limit: float | None, holds: Callable[[], bool]) -> None:
        """Have calls that still wait at this time (of ``time.monotonic()``) fail, if ``holds`` then; see Deadman."""
        if self._deadman is not None:
            self._deadman.expire_at(limit, holds)

    def raise_handler_errors(self) -> None:
        """Raise what heart handlers have raised since this was last asked."""
        self.hearts.monitor.raise_handler_errors()

    def close(self) -> None:
        """Stop the cluster and the monitor and remove their folder. May be called twice.

        Does nothing in a forked child that goes on as if it were pytest: the cluster is not its own.
        """
        if os.getpid() != self._process:
            return
        self.deaths.end()
        with ExitStack() as stack:
            if self._folder is not None:
                stack.callback(self._folder.remove)
            if self._hearts is not None:
                stack.callback(self._hearts.stop)
            if self._deadman is not None:
                stack.callback(self._deadman.close)
            if self._cluster is not None:
                stack.callback(self._cluster.stop, self._settings.kill_after)
        self._cluster = self._hearts = self._folder = self._upkeep = self._deadman = None


def importable_folders(config: pytest.Config, items: Iterable[pytest.Item]) -> list[str]:
    """Return the folders that tests can be imported from here, so that engines can do it too.

    That is the rootdir, the folder of every test, and whatever pytest or the user has put on ``sys.path``.
    """
    folders = [config.rootpath, *(item.path.parent for item in items), *(Path(entry) for entry in sys.path if entry)]
    return [str(folder) for folder in dict.fromkeys(folders) if folder.is_dir()]


def test_files(items: Iterable[pytest.Item]) -> list[str]:
    """Return the files of the tests that use the cluster, by every name that an engine may know them by."""
    paths = dict.fromkeys(item.path for item in items if "ipcluster" in getattr(item, "fixturenames", ()))
    return list(dict.fromkeys(str(path) for given in paths for path in (given, given.resolve())))
