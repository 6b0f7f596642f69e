"""Getting along with pytest-timeout: what the cluster takes is not charged to a test, and no test is without limit.

pytest-timeout gives one test at a time a timer, by hooks that it offers to other plugins. What is done to the cluster
on behalf of a test stops that timer and lets it go on afterwards. Shortly before a timer ends, whoever can say what the
test waits for is given the chance to. The methods, ``func_only``, markers and the detection
of debuggers stay pytest-timeout's own. Nothing here reads its private names but one: the name of its timer's thread.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_timeout import Settings

__all__ = ["TimeLimits"]

#: Seconds that a timer is set to at least: one that is set to 0 never ends.
_LEAST = 0.001

#: Seconds before the end of a timer at which calls that wait are ended, and the most of a short limit that this takes.
_MARGIN, _SHARE = 2.0, 0.25

#: The title of the section in which a test that has run out of time tells where its limit came from.
_TITLE = "time limit"

#: Whether a test has its limit from here: ``item.stash[_LIMITED]``.
_LIMITED = pytest.StashKey[bool]()


class TimeLimits:
    """Stops the running test's timer while the cluster is worked on, and gives cluster tests a limit by default.

    ``limit`` is in seconds, 0 is none; ``source`` tells where it was given. ``clock`` must be that of the timers.
    ``running`` is the timer that runs already: its test, its settings, and since when. ``remind`` is told when whatever
    waits should end, since the timer soon will (None when there is no timer), and how to ask whether that holds.
    """

    def __init__(
        self,
        limit: float,
        source: str,
        clock: Callable[[], float] = time.monotonic,
        running: tuple[pytest.Item, Settings, float] | None = None,
        remind: Callable[[float | None, Callable[[], bool]], object] = lambda *_: None,
    ) -> None:
        self._limit = limit
        self._told = (
            f"The limit of {limit:g} s is that of --ipcluster-timeout ({source}), for tests that use the cluster and "
            "have none of their own. To give this test its own: @pytest.mark.timeout(seconds)."
        )
        self._clock = clock
        self._remind = remind
        self._timer = None if running is None else _Timer(*running)

    # -- the timer of the running test -------------------------------------------------------------

    @pytest.hookimpl(wrapper=True)
    def pytest_timeout_set_timer(self, item: pytest.Item, settings: Settings) -> Generator[None, object, object]:
        """Know which timer runs, since before it does: when it ends it has run out by this clock as well."""
        self._timer = _Timer(item, settings, self._clock())
        self._remind(self._timer.reminder, lambda: _holds(settings))
        result = yield
        if item.stash.get(_LIMITED, False):
            self._announce_end(item, settings)
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_timeout_cancel_timer(self, item: pytest.Item) -> Generator[None, object, object]:
        """Know that the timer is cancelled: at the test's end or, by pytest-timeout up to 2.4, when the test fails."""
        result = yield
        if self._timer is not None and self._timer.item is item and self._timer.until is None:
            self._timer.until = self._clock()
            self._remind(None, _never)
        return result

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop the running test's timer for the block; afterwards it has as long to go as before.

        Blocks may be nested. Where no timer runs nothing is done. Nor is it when the time is up already: then the timer
        has ended before, without effect because somebody is debugging, and must not end again.
        """
        timer = self._timer
        left = 0.0 if timer is None or timer.until is not None else timer.left(self._clock())
        if timer is None or left <= 0:
            yield
            return
        hook = timer.item.config.hook
        hook.pytest_timeout_cancel_timer(item=timer.item)
        try:
            yield
        finally:
            rest = _Rest(max(left, _LEAST), whole=str(timer.settings.timeout))
            hook.pytest_timeout_set_timer(item=timer.item, settings=timer.settings._replace(timeout=rest))

    # -- the limit of tests that have none ---------------------------------------------------------

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Give each test that uses the cluster the default limit, unless it has one or all tests have.

        Comes last: after those who give tests limits in this same hook, and after -k and -m, to which the names of
        markers matter.
        """
        if self._limit == 0 or _is_given(config):
            return
        for item in items:
            marker = item.get_closest_marker("timeout")
            if "ipcluster" in getattr(item, "fixturenames", ()) and not (marker and _has_limit(marker)):
                keywords = dict(marker.kwargs) if marker else {}
                item.add_marker(pytest.mark.timeout(self._limit, **keywords), append=False)
                item.stash[_LIMITED] = True

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Have a test that its default limit has ended tell where the limit came from, once."""
        report = yield
        timer = self._timer
        if report.failed and timer is not None and timer.item is item and timer.left(self._clock()) <= 0:
            self._timer = None
            if item.stash.get(_LIMITED, False):
                report.sections.append((_TITLE, self._told))
        return report

    def _announce_end(self, item: pytest.Item, settings: Settings) -> None:
        """Have pytest-timeout's method "thread", which ends the process, tell first where the limit came from."""
        for timer in threading.enumerate():
            if isinstance(timer, threading.Timer) and timer.name == f"pytest_timeout {item.nodeid}":
                timer.function = self._telling(item, settings, timer.function)

    def _telling(self, item: pytest.Item, settings: Settings, function: Callable[..., object]) -> Callable[..., object]:
        def tell(*args: object) -> None:
            try:
                if _holds(settings):
                    _write(item.config, self._told)
            finally:
                function(*args)

        return tell


@dataclass(slots=True)
class _Timer:
    """A timer of pytest-timeout: set for this test at ``since``, and cancelled at ``until``."""

    item: pytest.Item
    settings: Settings
    since: float
    until: float | None = None

    def left(self, now: float) -> float:
        """Return the seconds that are left of it, or were when it was cancelled; 0 or less when it has ended before."""
        return float(self.settings.timeout) - ((now if self.until is None else self.until) - self.since)

    @property
    def reminder(self) -> float:
        """The time shortly before its end."""
        limit = float(self.settings.timeout)
        return self.since + limit - min(_MARGIN, limit * _SHARE)


class _Rest(float):
    """What is left of a limit, in seconds. It reads as the whole limit, which pytest-timeout tells when it is up."""

    _whole: str

    def __new__(cls, seconds: float, *, whole: str) -> _Rest:
        rest = super().__new__(cls, seconds)
        rest._whole = whole
        return rest

    def __str__(self) -> str:
        return self._whole


def _is_given(config: pytest.Config) -> bool:
    """Tell whether a limit for all tests is given, or none by a 0, in one of the three places of pytest-timeout."""
    places = config.getoption("timeout"), os.environ.get("PYTEST_TIMEOUT"), config.getini("timeout") or None
    return any(place is not None for place in places)


def _holds(settings: Settings) -> bool:
    """Tell whether a timer with these settings ends its test: not while somebody is debugging."""
    from pytest_timeout import is_debugging

    return bool(settings.disable_debugger_detection or not is_debugging())


def _never() -> bool:
    return False


def _has_limit(marker: pytest.Mark) -> bool:
    """Tell whether a timeout marker gives a limit, not only a method. A marker without anything is a mistake, kept."""
    return bool(marker.args) or "timeout" in marker.kwargs or not marker.kwargs


def _write(config: pytest.Config, line: str) -> None:
    """Write a line to the terminal from a timer's thread, in the middle of a test."""
    capture = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else nullcontext():
        terminal = config.get_terminal_writer()
        terminal.line()
        terminal.line(line, flush=True)
