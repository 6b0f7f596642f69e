"""Telling the user what the plugin did: a section "ipcluster" in a test's report, a block "ipcluster" at the end.

Notes travel to the end of the run with the reports of their tests, which is how they come out of the workers of
pytest-xdist.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import asdict
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_ipcluster.report.sections import Note

__all__ = ["Telling", "tell"]

_TITLE = "ipcluster"

#: What is to be told in the next report of a test: each note, and whether it counts at the end of the run.
_WAITING = pytest.StashKey[list[tuple["Note", bool]]]()

#: The attribute of a report that carries its notes, as plain values.
_CARRIED = "ipcluster_notes"


def tell(item: pytest.Item, note: Note, *, again: bool = False) -> None:
    """Tell this in the test's next report: in its section "ipcluster" and, unless ``again``, at the end of the run.

    The next report is that of the phase (setup, call or teardown) that is going on.
    """
    item.stash.setdefault(_WAITING, []).append((note, not again))


class Telling:
    """The hooks that put the notes where the user sees them. One object for a run."""

    def __init__(self) -> None:
        self._told: list[tuple[str, Note]] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Add what waits as a section, and give it to the report to carry."""
        waiting = item.stash.get(_WAITING, [])
        if not waiting:
            return (yield)
        from pytest_ipcluster.report.sections import section

        del item.stash[_WAITING]
        item.add_report_section(call.when, _TITLE, section(note for note, _ in waiting))
        report = yield
        setattr(report, _CARRIED, [asdict(note) for note, counts in waiting if counts])
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect what reports carry, also those of other processes."""
        if carried := getattr(report, _CARRIED, None):
            from pytest_ipcluster.report.sections import Note

            self._told += [(report.nodeid, Note(**values)) for values in carried]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
        """Tell at the end of the run what was done in all; nothing when nothing was."""
        if self._told:
            from pytest_ipcluster.report.sections import summary

            terminalreporter.section(_TITLE)
            for line in summary(self._told, verbose=config.get_verbosity() > 0):
                terminalreporter.line(line)
