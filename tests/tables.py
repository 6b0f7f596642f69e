"""Tables that tests fill row by row, printed at the end of the run: also when pytest-xdist spreads the tests.

A test adds a row with ``record_property(title, row)``, where ``row`` maps column titles to texts. Rows travel in the
test's report, so they reach the process that prints.
"""

from __future__ import annotations

import pytest


def write_tables(reporter: pytest.TerminalReporter) -> None:
    """Print every table, rows in the order in which their tests ended."""
    for title, rows in _tables(reporter).items():
        reporter.section(title)
        columns = list(rows[0])
        widths = [max(len(column), *(len(row[column]) for row in rows)) for column in columns]
        for cells in (columns, *([row[column] for column in columns] for row in rows)):
            reporter.line("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())


def _tables(reporter: pytest.TerminalReporter) -> dict[str, list[dict[str, str]]]:
    tables: dict[str, list[dict[str, str]]] = {}
    for report in (report for reports in reporter.stats.values() for report in reports):
        if getattr(report, "when", None) == "call":
            for title, row in report.user_properties:
                if isinstance(row, dict):
                    tables.setdefault(title, []).append(row)
    return tables
