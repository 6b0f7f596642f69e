"""Engines that are kept ready: nobody sees them, and one that is taken is an engine like any other."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from clusters import kill, left_of

from pytest_ipcluster.cluster import spares as spares_module
from pytest_ipcluster.cluster.spares import Spares

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a forkserver")


@pytest.fixture
def cluster(new_cluster):
    cluster = new_cluster(n=2, spares=1)
    cluster.bring_up()
    return cluster


def spare_of(cluster) -> psutil.Process:
    [spare] = cluster.slots._starts._spares._kept
    return psutil.Process(spare.process.pid)


def lose(cluster, slot: int) -> None:
    kill(cluster.engines[slot].process)
    cluster.restore(2)


def test_nobody_sees_a_spare(cluster):
    spare = spare_of(cluster)
    assert spare.pid not in {engine.pid for engine in cluster.engines}
    assert spare not in {member.process for member in cluster.roll_call().members}
    with cluster.client() as client:
        assert client.ids == [0, 1]
    assert cluster.owns(spare)


def test_a_spare_takes_the_place_of_the_dead(cluster):
    spare = spare_of(cluster)
    lose(cluster, 1)
    engine = cluster.engines[1]
    assert (engine.id, engine.pid) == (1, spare.pid)
    assert "Completed registration with id 1" in engine.log()
    with cluster.client() as client:
        assert client[1].apply_sync(os.getpid) == engine.pid
        assert client[1].apply_sync(eval, "__import__('sys').argv[1]") == "--IPEngine.id=1"
    assert engine.nanny is not None


def test_there_is_another_one_then(cluster):
    first = spare_of(cluster)
    lose(cluster, 0)
    second = spare_of(cluster)
    assert second != first
    lose(cluster, 0)
    assert cluster.engines[0].process == second


def test_a_spare_that_has_died_is_nobodys_replacement(cluster):
    kill(spare_of(cluster))
    lose(cluster, 1)
    with cluster.client() as client:
        assert client[:].apply_sync(int) == [0, 0]


def test_all_engines_are_replaced_by_one_spare_and_a_fork(cluster):
    spare = spare_of(cluster)
    kill(*(engine.process for engine in cluster.engines))
    cluster.restore(2)
    assert spare in {engine.process for engine in cluster.engines}
    with cluster.client() as client:
        assert client[:].apply_sync(int) == [0, 0]


def test_nothing_is_left_of_a_spare(cluster):
    spare = spare_of(cluster)
    cluster.stop()
    assert left_of(cluster) == []
    assert not spare.is_running()


def test_without_a_forkserver_there_are_none(new_cluster):
    cluster = new_cluster(n=1, spares=2, launcher="local")
    cluster.bring_up()
    assert cluster.slots._starts._spares._kept == []
    kill(cluster.engines[0].process)
    cluster.restore(1)


class TestAPipe:
    @pytest.fixture
    def sleeper(self):
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
            yield process

    @pytest.fixture
    def spares(self, tmp_path, sleeper):
        def start(_pipe: Path, log: Path) -> subprocess.Popen[bytes]:
            log.touch()
            return sleeper

        spares = Spares(1, tmp_path, start)
        spares.fill()
        return spares

    def test_at_which_somebody_waits_tells_the_id_and_is_removed(self, spares, sleeper, tmp_path):
        [pipe] = tmp_path.glob("spare-1")
        told = []
        waiting = threading.Thread(target=lambda: told.append(pipe.read_text()))
        waiting.start()
        assert spares.take(7, tmp_path / "log") is sleeper
        waiting.join(10)
        assert told == ['{"id": 7}']
        assert [path.name for path in tmp_path.iterdir()] == ["log"]

    def test_at_which_nobody_comes_to_wait_is_given_up(self, spares, sleeper, tmp_path, monkeypatch):
        monkeypatch.setattr(spares_module, "_READY_WITHIN", 0.05)
        assert spares.take(0, tmp_path / "log") is None
        assert sleeper.wait(10) == -9
        assert spares.take(0, tmp_path / "log") is None

    def test_of_one_that_has_ended_is_not_waited_at(self, spares, sleeper, tmp_path):
        sleeper.kill()
        sleeper.wait(10)
        assert spares.take(0, tmp_path / "log") is None
