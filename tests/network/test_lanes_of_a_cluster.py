"""Engines on lanes: every one on its own, also those that come later."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from traitlets.config import Config
from waiting import announced_by, until

from pytest_ipcluster import BackgroundCluster, ClusterError, RepairError
from pytest_ipcluster.cluster.processes import is_alive, marked
from pytest_ipcluster.network.routes import CHANNELS

SOON = 30.0


@pytest.fixture
def new_cluster() -> Iterator[object]:
    made: list[BackgroundCluster] = []

    def new_cluster(**kwargs: object) -> BackgroundCluster:
        cluster = BackgroundCluster(**{"n": 2, "private": True, "silent": True, "network": True, **kwargs})
        made.append(cluster)
        return cluster

    yield new_cluster
    for cluster in made:
        cluster.stop()


@pytest.fixture(scope="module")
def cluster() -> Iterator[BackgroundCluster]:
    with BackgroundCluster(n=2, private=True, silent=True, network=True) as cluster:
        yield cluster


def open_connections(cluster: BackgroundCluster, slot: int) -> dict[str, int]:
    return {channel: one["open"] for channel, one in cluster.lanes.state(slot).items()}


def wait_for_beats_of_the_hub(cluster: BackgroundCluster, times: int) -> None:
    """Wait until the engine in slot 0 has answered so many of them."""
    for _ in range(times):
        before = cluster.lanes.state(0)["hb_pong"]["up"]["passed"]
        until(lambda before=before: cluster.lanes.state(0)["hb_pong"]["up"]["passed"] > before)


def be_patient(cluster: BackgroundCluster) -> None:
    """Have engines to come wait for their schedulers for as long as a test on a slow machine may take."""
    [file] = cluster.folder.path.glob("ipython/*/ipengine_config.py")
    lines = "from ipyparallel.engine.app import IPEngine", "IPEngine.start_heartbeat.__globals__['_PATIENCE'] = 600.0"
    with file.open("a") as config:
        config.write("\n".join(["", *lines, ""]))


ONE_EACH = dict.fromkeys(CHANNELS, 1)


def with_curve() -> Config:
    config = Config()
    config.IPController.enable_curve = True
    return config


@pytest.mark.parametrize(
    "kwargs", [{"launcher": "forkserver"}, {"launcher": "local"}, {"cluster_config": with_curve()}], ids=str
)
def test_each_engine_is_on_the_lane_of_its_slot_and_all_of_it(new_cluster, kwargs):
    cluster = new_cluster(**kwargs)
    cluster.bring_up()
    assert [open_connections(cluster, slot) for slot in (0, 1)] == [ONE_EACH, ONE_EACH]
    with cluster.client() as client:
        assert client[:].apply_sync(os.getpid) == [engine.pid for engine in cluster.engines]
        for slot, other in ((0, 1), (1, 0)):
            cluster.lanes.freeze(slot)
            frozen = client[slot].apply_async(os.getpid)
            for _ in range(5):
                client[other].apply_sync(os.getpid)
            assert not frozen.ready()
            cluster.lanes.heal(slot)
            assert frozen.get(SOON) == cluster.engines[slot].pid


def test_what_comes_back_is_what_was_sent(cluster):
    cluster.restore(2)
    content = os.urandom(5_000_000)
    with cluster.client() as client:
        assert client[:].apply_sync(bytes, content) == [content, content]


class TestEnginesThatComeLater:
    def test_replacement_is_on_the_lane_of_its_slot(self, cluster):
        cluster.restore(2)
        cluster.engines[1].process.kill()
        cluster.restore()
        assert cluster.lanes.state(1)["mux"]["accepted"] == 1
        assert open_connections(cluster, 1) == ONE_EACH

    def test_added_one_has_a_lane_of_its_own(self, cluster):
        cluster.restore(3)
        assert cluster.lanes.slots[:3] == (0, 1, 2)
        assert open_connections(cluster, 2) == ONE_EACH
        cluster.restore(2)

    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a forkserver")
    def test_spare_takes_the_lane_of_the_slot(self, new_cluster):
        cluster = new_cluster(spares=1)
        cluster.bring_up()
        [spare] = cluster.slots._starts._spares._kept
        cluster.engines[1].process.kill()
        cluster.restore()
        assert cluster.engines[1].pid == spare.process.pid
        assert open_connections(cluster, 1) == ONE_EACH
        cluster.lanes.freeze(1)
        with cluster.client() as client:
            frozen = client[1].apply_async(os.getpid)
            client[0].apply_sync(os.getpid)
            assert not frozen.ready()
            cluster.lanes.heal(1)
            assert frozen.get(SOON) == spare.process.pid

    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a forkserver")
    def test_one_that_a_scheduler_does_not_know_yet_is_not_announced(self, new_cluster, monkeypatch):
        """Its first load-balanced task would be lost."""
        cluster = new_cluster()
        cluster.bring_up()
        be_patient(cluster)
        cleared, clear = threading.Event(), cluster.lanes.clear

        def clear_and_freeze(slot: int) -> None:
            clear(slot)
            cluster.lanes.freeze(slot, channels="task")
            cleared.set()

        monkeypatch.setattr(cluster.lanes, "clear", clear_and_freeze)
        cluster.engines[1].process.kill()
        with ThreadPoolExecutor(1) as pool:
            repair = pool.submit(cluster.restore)
            assert cleared.wait(SOON)
            until(lambda: cluster.lanes.state(1)["task"]["open"] == 1)
            wait_for_beats_of_the_hub(cluster, 20)  # any of these would have announced an engine whose heart beats
            announced = announced_by(cluster)
            cluster.lanes.heal(1)
            assert announced == [0]
            repair.result(SOON)
        assert announced_by(cluster) == [0, 1]

    def test_last_words_of_the_old_one_do_not_strike_off_the_new(self, cluster):
        cluster.restore(2)
        engine = cluster.engines[0]
        cluster.lanes.freeze(0, channels="registration", direction="up")
        engine.process.kill()
        psutil.wait_procs([engine.nanny], SOON)  # the nanny tells the hub, then it ends
        assert not is_alive(engine.nanny)
        cluster.restore()
        with cluster.client() as client:
            for _ in range(5):
                client.queue_status()
            assert client.ids == [0, 1]
            assert client[:].apply_sync(os.getpid) == [engine.pid for engine in cluster.engines]


class TestAClientOnALane:
    @pytest.fixture
    def client(self, cluster):
        cluster.restore(2)
        client = cluster.client(by_lane=True)
        yield client
        client.close(linger=0)

    def test_has_all_its_connections_there(self, cluster, client):
        assert len(client[:].apply_sync(os.getpid)) == 2
        assert {one["open"] for one in cluster.lanes.state("client").values()} == {1}

    def test_waits_for_a_reply_that_is_on_its_way(self, cluster, client):
        cluster.lanes.freeze("client", channels="mux", direction="down")
        task = client[0].apply_async(os.getpid)
        with cluster.client() as other:
            other[0].apply_sync(os.getpid)  # comes after it
            assert not task.ready()
            cluster.lanes.heal("client")
            assert task.get(SOON) == cluster.engines[0].pid

    @pytest.mark.usefixtures("client")
    def test_is_healed_by_the_restoring_and_no_engine_is_replaced_for_it(self, cluster):
        cluster.lanes.reset("client", channels="iopub")
        assert cluster.restore() == []
        assert cluster.lanes.hurt == ()


class TestRestoring:
    def test_heals_what_was_hurt_and_says_so(self, cluster):
        cluster.restore(2)
        before = cluster.engines
        cluster.lanes.freeze(0)
        cluster.lanes.cut(1, 1_000_000_000)
        told = {repair.slot: repair.reason for repair in cluster.restore()}
        assert told == dict.fromkeys((0, 1), "the engine's network was hurt")
        assert cluster.restore() == []
        assert cluster.engines == before

    @pytest.mark.parametrize("healed", [True, False], ids=["healed", "not healed"])
    def test_replaces_an_engine_that_may_have_lost_messages(self, cluster, healed):
        cluster.restore(2)
        cluster.lanes.half_open(0, channels="mux")
        cluster.lanes.heal(0) if healed else None
        assert [(one.slot, one.reason) for one in cluster.restore()] == [(0, "the engine's connections were broken")]
        assert cluster.restore() == []
        with cluster.client() as client:
            assert len(client[:].apply_sync(os.getpid)) == 2

    def test_works_for_an_engine_that_died_behind_a_frozen_lane(self, cluster):
        cluster.restore(2)
        cluster.lanes.freeze(0)
        cluster.engines[0].process.kill()
        assert [repair.reason for repair in cluster.restore()] == ["the engine was dead"]
        assert open_connections(cluster, 0) == ONE_EACH


class TestTheProxy:
    def test_is_of_the_cluster(self, cluster):
        [member] = [one for one in cluster.roll_call().members if one.role == "lanes' proxy"]
        assert member.process.pid == cluster.lanes.process.pid
        assert member.process in cluster.heads

    def test_is_missed_when_it_dies(self, new_cluster):
        cluster = new_cluster()
        cluster.bring_up()
        roll = cluster.roll_call()
        cluster.lanes.process.send_signal(9)
        cluster.lanes.process.wait(SOON)
        assert [member.role for member in roll.missing()] == ["lanes' proxy"]
        with pytest.raises(RepairError, match="the lanes' proxy has ended with exit code -9"):
            cluster.restore()

    def test_ends_with_the_cluster_also_when_all_is_frozen(self, new_cluster):
        cluster = new_cluster()
        cluster.bring_up()
        proxy, mark = psutil.Process(cluster.lanes.process.pid), cluster.folder.mark
        for slot in (0, 1):
            cluster.lanes.freeze(slot)
        cluster.stop()
        assert cluster.lanes is None
        assert not is_alive(proxy)
        assert [one for one in marked(mark) if is_alive(one)] == []

    def test_is_there_again_after_a_restart(self, new_cluster):
        cluster = new_cluster(n=1)
        cluster.bring_up()
        first = cluster.lanes
        first.freeze(0)
        cluster.stop()
        cluster.bring_up()
        assert cluster.lanes is not first
        assert cluster.lanes.hurt == ()


PROGRAM = """
import sys, threading
from pytest_ipcluster import BackgroundCluster
cluster = BackgroundCluster(n=1, private=True, silent=True, network=True)
cluster.bring_up()
cluster.lanes.freeze(0)
folder = cluster.folder
print(folder.mark, folder.path, folder.guard.process.pid, cluster.lanes.process.pid, flush=True)
threading.Event().wait(120)
"""


def test_nothing_is_left_when_whoever_uses_it_is_killed():
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as program:
        mark, folder, warden, proxy = program.stdout.readline().split()
        family = marked(mark) | {psutil.Process(int(warden))}
        assert int(proxy) in {process.pid for process in family}
        program.kill()
    _, alive = psutil.wait_procs(family, SOON)
    assert alive == []
    assert [one for one in marked(mark) if is_alive(one)] == []
    assert not Path(folder).exists()


class TestWithoutANetwork:
    def test_there_are_no_lanes(self, new_cluster):
        cluster = new_cluster(network=False, n=1)
        assert cluster.lanes is None
        cluster.bring_up()
        assert cluster.lanes is None
        assert "lanes' proxy" not in {member.role for member in cluster.roll_call().members}

    def test_clients_have_no_lane_either(self, new_cluster):
        cluster = new_cluster(network=False, n=1)
        cluster.bring_up()
        with pytest.raises(ClusterError, match="clients have a lane in a cluster with network=True only"):
            cluster.client(by_lane=True)

    @pytest.mark.parametrize(
        ("kwargs", "told"),
        [
            ({"launcher": "mpi"}, "takes one of the launchers 'forkserver', 'local', not 'mpi'"),
            ({"private": False}, "takes a private profile"),
        ],
    )
    def test_refusal_comes_before_anything_is_started(self, new_cluster, kwargs, told):
        cluster = new_cluster(**kwargs)
        with pytest.raises(ClusterError, match=f"network=True: {told}"):
            cluster.start()
        assert cluster.process is None
