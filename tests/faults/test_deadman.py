"""The deadman on a real cluster: what it must not do, what it says, and what it does when ipyparallel has changed."""

from __future__ import annotations

import os
import signal
import time
import warnings
from types import SimpleNamespace

import ipyparallel
import pytest
from catalogue import SOON, connected, hold, new_cluster, victims
from pauses import stopped
from waiting import until

from pytest_ipcluster import (
    CallOverdueError,
    ClusterLostError,
    ControllerLost,
    Deadman,
    EngineLost,
    SchedulerLost,
)
from pytest_ipcluster.cluster.processes import send_signal, wait_gone
from pytest_ipcluster.cluster.stacks import read_stacks
from pytest_ipcluster.faults import overdue
from pytest_ipcluster.faults.deadman import missing_names
from pytest_ipcluster.faults.reach import DIRECT, Call, Down, Sight
from pytest_ipcluster.faults.vigil import POLL

# A search that takes years, in C, and never lets another thread have the interpreter.
GIL = "import re; re.match('(a+)+$', 'a' * 60 + 'b')"


def looks(deadman: Deadman, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list to which every look is added from now on."""
    lookout, found = deadman._lookout, []
    plain = lookout.look
    monkeypatch.setattr(lookout, "look", lambda **how: found.append(time.monotonic()) or plain(**how))
    return found


# -- names ---------------------------------------------------------------------------------------------


def test_this_ipyparallel_has_all_that_is_needed(bench):
    assert missing_names(bench.client) == []


def test_every_name_that_a_new_ipyparallel_lacks_is_found(bench):
    class Lacking:
        _send = dict

        def __getattr__(self, name):
            if name in ("_output_futures", "_mux_stream"):
                raise AttributeError(name)
            return getattr(bench.client, name)

    parameters = [f"the parameter {name!r} of Client._send" for name in ("socket", "msg_type", "ident", "metadata")]
    lacking = Lacking()
    lacking._send = lambda **_: None
    assert missing_names(lacking) == ["Client._output_futures", "Client._mux_stream", *parameters]


def test_a_client_of_a_new_ipyparallel_is_left_alone_and_that_is_told_once(running, bench, monkeypatch):
    monkeypatch.delattr(ipyparallel.AsyncResult, "_collect_exceptions")
    told = []
    with Deadman(running, tell=told.append) as deadman:
        deadman.guard(bench.client)
        deadman.guard(bench.client)
        assert bench.client[0].apply_async(abs, -1).get(SOON) == 1
        assert deadman._guarded == []
    assert told == [
        "the deadman can't watch clients, whose calls may wait for ever: no AsyncResult._collect_exceptions"
    ]


def test_without_anybody_to_tell_it_is_a_warning(running, bench, monkeypatch):
    monkeypatch.delattr(ipyparallel.AsyncResult, "_collect_exceptions")
    with pytest.warns(RuntimeWarning, match="can't watch"):
        Deadman(running, bench.client).close()


def test_all_is_as_before_when_it_is_closed(running, bench):
    def of_the_client() -> list[object]:
        client = bench.client
        return [client._send.__func__, client.wait_for_engines.__func__, *client._queue_handlers.values()]

    def of_all_results() -> list[object]:  # somebody else may guard clients in this process all the time
        return [ipyparallel.AsyncResult._collect_exceptions, ipyparallel.AsyncResult.wait_for_output]

    before = of_the_client(), of_all_results()
    with Deadman(running, bench.client):
        assert not set(before[0]) & set(of_the_client())
    assert (of_the_client(), of_all_results()) == before


@pytest.fixture
def patient(monkeypatch):
    """On a machine that is busy the hub and the engines may be slow to tell."""
    monkeypatch.setattr(overdue, "_ANSWERS", SOON)
    monkeypatch.setattr(overdue, "_WRITES", SOON)


# -- what is not to be failed --------------------------------------------------------------------------


@pytest.mark.usefixtures("deadman")
def test_who_goes_on_soon_answers(running, bench):
    engine = running.engines[0]
    with stopped(engine.process):
        task = bench.client[0].apply_async(os.getpid)
        assert not task.wait(10 * POLL)
    assert task.get(SOON) == engine.pid


def test_a_call_that_is_younger_than_the_look_is_left_to_the_next_one(running, bench):
    failed = []
    call = Call("a", "apply_request", DIRECT, 2.0, (running.engines[0].ident,))
    fake = {"waiting": lambda: [call], "fail": lambda *_: failed.append(call), "hurt_at": float("-inf")}
    guarded = SimpleNamespace(**fake)
    [scheduler] = victims(running, "direct scheduler")
    down = Down("direct scheduler", scheduler.pid, 0.5)
    with Deadman(running, bench.client) as deadman:
        lookout = deadman._current_lookout()
        for now in (1.9, 2.1):
            deadman._judge([guarded], lookout, Sight(now, {down.role: down}, {}, (), 0))
            assert bool(failed) is (now > call.sent)


@pytest.mark.usefixtures("deadman")
def test_who_goes_on_late_answers_again_and_a_late_answer_is_no_news(running, bench, capfd):
    engine = running.engines[0]
    with stopped(engine.process), pytest.raises(EngineLost, match="stopped by a signal"):
        bench.client[0].apply_sync(os.getpid)
    assert bench.client[0].apply_async(os.getpid).get(SOON) == engine.pid
    assert "stale" not in "".join(capfd.readouterr())


@pytest.mark.usefixtures("deadman")
def test_of_load_balanced_tasks_only_those_that_a_stopped_engine_has_are_lost(running, bench):
    view = bench.client.load_balanced_view()
    with stopped(running.engines[0].process):
        tasks = [view.apply_async(os.getpid) for _ in range(4)]
        outcomes = [outcome_of(task) for task in tasks]
    lost = [outcome for outcome in outcomes if isinstance(outcome, EngineLost)]
    assert {one.slot for one in lost} == {0}
    assert {one for one in outcomes if one not in lost} == {running.engines[1].pid}


def outcome_of(task) -> object:
    return task.get(SOON, return_exceptions=True)


@pytest.mark.usefixtures("deadman")
def test_a_new_engine_in_the_place_of_a_dead_one_answers(running, bench):
    client, old = bench.client, running.engines[1].pid
    lost = client[1].apply_async(hold, str(bench.folder))
    bench.wait_until_held()
    for process in victims(running, "nanny", "engine", slot=1):
        send_signal(process, signal.SIGKILL)
    with pytest.raises(EngineLost) as caught:
        lost.get(SOON)
    assert (caught.value.role, caught.value.slot, caught.value.pid) == ("engine", 1, old)
    assert caught.value.death.how == "killed by SIGKILL"
    running.restore()
    client.wait_for_engines(2, timeout=SOON, interactive=False)
    assert client[1].apply_async(os.getpid).get(SOON) == running.engines[1].pid != old


def test_a_client_that_is_made_after_a_repair_is_answered(running, deadman):
    running.replace([0], SOON)
    with connected(running) as later:
        deadman.guard(later.client)
        assert later.client[:].apply_async(os.getpid).get(SOON) == [engine.pid for engine in running.engines]


def test_engines_that_were_replaced_are_followed_while_a_client_is_there_that_may_wait_for_them(running):
    with Deadman(running) as deadman:
        for followed in (2, 2, 2):
            with connected(running) as first, connected(running) as second:
                deadman.guard(first.client)
                assert len(deadman._current_lookout().look().places) == followed
                running.replace([0], SOON)
                deadman.guard(second.client)
                assert len(deadman._current_lookout().look().places) == followed + 1


def test_a_client_that_cannot_be_handed_out_is_closed(running, monkeypatch):
    made = []

    def refuse(client):
        made.append(client)
        raise RuntimeError("no")

    monkeypatch.setattr(running, "handing_out", refuse)
    with pytest.raises(RuntimeError, match="no"):
        running.client()
    assert made[0]._closed


@pytest.mark.usefixtures("deadman")
def test_a_part_of_results_is_kept_beside_what_is_lost(running, bench):
    engine = running.engines[1]
    with stopped(engine.process):
        tasks = bench.client[:].apply_async(os.getpid)
        with pytest.raises(EngineLost) as caught:
            tasks.get(SOON)
        assert isinstance(caught.value, ipyparallel.CompositeError)
        first, second = tasks.get(SOON, return_exceptions=True)
    assert first == running.engines[0].pid
    assert isinstance(second, EngineLost)


@pytest.mark.usefixtures("deadman")
def test_an_error_of_the_task_itself_is_as_ever(bench):
    with pytest.raises(ipyparallel.CompositeError, match="ZeroDivisionError") as caught:
        bench.client[:].apply_sync(divmod, 1, 0)
    assert not isinstance(caught.value, ClusterLostError)


# -- what it costs -------------------------------------------------------------------------------------


def test_it_does_not_look_while_nobody_waits(deadman, bench, monkeypatch):
    bench.client[0].apply_sync(os.getpid)
    until(lambda: deadman._asleep and not deadman._called.is_set())  # woken late it would look once more
    found = looks(deadman, monkeypatch)
    time.sleep(10 * POLL)
    assert found == []
    bench.client[0].apply_sync(os.getpid)
    assert found


# -- where nobody is dead ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "told"),
    [("while True: pass", "in <module>"), ("import time; time.sleep(99)", "in <module>"), (GIL, "in match")],
    ids=["endless loop", "sleep", "GIL held in C"],
)
@pytest.mark.usefixtures("patient")
def test_at_the_limit_what_waits_ends_with_a_report(running, bench, deadman, code, told):
    task = bench.client[0].execute(code, block=False)
    assert not task.wait(10 * POLL)
    deadman.expire_at(time.monotonic())
    with pytest.raises(CallOverdueError) as caught:
        task.get(SOON)
    report = caught.value.report
    engine = running.engines[0]
    assert "execute_request to [0]" in report
    assert "the hub has it at its engine" in report
    assert f"the engine in slot 0 (pid {engine.pid}): running" in report
    stack = report.partition(f"where the engine in slot 0 (pid {engine.pid}) is:")[2]
    assert told in stack
    assert "Current thread" in stack
    deadman.expire_at(None)
    running.replace([0], SOON)


@pytest.mark.usefixtures("patient")
def test_a_message_that_got_lost_ends_at_the_limit(bench, deadman):
    stream, plain = bench.client._mux_stream, bench.client.session.send
    lost = lambda socket, *a, **k: {"tracker": None} if socket is stream else plain(socket, *a, **k)  # noqa: E731
    bench.client.session.send = lost
    task = bench.client[0].apply_async(abs, -1)
    assert not task.wait(10 * POLL)
    deadman.expire_at(time.monotonic())
    with pytest.raises(CallOverdueError, match="the hub does not know it"):
        task.get(SOON)


def test_a_limit_that_does_not_hold_ends_nothing(bench, deadman):
    task = bench.client[0].apply_async(hold, str(bench.folder))
    deadman.expire_at(time.monotonic(), lambda: False)
    assert not task.wait(10 * POLL)
    deadman.expire_at(None)
    bench.let_go()
    task.get(SOON)


def test_an_engine_that_does_not_take_the_signal_is_not_sent_it(running, bench, deadman):
    engine = running.engines[0]
    bench.client[0].execute("import signal; signal.signal(signal.SIGUSR1, signal.SIG_DFL)", block=False).get(SOON)
    bench.client[0].execute("import faulthandler; faulthandler.unregister(signal.SIGUSR1)", block=False).get(SOON)
    stacks = dict(read_stacks(deadman._lookout.roll, SOON))
    assert stacks[engine] == "(something on it has taken the signal over)"
    assert bench.client[0].apply_async(os.getpid).get(SOON) == engine.pid
    running.replace([0], SOON)


# -- the end -------------------------------------------------------------------------------------------


def test_the_hubs_end_is_told_as_the_cause_of_what_follows():
    with new_cluster() as cluster, connected(cluster) as bench, Deadman(cluster, bench.client):
        task = bench.client[0].apply_async(hold, str(bench.folder))
        bench.wait_until_held()
        for process in victims(cluster, "controller", "direct scheduler"):  # the hub takes longer to go
            send_signal(process, signal.SIGKILL)
            assert wait_gone([process], SOON) == set()
        with pytest.raises(ControllerLost) as caught:
            task.get(SOON)
        assert type(caught.value.__cause__) is SchedulerLost


def test_a_cluster_that_is_stopped_answers_nobody_and_no_warning_comes_of_it():
    with warnings.catch_warnings(), new_cluster() as cluster, connected(cluster) as bench:
        warnings.simplefilter("error")
        with Deadman(cluster, bench.client):
            task = bench.client[0].apply_async(hold, str(bench.folder))
            bench.wait_until_held()
            cluster.stop()
            with pytest.raises(ClusterLostError):
                task.get(SOON)
