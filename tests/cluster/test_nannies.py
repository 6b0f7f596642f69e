"""Nannies of forked engines: there as soon as anybody's, and never one that tells the hub a wrong id."""

from __future__ import annotations

import os
import signal
import sys

import psutil
import pytest
from clusters import kill
from waiting import announced_by, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a forkserver")


@pytest.fixture
def cluster(new_cluster):
    cluster = new_cluster(n=2)
    cluster.bring_up()
    return cluster


def test_a_nanny_starts_while_its_engine_registers(cluster):
    kill(cluster.engines[1].process)
    cluster.restore()
    log = cluster.engines[1].log()
    assert log.index("Starting nanny") < log.index("Registering with controller")
    assert psutil.Process(cluster.engines[1].nanny_pid).ppid() == cluster.engines[1].pid


def test_an_engine_that_gets_another_id_than_it_asked_for_has_a_nanny_that_knows(cluster, tmp_path):
    slots = cluster.slots
    process = slots._runtime.fork_module(
        "ipyparallel.engine", ["--IPEngine.id=1"], tmp_path / "log", slots._starts._environment()
    )
    until(lambda: announced_by(cluster) == [0, 1, 2])
    [nanny] = psutil.Process(process.pid).children()
    os.kill(process.pid, signal.SIGKILL)
    until(lambda: 2 not in announced_by(cluster))
    until(lambda: not nanny.is_running())
    assert announced_by(cluster) == [0, 1]
