"""Whole pytest runs with networks that tests hurt, and leave so."""

from __future__ import annotations

import re

SOURCE = """
import os, pytest
from pytest_ipcluster.cluster.processes import wait_gone

pytestmark = pytest.mark.ipcluster(network=True, n=2)

def works(client):
    assert client.ids == [0, 1]
    assert set(client[:].apply_async(os.getpid).get(30)) >= {client.load_balanced_view().apply_async(os.getpid).get(30)}

def test_frozen(ipcluster):
    ipcluster.lanes.freeze(0)
    ipcluster.lanes.delay(1, 3600.0)
def test_after_frozen(ipcluster, ipcluster_client):
    assert ipcluster.lanes.hurt == ()
    works(ipcluster_client)

def test_broken(ipcluster, ipcluster_client):
    ipcluster.lanes.half_open(1)
    ipcluster_client[1].apply_async(os.getpid)
    ipcluster_client.load_balanced_view(targets=[1]).apply_async(os.getpid)
def test_after_broken(ipcluster_client):
    works(ipcluster_client)

def test_dead(ipcluster):
    [proxy] = [one.process for one in ipcluster.roll_call().members if one.role == "lanes' proxy"]
    proxy.kill()
    wait_gone([proxy], 30)
def test_after_dead(ipcluster, ipcluster_client):
    works(ipcluster_client)
    assert ipcluster.lanes.slots == (0, 1)

@pytest.mark.ipcluster(network=False)
def test_without(ipcluster):
    assert ipcluster.lanes is None
"""


def test_the_next_test_finds_all_well_and_is_told_why(run):
    result = run(SOURCE, "-v")
    result.assert_outcomes(passed=6, failed=1)
    text = str(result.stdout)
    assert re.search(r"the lanes' proxy \(pid \d+\) died during test_it.py::test_dead: killed by SIGKILL", text)
    assert re.search(r"repaired slot 0 in .*, after test_it.py::test_frozen: the engine's network was hurt", text)
    assert re.search(r"repaired slot 1, after test_it.py::test_frozen: the engine's network was hurt", text)
    assert re.search(
        r"repaired slot 1 in .*, after test_it.py::test_broken: the engine's connections were broken", text
    )
    assert "IpclusterLeakWarning" not in text
