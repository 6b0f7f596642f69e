"""The fixtures, used as a user would, on one cluster of this very session."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import ipyparallel
import pytest
from waiting import SOON, until

from pytest_ipcluster import BackgroundCluster, EngineLost, HeartMonitor


def square(x: int) -> int:
    return x * x


def wait_for(path: str) -> None:
    Path(path).touch()
    time.sleep(600)


def test_the_cluster_is_a_background_cluster(ipcluster):
    assert isinstance(ipcluster, BackgroundCluster)
    assert ipcluster.poll() is None


def test_the_client_is_connected_to_all_engines(ipcluster, ipcluster_client):
    assert ipcluster_client.ids == [engine.id for engine in ipcluster.engines]


def test_the_view_reaches_all_engines(ipcluster, ipcluster_view):
    assert ipcluster_view.apply_sync(os.getpid) == [engine.pid for engine in ipcluster.engines]


def test_functions_of_a_test_module_can_be_sent_to_engines(ipcluster_lbview):
    assert ipcluster_lbview.map_sync(square, range(5)) == [0, 1, 4, 9, 16]


def test_what_can_be_imported_here_can_be_imported_on_engines(ipcluster_view, pytestconfig):
    there = ipcluster_view.apply_sync(lambda: __import__("sys").path)
    for path in there:
        assert str(pytestconfig.rootpath) in path
        assert str(Path(__file__).parent) in path
        assert {entry for entry in sys.path if Path(entry).is_dir()} <= {str(Path(p).absolute()) for p in path}


def test_a_name_on_an_engine(ipcluster_view):
    ipcluster_view.push({"left_over": 1}, block=True)


def test_is_gone_in_the_next_test(ipcluster_view, raises_remote):
    with raises_remote(NameError, match="left_over"):
        ipcluster_view.pull("left_over", block=True)


def test_a_queue_on_an_engine(ipcluster, ipcluster_client, request, tmp_path):
    request.config.stash[PIDS] = [engine.pid for engine in ipcluster.engines]
    for _ in range(3):
        ipcluster_client[0].apply_async(wait_for, str(tmp_path / "running"))
    until((tmp_path / "running").exists)


def test_is_gone_with_its_engine_in_the_next_test(ipcluster, ipcluster_client, request):
    before, now = request.config.stash[PIDS], ipcluster_client[:].apply_async(os.getpid).get(SOON)
    assert now[0] != before[0]
    assert now[1:] == before[1:]
    assert now == [engine.pid for engine in ipcluster.engines]


PIDS = pytest.StashKey[list[int]]()


def test_every_engines_heart_beats(ipcluster, heart_monitor):
    assert isinstance(heart_monitor, HeartMonitor)
    assert heart_monitor.hearts == {engine.heart for engine in ipcluster.engines}


def test_an_engine_killed_in_the_middle_of_its_task(
    ipcluster, ipcluster_client, heart_failure, raises_remote, tmp_path
):
    task = ipcluster_client[1].apply_async(wait_for, str(tmp_path / "running"))
    until((tmp_path / "running").exists)
    with heart_failure.expect(slot=1, cause="killed", within=SOON) as expected:
        heart_failure.kill(1)
    assert expected.failure.heart == ipcluster.engines[1].heart
    with raises_remote((ipyparallel.error.EngineError, EngineLost)):
        task.get(SOON)


def test_after_a_kill_the_engine_is_back_under_its_id(ipcluster, ipcluster_client, heart_monitor):
    assert ipcluster_client.ids == list(range(ipcluster.n))
    assert heart_monitor.hearts == {engine.heart for engine in ipcluster.engines}


def test_a_kill_that_is_the_last_thing_a_test_does(ipcluster, heart_failure, request):
    request.config.stash[PIDS] = [engine.pid for engine in ipcluster.engines]
    heart_failure.kill(0)


def test_is_repaired_and_forgotten_before_the_next(ipcluster_client, heart_failure, request):
    now = ipcluster_client[:].apply_async(os.getpid).get(SOON)
    assert now[0] != request.config.stash[PIDS][0]
    heart_failure.assert_not_fired()


def test_a_pause_that_outlasts_the_test(heart_failure):
    with heart_failure.expect(slot=0, cause="missed heartbeats", within=SOON):
        heart_failure.pause(0)


def test_does_not_outlast_the_next(ipcluster, ipcluster_client):
    assert [engine.state for engine in ipcluster.engines] == ["idle"] * ipcluster.n
    assert ipcluster_client[:].apply_async(os.getpid).get(SOON) == [engine.pid for engine in ipcluster.engines]


def test_a_kill_is_noticed_by_its_broken_connection(heart_failure):
    failure = heart_failure.kill(0).wait(SOON)
    failed = next(e for e in heart_failure.events if e.kind == "failed" and e.heart == failure.heart)
    assert failed.detail.startswith("its connection broke and its process is gone")


def test_all_engines_can_be_lost_at_once(ipcluster, heart_failure):
    failures = heart_failure.kill("all").wait_all(SOON)
    assert [failure.slot for failure in failures] == list(range(ipcluster.n))


def test_and_all_come_back(ipcluster, ipcluster_client):
    assert ipcluster_client.ids == list(range(ipcluster.n))


def test_tasks_that_wait_in_the_scheduler(ipcluster_client, ipcluster_lbview, tmp_path):
    for number in range(3 * len(ipcluster_client)):
        ipcluster_lbview.apply_async(wait_for, str(tmp_path / str(number)))
    for engine in range(len(ipcluster_client)):
        until((tmp_path / str(engine)).exists)


def test_are_not_handed_to_the_engines_of_the_next_test(ipcluster_lbview):
    assert ipcluster_lbview.apply_async(square, 3).get(SOON) == 9


CALLS: list[bytes] = []


def test_a_handler_that_a_test_adds(heart_monitor, heart_failure):
    heart_monitor.add_heart_failure_handler(CALLS.append)
    heart_failure.kill(1).wait(SOON)
    assert len(CALLS) == 1


def test_is_taken_back_after_it(heart_failure):
    heart_failure.kill(1).wait(SOON)
    assert len(CALLS) == 1


def test_handlers_run_on_the_monitors_thread(heart_monitor, heart_failure):
    threads = []
    heart_monitor.add_heart_failure_handler(lambda _: threads.append(threading.current_thread().name))
    heart_failure.kill(0).wait(SOON)
    assert threads == ["ipcluster-heart-monitor"]


@pytest.mark.ipcluster(n=3)
def test_a_marker_makes_the_cluster_larger(ipcluster, ipcluster_client):
    assert len(ipcluster.engines) == 3
    assert ipcluster_client[:].apply_async(os.getpid).get(SOON) == [engine.pid for engine in ipcluster.engines]


@pytest.mark.ipcluster(n=1)
class TestSmaller:
    def test_a_marker_on_a_class_makes_it_smaller(self, ipcluster, ipcluster_client):
        assert len(ipcluster.engines) == len(ipcluster_client.ids) == 1

    @pytest.mark.usefixtures("ipcluster_client")
    def test_clients_leave_nothing_behind(self):
        names = [thread.name for thread in threading.enumerate()]
        assert sum("ipcluster-heart-monitor" in name for name in names) == 1
        assert len(names) < 10, names


@pytest.mark.parametrize("repetition", range(50))
def test_kill_fires_the_handler_once_with_the_right_heart(ipcluster, heart_monitor, heart_failure, repetition):  # noqa: ARG001
    called: list[bytes] = []
    heart_monitor.add_heart_failure_handler(called.append)
    heart = ipcluster.engines[1].heart
    with heart_failure.expect(slot=1, cause="killed", within=SOON):
        heart_failure.kill(1)
    assert called == [heart]
    ipcluster.restore()
    client = ipcluster.client()
    ids = client.ids
    client.close()
    assert ids == list(range(ipcluster.n))
    heart_failure.assert_fired(times=1)
