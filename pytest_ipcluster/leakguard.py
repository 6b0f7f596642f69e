"""Looking around every test that uses the cluster, and around the cluster's life, for what they leave behind.

A test is looked at from before its set-up until after its teardown. What appears while a fixture of a wider scope is
set up belongs to that fixture, not to the test that happens to be the first to ask for it: so nothing of the cluster,
its monitor or a session's own client is laid at a test's door. What appeared while the plugin's own fixtures were set
up must be gone when the cluster has been closed.

Processes and folders are the cluster's, so one that is left is an error. Threads, sockets and descriptors are this
process's, where much besides the cluster goes on, so of them it is only warned.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_ipcluster.errors import ClusterError, IpclusterLeakWarning, LeakError
from pytest_ipcluster.report.leaks import (
    PATIENCE,
    Leak,
    Snapshot,
    leaks_in,
    log_files,
    open_pools,
    pipes_of,
    process_leak,
    settled,
    take_snapshot,
)
from pytest_ipcluster.stash import CLOCK

if TYPE_CHECKING:
    import psutil

    from pytest_ipcluster.cluster.census import Census
    from pytest_ipcluster.cluster.profile import RunFolder
    from pytest_ipcluster.keeper import Keeper

__all__ = ["LeakGuard"]

#: Whose test or fixture uses the cluster.
_FIXTURE = "ipcluster"

#: The fixtures that are the plugin's own.
_OURS = "pytest_ipcluster.fixtures"

_ADVICE = {
    "process": "Let a task end what it starts, or run with --ipcluster-leaks=warn.",
    "folder": "Something still writes to it, or this user may not remove it.",
    "thread": "Close what a test opens: client.close() for an ipyparallel client.",
}


class LeakGuard:
    """Looks for what is left behind. ``mode`` is that of --ipcluster-leaks."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self._process = os.getpid()
        self._keeper: Keeper | None = None
        self._item: pytest.Item | None = None
        self._test: _Test | None = None
        self._opened = Snapshot(frozenset(), Counter())
        self._clusters: dict[Path, Census] = {}
        self._roles: dict[int, str] = {}

    # -- a test ------------------------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, object, object]:
        """Look at what there is before the test; when all is set up, see which processes are the cluster's own."""
        __tracebackhide__ = True
        self._test = None
        if _FIXTURE not in getattr(item, "fixturenames", ()):
            return (yield)
        if self._keeper is not None:
            open_pools()  # an earlier test may have closed them
        self._test = _Test(take_snapshot(), self._strays())
        try:
            return (yield)
        finally:
            self._strays()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        """Note what a fixture of a wider scope opens and starts."""
        __tracebackhide__ = True
        ours = getattr(fixturedef.func, "__module__", "") == _OURS
        if fixturedef.scope == "function" or not (ours or self._test):
            return (yield)
        before, strays = take_snapshot(), self._strays()
        if ours:
            with request.config.stash.get(CLOCK, nullcontext)():  # the first time it imports pyzmq
                open_pools()
        warm = take_snapshot()
        try:
            result = yield
        finally:
            after = take_snapshot()
            if ours:  # it may have closed an earlier cluster as well
                self._opened = self._opened - (warm - after) + (after - warm)
        if self._test:  # not of one that has failed: that must not leave anything
            self._test.excuse(after - before, self._strays() - strays)
        return result

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, object, object]:
        """Look at what there is after the test, and tell what was not there before it."""
        __tracebackhide__ = True
        self._item = item
        try:
            result = yield
        except KeyboardInterrupt:  # in a hurry
            raise
        except BaseException:  # pytest.fail among them
            if left := self._left_by_test():
                item.add_report_section("teardown", "ipcluster", _in_words("the test", left))
            raise
        finally:
            self._item = None
        self._tell(item, "the test", self._left_by_test())
        return result

    def _left_by_test(self) -> list[Leak]:
        test, self._test = self._test, None
        if test is None:
            return []
        self._end_strays(test)
        return test.processes + leaks_in(settled(lambda: self._left_open(test.before)))

    def _left_open(self, before: Snapshot) -> Snapshot:
        found = take_snapshot() - before
        return found.without(log_files() | self._plugins_own()) if found else found

    def _plugins_own(self) -> set[str]:
        """Return what the plugin opens while a test runs: hearts of new engines connect, parts may be replaced."""
        if self._keeper is None or self._keeper.folder is None:
            return set()
        hearts, guard = self._keeper.hearts, self._keeper.folder.guard
        addresses = {url.split("://", 1)[1] for url in (hearts.ping_url, hearts.pong_url)}
        lanes = None if self._keeper.cluster is None else self._keeper.cluster.lanes
        addresses |= set() if lanes is None else {str(lanes.socket)}
        return addresses | (pipes_of(guard.process.pid) if guard else set())

    # -- processes ---------------------------------------------------------------------------------

    def _strays(self) -> set[psutil.Process]:
        """Return the processes of the running cluster that tasks have started; none in a fork of this process."""
        cluster = None if self._keeper is None else self._keeper.cluster
        if cluster is None or cluster.process is None or os.getpid() != self._process:
            return set()
        try:
            folder, engines, heads = cluster.folder, cluster.engines, cluster.heads
        except ClusterError:  # it has ended, and could not be started again
            return set()
        # Those of engines that are gone are left out: nobody has a dead parent, and their pids may be given again.
        self._roles = {engine.pid: f"engine {engine.slot}" for engine in engines}
        warden = folder.guard.process if folder.guard else None
        if warden is not None:
            self._roles[warden.pid] = "the warden, which adopts orphans"
        return self._census(folder).strays(heads, engines, warden)

    def _census(self, folder: RunFolder) -> Census:
        from pytest_ipcluster.cluster.census import Census

        if folder.path not in self._clusters:
            self._clusters[folder.path] = Census(folder.mark)
        return self._clusters[folder.path]

    def _end_strays(self, test: _Test) -> None:
        """End what the test has started and left."""
        test.processes += self._ended(self._strays() - test.excused)

    def _ended(self, processes: set[psutil.Process]) -> list[Leak]:
        """Give these processes a moment to end by themselves, then end them; tell which did not."""
        if not processes:
            return []
        from pytest_ipcluster.cluster.census import end
        from pytest_ipcluster.cluster.processes import wait_gone

        left = sorted(wait_gone(processes, PATIENCE), key=lambda process: process.pid)
        leaks = [process_leak(process, self._roles) for process in left]
        end(left, PATIENCE)
        return leaks

    # -- the cluster's life ------------------------------------------------------------------------

    def follow(self, keeper: Keeper) -> None:
        """Look at the clusters of this keeper from now on."""
        self._keeper = keeper

    @contextmanager
    def last_look(self, session: pytest.Session) -> Iterator[None]:
        """Close the keeper in this block: what its clusters have opened or started must be gone after it."""
        if self.mode == "off" or os.getpid() != self._process:  # in a fork nothing is closed
            yield
            return
        left = self._left_on_cluster()
        before = take_snapshot()
        yield
        self._keeper = None
        still_open = settled(lambda: self._still_open(before))
        left += [*self._still_alive(), *self._still_there(), *leaks_in(still_open)]
        if self._item is not None:
            self._tell(self._item, "the cluster", left)
        elif left:
            self._tell_run(session, left)

    def _left_on_cluster(self) -> list[Leak]:
        """End what tasks have left, which closing the cluster would end unseen: of the last test, then of others.

        A test that was interrupted was not given the time to do that itself.
        """
        if self._item is None:
            return []
        if self._test is not None:
            self._end_strays(self._test)
        return self._ended(self._strays())

    def _still_open(self, before: Snapshot) -> Snapshot:
        """Return what our fixtures have opened and closing them has not closed."""
        now = take_snapshot()
        return (self._opened - (before - now)) & now

    def _still_alive(self) -> list[Leak]:
        return self._ended({process for census in self._clusters.values() for process in census.alive()})

    def _still_there(self) -> list[Leak]:
        folders = [folder for folder in self._clusters if folder.exists()]
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        return [Leak("folder", str(folder)) for folder in folders]

    # -- telling -----------------------------------------------------------------------------------

    def _tell(self, item: pytest.Item, who: str, left: list[Leak]) -> None:
        """Warn of what is left, and raise LeakError for processes and folders if that was asked for."""
        __tracebackhide__ = True
        failing = [leak for leak in left if self._fails(leak)]
        warned = [leak for leak in left if not self._fails(leak)]
        try:
            if warned:
                text = _in_words(who, warned)
                item.add_report_section("teardown", "ipcluster", text)
                item.warn(IpclusterLeakWarning(text))
        finally:  # also when warnings are errors
            if failing:
                raise LeakError(_in_words(who, failing), [str(leak) for leak in failing])

    def _tell_run(self, session: pytest.Session, left: list[Leak]) -> None:
        """Tell of what the cluster has left when no test is there to fail: after Ctrl-C, or at the end by -x.

        Never by an exception: it would take the place of the run's summary.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("always", IpclusterLeakWarning)
            session.warn(IpclusterLeakWarning(_in_words("the cluster", left)))
        if any(map(self._fails, left)):
            session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED

    def _fails(self, leak: Leak) -> bool:
        return self.mode == "fail" and leak.kind in ("process", "folder")


class _Test:
    """What was there before one test, which processes it need not answer for, and those that it has left."""

    def __init__(self, before: Snapshot, excused: set[psutil.Process]) -> None:
        self.before = before
        self.excused = excused
        self.processes: list[Leak] = []

    def excuse(self, opened: Snapshot, started: Iterable[psutil.Process]) -> None:
        """Treat this as if it had been there before."""
        self.before += opened
        self.excused.update(started)


def _in_words(who: str, left: list[Leak]) -> str:
    advice = dict.fromkeys(_ADVICE.get(leak.kind, _ADVICE["thread"]) for leak in left)
    return "\n".join([f"{who} has left behind:", *(f"  {leak}" for leak in left), *advice])
