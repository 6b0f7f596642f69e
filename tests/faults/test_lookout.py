"""For how long a process has been stopped, as looks tell it."""

from __future__ import annotations

from itertools import count, pairwise
from types import SimpleNamespace

import pytest

from pytest_ipcluster.faults.lookout import _LONGEST_STEP, _STOPPED_FOR, _Watched
from pytest_ipcluster.faults.vigil import POLL


@pytest.fixture
def watched():
    """Somebody whose state the test sets."""
    pulse = SimpleNamespace(now="running")
    pulse.state = lambda: pulse.now
    return _Watched("engine", 0, SimpleNamespace(pid=1), pulse)


def test_who_is_stopped_for_long_enough_is_down_since_that_was_first_seen(watched):
    assert watched.look(100.0) is None
    watched._pulse.now = "paused"
    times = [101.0 + number * POLL for number in range(100)]
    found = [watched.look(now) for now in times]
    first = found.index(next(filter(None, found)))
    assert times[first] - times[0] == pytest.approx(_STOPPED_FOR, abs=2 * POLL)
    assert found[first].stopped
    assert found[first].since == 101.0
    assert found[first].well == 100.0


def test_time_in_which_nobody_looked_counts_little(watched):
    watched._pulse.now = "paused"
    times = [now * 3600.0 for now in range(1, 50)]
    found = next(number for number, now in enumerate(times) if watched.look(now) is not None)
    assert found == pytest.approx(_STOPPED_FOR / _LONGEST_STEP, abs=1)


def test_who_goes_on_and_stops_again_has_his_time_again(watched):
    clock = count(step=POLL)
    for state, looks in [("paused", 20), ("running", 1), ("paused", 20)]:
        watched._pulse.now = state
        assert [watched.look(now) for now, _ in zip(clock, range(looks), strict=False)] == [None] * looks


def test_who_is_dead_stays_dead(watched):
    watched._pulse.now = "dead"
    looks = [watched.look(float(now)) for now in range(3)]
    assert all(one is other is not None for one, other in pairwise(looks))
