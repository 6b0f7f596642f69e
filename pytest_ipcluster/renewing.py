"""Every test that uses the cluster finds all its engines there, and is told what that took."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest

from pytest_ipcluster.settings import MARKER, Shape
from pytest_ipcluster.stash import CLOCK, KEEPER
from pytest_ipcluster.telling import tell

if TYPE_CHECKING:
    from pytest_ipcluster.report.events import EventLog
    from pytest_ipcluster.report.sections import Note

__all__ = ["Renewing"]

#: The fixture whose use means that the test uses the cluster; it is called as the marker is.
_FIXTURE = MARKER


class Renewing:
    """The hooks around the phases of every test. One object for a run."""

    def __init__(self) -> None:
        self._log: EventLog | None = None
        self._read = 0
        self._before = ""  # the last test that used the cluster
        self._late: list[Note] = []  # what was done after it

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Repair the running cluster before any fixture of the test is set up; the test errors when that fails.

        This comes after those who are to be first, who may skip the test, and before pytest's own, which sets it up.
        """
        if _uses_cluster(item):
            for note in self._late:
                tell(item, note, again=True)
            self._late = []
            _renew(item)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        """Allow the teardown a repair of its own, which belongs to what this test did."""
        keeper = item.config.stash.get(KEEPER, None)
        if keeper is not None:
            keeper.allow_restart()
        if _uses_cluster(item):
            self._before = item.nodeid

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Tell in the phase's report what was done in it; what was done in a teardown also in the next test's setup."""
        notes = self._new_notes(item.config, after="" if call.when == "call" else self._before)
        for note in notes:
            tell(item, note)
        if call.when == "teardown":
            self._late += notes
        return (yield)

    def _new_notes(self, config: pytest.Config, after: str) -> list[Note]:
        keeper = config.stash.get(KEEPER, None)
        if keeper is not None and keeper.events is not self._log:
            self._log, self._read = keeper.events, 0
        if self._log is None:
            return []
        from pytest_ipcluster.report.sections import notes_of

        new, self._read = self._log.read(self._read)
        return notes_of(new, after)


def _uses_cluster(item: pytest.Item) -> bool:
    return _FIXTURE in getattr(item, "fixturenames", ())


def _renew(item: pytest.Item) -> None:
    keeper = item.config.stash.get(KEEPER, None)
    if keeper is None:
        return
    from pytest_ipcluster.errors import ClusterError

    callspec = getattr(item, "callspec", None)
    shape = callspec.params.get(_FIXTURE) if callspec is not None else None
    keeper.allow_restart()
    try:
        with item.config.stash.get(CLOCK, nullcontext)():  # it has limits of its own
            keeper.renew(shape if isinstance(shape, Shape) else None)
    except ClusterError as error:
        # The message says it all; how the plugin came to know would only bury it.
        raise error.with_traceback(None) from None
