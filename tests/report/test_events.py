"""The time line can be waited on and holds nobody up; it keeps its newest events, and marks go on to mean the same."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
from waiting import SOON

from pytest_ipcluster.report import events as events_module
from pytest_ipcluster.report.events import Event, EventLog

KEPT = 100


def fits(event: Event) -> bool:
    return event.kind == "wanted"


def test_an_event_that_is_there_is_found_at_once_from_the_mark_on():
    log = EventLog()
    log.add("wanted", detail="before")
    mark = len(log)
    log.add("other")
    assert log.wait_for(fits, 0, since=mark) is None
    wanted = log.add("wanted", detail="after")
    assert log.wait_for(fits, 0, since=mark) is wanted


def test_an_event_that_comes_later_is_waited_for():
    log = EventLog()
    adding = threading.Thread(target=log.add, args=("wanted",))

    def then_adds(event: Event) -> bool:
        if event.kind == "other":
            adding.start()
        return fits(event)

    log.add("other")
    found = log.wait_for(then_adds, SOON)
    adding.join()
    assert found is log.since()[-1]


def test_nobody_who_adds_an_event_waits_for_the_one_who_looks_at_another():
    log = EventLog()

    def looks_for_long(event: Event) -> bool:
        adding.start()
        adding.join(SOON)
        return fits(event)

    adding = threading.Thread(target=log.add, args=("other",))
    log.add("wanted")
    assert log.wait_for(looks_for_long, SOON) is not None
    assert not adding.is_alive()
    assert [event.kind for event in log.since()] == ["wanted", "other"]


def test_what_came_before_time_was_up_is_looked_at_however_long_the_look_before_it_took(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(events_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    log = EventLog(clock=lambda: now[0])
    log.add("other")

    def looks_for_long(event: Event) -> bool:
        if event.kind == "other":
            log.add("wanted")
            now[0] += 100.0
        return fits(event)

    assert log.wait_for(looks_for_long, 1.0) is log.since()[-1]


@pytest.fixture
def log():
    """A log of which the oldest events have been dropped several times; each says which it is."""
    log = EventLog(kept=KEPT)
    for number in range(10 * KEPT):
        log.add("missed", slot=number)
    return log


def slots(events):
    return [event.slot for event in events]


def test_a_log_keeps_the_newest_events_and_not_many_more(log):
    kept = slots(log.since())
    assert KEPT <= len(kept) <= KEPT + KEPT // 10
    assert kept == list(range(10 * KEPT - len(kept), 10 * KEPT))


def test_a_log_without_more_than_it_keeps_is_whole():
    log = EventLog(kept=KEPT)
    for number in range(KEPT):
        log.add("missed", slot=number)
    assert slots(log.since()) == list(range(KEPT))


def test_a_mark_means_the_same_when_older_events_are_dropped_after_it(log):
    mark = len(log)
    for number in range(KEPT // 2):
        log.add("failed", slot=number)
    assert slots(log.since(mark)) == list(range(KEPT // 2))
    assert len(log) == mark + KEPT // 2


def test_from_a_mark_whose_events_are_dropped_all_that_are_kept_are_given(log):
    assert log.since(5) == log.since()


def test_what_is_held_is_kept_until_it_is_released(log):
    mark = log.hold()
    for number in range(3 * KEPT):
        log.add("failed", slot=number)
    assert slots(log.since(mark)) == list(range(3 * KEPT))
    log.release(mark)
    log.release(mark)
    log.add("failed")
    assert len(log.since(mark)) == KEPT


def test_who_reads_on_reads_every_event_once_at_most(log):
    _, mark = log.read()
    for _ in range(3 * KEPT):
        log.add("failed")
    new, mark = log.read(mark)
    assert len(new) >= KEPT
    assert log.read(mark) == ([], mark)


def test_who_waits_sees_what_comes_after_others_were_dropped(log):
    found, mark = [], len(log)
    waiter = threading.Thread(
        target=lambda: found.append(log.wait_for(lambda event: event.kind == "failed", SOON, since=mark))
    )
    waiter.start()
    for _ in range(2 * KEPT):
        log.add("missed")
    event = log.add("failed")
    waiter.join(SOON)
    assert found == [event]
