"""Calls that would wait for ever, in whole pytest runs: the clients that the plugin hands out are guarded."""

from __future__ import annotations

HELP = """
import os, signal, time
import pytest
from pytest_ipcluster import CallOverdueError, ClusterLostError, EngineLost, SchedulerLost

def end(cluster, role, signum=signal.SIGKILL):
    os.kill(next(one.process.pid for one in cluster.roll_call().members if one.role == role), signum)
"""


def test_clients_are_guarded_and_only_the_death_that_was_not_asked_for_is_told(run):
    result = run(
        f"""{HELP}
def test_asked_for(ipcluster_client, heart_failure):
    heart_failure.kill("all")
    with pytest.raises(EngineLost):
        ipcluster_client.load_balanced_view().apply_sync(os.getpid)

def test_paused(ipcluster_client, heart_failure):
    heart_failure.pause(0)
    with pytest.raises(EngineLost, match="stopped by a signal"):
        ipcluster_client[0].apply_sync(os.getpid)

def test_as_new(ipcluster, ipcluster_client):
    assert ipcluster_client[:].apply_sync(os.getpid) == [engine.pid for engine in ipcluster.engines]

def test_own_client(ipcluster):
    client = ipcluster.client()
    end(ipcluster, "direct scheduler")
    with pytest.raises(SchedulerLost, match="the direct scheduler"):
        client[:].apply_sync(os.getpid)
    client.close(linger=0)

def test_another_cluster(ipcluster, ipcluster_client):
    assert ipcluster_client[:].apply_sync(os.getpid) == [engine.pid for engine in ipcluster.engines]
""",
        "-Wignore",
    )
    result.assert_outcomes(passed=4, failed=1)
    result.stdout.fnmatch_lines(["*the direct scheduler (pid *) died during test_it.py::test_own_client: *"])


def test_what_nobody_has_died_of_ends_before_the_time_limit_with_a_report(run):
    result = run(
        f"""{HELP}
@pytest.mark.timeout(8)
def test_endless(ipcluster_client):
    with pytest.raises(CallOverdueError) as caught:
        ipcluster_client[0].execute("while True: pass", block=True)
    assert "the direct scheduler" in caught.value.report
    assert "Current thread" in caught.value.report

@pytest.mark.timeout(8)
def test_next(ipcluster_client):
    ipcluster_client[:].apply_sync(os.getpid)
"""
    )
    result.assert_outcomes(passed=2)
