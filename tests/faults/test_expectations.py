"""Which failures satisfy an expectation, and what is said of those that do not."""

from __future__ import annotations

import pytest

from pytest_ipcluster.faults.expectations import Expectation, check_cause
from pytest_ipcluster.faults.kinds import HeartFailure


def failed(slot: int = 1, at: float = 10.3, cause: str = "killed") -> HeartFailure:
    return HeartFailure(
        slot=slot, heart=b"heart", cause=cause, signal=9, injected_at=10.0, last_pong=9.9, verdict_at=at, misses=3
    )


def complaint(*failures: HeartFailure, slot: int | None = 1, cause: str | None = None, within: float = 2.0) -> str:
    return Expectation(slot, cause, within, since=10.0).complaint(failures)


def test_one_failure_in_time_is_what_was_expected():
    assert complaint(failed()) == ""


def test_no_failure_is_a_complaint():
    assert complaint() == "no failure handler fired for slot 1 within 2 s"


def test_a_failure_of_another_slot_does_not_count():
    assert complaint(failed(slot=0)) == "no failure handler fired for slot 1 within 2 s"


def test_a_failure_from_before_does_not_count():
    assert complaint(failed(at=9.0)) == "no failure handler fired for slot 1 within 2 s"


def test_two_failures_are_one_too_many():
    assert complaint(failed(), failed(at=11.0)) == "the failure handlers fired 2 times for slot 1, not once"


def test_a_late_failure_is_told_with_its_time():
    assert complaint(failed(at=12.5)) == "the failure handlers for slot 1 fired after 2.500 s, not within 2 s"


def test_another_cause_is_told():
    expected = "the cause of the failure of slot 1 was 'killed', not 'missed heartbeats'"
    assert complaint(failed(), cause="missed heartbeats") == expected


def test_any_slot_will_do_when_none_is_named():
    assert complaint(failed(slot=7), slot=None) == ""
    assert complaint(slot=None) == "no failure handler fired for any slot within 2 s"


def test_an_unknown_cause_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="cause 'boredom': expected one of 'killed', 'exited', 'missed heartbeats'"):
        check_cause("boredom")
