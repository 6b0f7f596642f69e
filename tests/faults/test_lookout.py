"""For how long a process has been stopped, as looks tell it."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace

import psutil
import pytest

from pytest_ipcluster.faults.lookout import _LONGEST_STEP, _STOPPED_FOR, Lookout, _Watched
from pytest_ipcluster.faults.vigil import POLL


@pytest.fixture
def slots():
    """The slots of a cluster whose engines the test sets; this very process is every one of them."""
    return SimpleNamespace(idents=["a", "b"])


@pytest.fixture
def lookout(slots):
    me = psutil.Process()
    slots.engines = lambda: tuple(
        SimpleNamespace(ident=ident, slot=slot, process=me, nanny=None) for slot, ident in enumerate(slots.idents)
    )
    runtime = SimpleNamespace(owns=lambda _: True)
    return Lookout(SimpleNamespace(members=(), slots=slots, runtime=runtime))


def test_engines_that_were_replaced_are_followed_until_nobody_waits_for_them(lookout, slots):
    slots.idents = ["a", "c"]
    assert lookout.look().places.keys() == {"a", "b", "c"}
    lookout.forget_replaced()
    assert lookout.look().places.keys() == {"a", "c"}


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
    assert [down.since for down in looks] == [0.0] * 3


def test_time_in_which_nobody_looked_at_the_dead_counts_little(watched):
    watched._pulse.now = "dead"
    assert [watched.look(now).watched for now in (10.0, 10.5, 3600.0)] == [0.0, _LONGEST_STEP, 2 * _LONGEST_STEP]


def test_time_in_which_nobody_had_to_look_at_the_dead_counts(watched):
    watched._pulse.now = "dead"
    assert watched.look(10.0).watched == 0.0
    assert watched.look(3600.0, rested=True).watched == 3590.0
