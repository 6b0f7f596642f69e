"""Faults on processes with a heart: what is recorded, what is asserted, and what is undone."""

from __future__ import annotations

import itertools
import signal
import threading

import pytest
from waiting import MISSES

from pytest_ipcluster.cluster.processes import is_alive, is_paused, send_signal, wait_gone
from pytest_ipcluster.errors import FaultError
from pytest_ipcluster.faults import recorder
from pytest_ipcluster.faults.injector import FaultInjector

# Any limit that the slowest machine keeps; where time matters, a test counts beats.
SOON = 30.0


def test_a_killed_engine_fires_the_handlers_once(injector):
    with injector.expect(1, cause="killed", within=SOON) as expected:
        injector.kill(1)
    assert expected.failure.slot == 1
    assert expected.failure.heart == b"heart-1"
    assert expected.failure.signal == 9
    injector.assert_fired(1, cause="killed")
    injector.assert_fired(times=1)


def test_the_verdict_comes_after_so_many_missed_beats(injector, hearts):
    failure = injector.kill(0).wait(SOON)
    assert failure.misses == hearts.monitor.misses == MISSES


def test_times_are_in_order(injector):
    failure = injector.kill(0).wait(SOON)
    fault = injector.faults[0]
    assert fault.declared_at <= fault.injected_at <= failure.verdict_at
    assert failure.last_pong <= failure.verdict_at
    assert failure.injected_at == fault.injected_at


def test_a_terminated_process_was_killed_where_nothing_in_it_takes_the_signal(injector):
    failure = injector.terminate(2).wait(SOON)
    assert (failure.cause, failure.signal, failure.exit_code) == ("killed", 15, None)


def test_a_paused_engine_has_missed_heartbeats_and_lives(injector, cluster):
    with injector.expect(slot=0, cause="missed heartbeats", within=SOON):
        injector.pause(0)
    assert is_paused(cluster.engines[0].process)


def test_a_resumed_engine_is_heard_again(injector, log):
    injector.pause(0).wait(SOON)
    mark = len(log)
    injector.resume(0)
    assert log.wait_for(lambda event: event.kind == "returned" and event.heart == b"heart-0", SOON, since=mark)
    assert injector.faults[0].undone_at is not None


def test_a_second_death_of_the_same_heart_is_a_second_failure(injector, log):
    injector.pause(0).wait(SOON)
    mark = len(log)
    injector.resume(0)
    assert log.wait_for(lambda event: event.kind == "returned", SOON, since=mark)
    injector.kill(0).wait(SOON)
    assert [failure.cause for failure in injector.failures] == ["missed heartbeats", "killed"]


def test_after_an_expected_death_the_hub_has_dropped_the_engine(injector, cluster):
    with injector.expect(1, cause="killed", within=SOON):
        injector.kill(1)
    with injector.expect(0, cause="missed heartbeats", within=SOON):
        injector.pause(0)
    assert cluster.dropped == [cluster.engines[1].heart.decode()]  # the paused one is still registered


def test_a_muted_engine_misses_heartbeats_and_works(injector, cluster, log):
    with injector.expect(2, cause="missed heartbeats", within=SOON):
        fault = injector.mute(2)
    assert not is_paused(cluster.engines[2].process)
    mark = len(log)
    injector.unmute(2)
    assert fault.undone_at is not None
    assert log.wait_for(lambda event: event.kind == "returned" and event.heart == b"heart-2", SOON, since=mark)


def test_a_muted_engine_is_heard_again_at_the_end_of_the_block(injector, log):
    with injector.mute([0, 1]) as fault:
        fault.wait_all(SOON)
        mark = len(log)
    for heart in (b"heart-0", b"heart-1"):
        assert log.wait_for(lambda e, heart=heart: e.kind == "returned" and e.heart == heart, SOON, since=mark)


def test_a_muted_engine_that_dies_has_died(injector):
    injector.mute(1).wait(SOON)
    injector.unmute(1)
    with injector.mute(0):
        failure = injector.kill(0).wait(SOON)
    assert failure.cause == "killed"


