"""The time line that everything writes to can be waited on, and holds nobody up."""

from __future__ import annotations

import threading
from types import SimpleNamespace

from waiting import SOON

from pytest_ipcluster.report import events as events_module
from pytest_ipcluster.report.events import Event, EventLog


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
