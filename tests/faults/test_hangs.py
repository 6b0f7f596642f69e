"""The hang catalogue: what waits for ever on plain ipyparallel ends as a named error, and nothing else changes.

``benchmarks/hang_catalogue.py`` tries the same rows without us, and shows that they hang.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from catalogue import ROWS, Clusters

import pytest_ipcluster
from pytest_ipcluster import ClusterLostError, Deadman

#: Seconds after which a call is taken to hang, with us; what comes takes a tenth of it.
CAP = 10.0

#: How many looks a death or a stop may take to end a call: there are under two seconds of them.
LOOKS = 60


@pytest.fixture(scope="module")
def looks() -> list[float]:
    """When deadmen have looked."""
    return []


@pytest.fixture(scope="module")
def clusters(looks: list[float]) -> Iterator[Clusters]:
    class Counted(Deadman):
        def _look(self, **how: bool) -> None:
            looks.append(time.monotonic())
            super()._look(**how)

    clusters = Clusters(CAP, Counted)
    yield clusters
    clusters.stop()


@pytest.mark.parametrize("row", [row for row in ROWS if row.hangs], ids=str)
def test_what_would_wait_for_ever_ends_as_a_named_error(clusters, looks, row):
    outcome = clusters.outcome(row)
    assert outcome.told == row.expected
    assert isinstance(outcome.error, getattr(pytest_ipcluster, row.expected))
    assert sum(outcome.since < look <= outcome.since + outcome.seconds for look in looks) <= LOOKS


@pytest.mark.parametrize("row", [row for row in ROWS if not row.hangs], ids=str)
def test_what_does_not_hang_ends_as_it_does_without_us(clusters, row):
    outcome = clusters.outcome(row)
    assert outcome.told == row.expected
    assert not isinstance(outcome.error, ClusterLostError)


def test_there_are_rows_enough():
    assert sum(row.hangs for row in ROWS) >= 40
    assert len(ROWS) == len({str(row) for row in ROWS})