@pytest.mark.parametrize("name", ["isolate", "reset", "half_open", "cut", "heal"])
def test_without_a_network_of_its_own_an_engine_cannot_be_cut_off(injector, name):
    with pytest.raises(FaultError, match=r"no networks of their own: mark the test ipcluster\(network=True\)"):
        getattr(injector, name)(0)
    with pytest.raises(FaultError, match="no networks of their own"):
        injector.delay(0, 0.1)
    assert injector.faults == ()


def test_several_engines_can_be_hit_at_once(injector):
    fault = injector.kill([0, 2])
    assert [failure.slot for failure in fault.wait_all(SOON)] == [0, 2]
    injector.assert_not_fired(1)


def test_all_engines_can_be_hit_at_once(injector):
    fault = injector.kill("all")
    assert fault.slots == (0, 1, 2)
    assert len(fault.wait_all(SOON)) == 3


def test_the_end_of_the_block_waits_for_handlers_that_were_added_later(injector, hearts):
    may_go, done = threading.Event(), []
    hearts.monitor.add_heart_failure_handler(lambda heart: (may_go.wait(SOON), done.append(heart)))
    threading.Timer(0.2, may_go.set).start()
    with injector.expect(1, within=SOON):
        injector.kill(1)
    assert done == [b"heart-1"]


def test_a_handler_that_raises_fails_the_expectation_with_its_own_exception(injector, hearts):
    def broken(heart):
        raise LookupError(heart)

    hearts.monitor.add_heart_failure_handler(broken)
    with pytest.raises(LookupError, match="heart-1"), injector.expect(1, within=SOON):
        injector.kill(1)


def test_handlers_that_raise_are_told_together(injector, hearts):
    def broken(heart):
        raise LookupError(heart)

    def broken_too(heart):
        raise ArithmeticError(heart)

    hearts.monitor.add_heart_failure_handler(broken)
    hearts.monitor.add_heart_failure_handler(broken_too)
    with pytest.raises(ExceptionGroup, match="heart handlers raised") as caught, injector.expect(1, within=SOON):
        injector.kill(1)
    assert [type(error) for error in caught.value.exceptions] == [LookupError, ArithmeticError]


def test_a_failure_that_does_not_come_is_told_with_the_history(injector):
    with pytest.raises(AssertionError) as caught, injector.expect(0, within=0.1):
        injector.resume(2)
    assert "no failure handler fired for slot 0 within 0.1 s" in str(caught.value)
    assert "what happened to the hearts:" in str(caught.value)
    assert "slot 2" in str(caught.value)
    assert "resume pid" in str(caught.value)


def test_the_history_tells_a_death_in_order(injector):
    injector.kill(1).wait(SOON)
    told = [event.kind for event in injector.events if event.slot == 1]
    # It may have missed a beat before, and may take a while to close its connections.
    assert [kind for kind in told if kind not in ("missed", "suspected")] == ["fault", "verdict", "failed"]
    assert told[-2:] == ["verdict", "failed"]
    assert told.count("missed") >= MISSES


@pytest.mark.parametrize("declared", [True, False])
def test_who_is_long_in_dying_was_killed_and_has_not_missed_heartbeats(injector, cluster, monkeypatch, declared):
    """The first look at it, when it is judged, still sees it alive."""
    victim, looks = cluster.engines[1].process, itertools.count()
    monkeypatch.setattr(recorder, "is_alive", lambda process: next(looks) == 0 or is_alive(process))
    monkeypatch.setattr(recorder, "is_doomed", victim.__eq__)
    if declared:
        failure = injector.kill(1).wait(SOON)
    else:
        with injector.expect(1, within=SOON) as expected:
            send_signal(victim, signal.SIGKILL)
        failure = expected.failure
    assert (failure.cause, failure.signal) == ("killed", signal.SIGKILL)


def test_an_exception_in_the_block_is_not_covered_up(injector):
    with pytest.raises(ZeroDivisionError), injector.expect(1, within=SOON):
        raise ZeroDivisionError


def test_a_wrong_cause_is_told(injector):
    told = pytest.raises(AssertionError, match="was 'killed', not 'missed heartbeats'")
    with told, injector.expect(1, cause="missed heartbeats", within=SOON):
        injector.kill(1)


