"""What the plugin did to the cluster, in words."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from pytest_ipcluster.report.events import EventLog, describe
from pytest_ipcluster.report.sections import Note, notes_of, section, summary

DEAD, BUSY = "the engine was dead", "the engine was still busy"


@pytest.fixture
def log():
    log = EventLog(clock=lambda: 10.0)
    log.add("new heart", heart=b"a")
    log.add("repaired", slot=1, detail=DEAD, seconds=1.25)
    log.add("repaired", slot=2, detail=DEAD)
    log.add("missed", heart=b"a")
    log.add("retried", detail="a port was lost")
    log.add("restarted", detail="the controller has ended\nits log", seconds=2.5)
    return log


def test_repairs_restarts_and_retries_are_told_and_nothing_else(log):
    assert section(notes_of(log.since(), "test_a")).splitlines() == [
        "repaired slot 1 in 1.25 s, after test_a: the engine was dead",
        "repaired slot 2, after test_a: the engine was dead",
        "retried: a port was lost",
        "restarted in 2.50 s, after test_a: the controller has ended",
        "its log",
    ]


def test_where_no_test_came_before_none_is_told():
    assert str(Note("repaired", DEAD, slot=0, seconds=1.0)) == "repaired slot 0 in 1.00 s: the engine was dead"


def test_a_note_travels_as_plain_values(log):
    notes = notes_of(log.since(), "test_a")
    assert [Note(**values) for values in json.loads(json.dumps([asdict(note) for note in notes]))] == notes


def test_a_summary_has_a_line_for_each_kind_and_reason(log):
    told = [("test_b", note) for note in notes_of(log.since(), "test_a")]
    told += [("test_c", Note("repaired", BUSY, slot=0, seconds=3.0)), ("test_d", Note("repaired", DEAD, 1, 0.5))]
    assert summary(told) == [
        "repaired 3 times in 1.75 s: the engine was dead",
        "retried once: a port was lost",
        "restarted once in 2.50 s: the controller has ended",
        "repaired once in 3.00 s: the engine was still busy",
    ]


def test_a_verbose_summary_has_a_line_for_each(log):
    told = [("test_b", note) for note in notes_of(log.since(), "test_a")]
    assert summary(told, verbose=True) == [
        "test_b: repaired slot 1 in 1.25 s, after test_a: the engine was dead",
        "test_b: repaired slot 2, after test_a: the engine was dead",
        "test_b: retried: a port was lost",
        "test_b: restarted in 2.50 s, after test_a: the controller has ended",
    ]


def test_the_history_tells_how_long_it_took(log):
    assert "the engine was dead; took 1.25 s" in describe(log.since())