@pytest.mark.parametrize("slot", [3, -1, "all", "one"])
def test_expecting_a_slot_that_is_none_is_refused_at_once(injector, slot):
    with pytest.raises(ValueError, match=f"slot {slot!r}: expected a number from 0 to 2"):
        injector.expect(slot).__enter__()


def test_assertions_about_what_did_not_happen_fail_with_the_history(injector):
    injector.kill(1).wait(SOON)
    with pytest.raises(AssertionError, match=r"(?s)fired 1 times for slot 1, not 0.*verdict"):
        injector.assert_not_fired(1)
    with pytest.raises(AssertionError, match="fired 1 times, not 2"):
        injector.assert_fired(times=2)
    with pytest.raises(AssertionError, match="fired 0 times for slot 1 because of 'exited', not 1"):
        injector.assert_fired(1, cause="exited")


def test_a_dead_engine_cannot_be_hurt_again(injector, cluster):
    injector.kill(1)
    wait_gone([cluster.engines[1].process], SOON)
    with pytest.raises(FaultError, match=r"cannot pause slot 1: its process .* is dead already"):
        injector.pause(1)


def test_a_process_that_is_not_the_clusters_is_not_touched(injector, cluster):
    cluster.strangers.add(cluster.engines[1].process)
    with pytest.raises(FaultError, match=r"refusing to kill pid \d+ in slot 1: it is not of this cluster"):
        injector.kill([0, 1])
    assert all(is_alive(engine.process) for engine in cluster.engines)
    assert injector.faults == ()


def test_a_system_that_cannot_pause_says_so(injector, monkeypatch):
    monkeypatch.delattr("signal.SIGSTOP")
    with pytest.raises(FaultError, match="this system has no SIGSTOP"):
        injector.pause(0)


def test_closing_resumes_what_is_paused(injector, cluster, log):
    injector.pause([0, 1])
    injector.resume(1)
    injector.close()
    assert all(fault.undone_at is not None for fault in injector.faults if fault.kind == "pause")
    assert [event.slot for event in log.since() if event.kind == "undone"] == [0]  # the other one was resumed
    assert not any(is_paused(engine.process) for engine in cluster.engines)


def test_closing_sees_off_what_was_told_to_die(injector, cluster):
    injector.pause(0)
    injector.terminate(0)  # a paused process does not hear it
    injector.close()
    assert not is_alive(cluster.engines[0].process)


@pytest.fixture
def allowed(injector, monkeypatch):
    """The slots of the engines that may die, and whether each was still alive when that was told."""
    told = []
    monkeypatch.setattr(injector, "_allow", lambda engine: told.append((engine.slot, is_alive(engine.process))))
    return told


def test_what_is_told_to_die_may_die_before_it_does(injector, allowed):
    injector.kill(0)
    injector.terminate([1, 2])
    assert allowed == [(0, True), (1, True), (2, True)]


def test_what_is_paused_may_not_die(injector, allowed):
    with injector.expect(0, within=SOON):
        injector.pause(0)
    injector.resume(0)
    assert allowed == []


def test_what_died_as_expected_may_have_died(injector, cluster, allowed):
    with injector.expect(1, within=SOON):
        cluster.engines[1].process.kill()
    assert allowed == [(1, False)]


def test_what_died_though_a_pause_was_expected_may_not(injector, cluster, allowed):
    with pytest.raises(AssertionError), injector.expect(1, cause="missed heartbeats", within=SOON):
        cluster.engines[1].process.kill()
    assert allowed == []


def test_a_closed_injector_hears_nothing_more(injector, cluster, log):
    injector.close()
    mark = len(log)
    cluster.engines[0].process.kill()
    assert log.wait_for(lambda event: event.kind == "failed", SOON, since=mark)
    assert injector.failures == ()


def test_what_an_earlier_test_did_is_not_in_this_ones_history(injector, cluster, hearts, log):
    injector.kill(1).wait(SOON)
    injector.close()
    later = FaultInjector(cluster, hearts, log)
    assert later.events == ()
    later.assert_not_fired()
    later.close()


def test_what_happens_to_the_hearts_is_held_in_the_log_until_the_injector_is_closed(injector, log):
    assert log._held == [injector._recorder._begun]
    injector.close()
    assert log._held == []
