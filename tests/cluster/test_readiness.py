"""A cluster is ready when its schedulers have carried a task to every engine; work that is there is no hindrance."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest
from clusters import kill
from waiting import until

from pytest_ipcluster import BackgroundCluster, ClusterStartError, RepairError
from pytest_ipcluster.cluster import slots
from pytest_ipcluster.cluster.processes import find, resume, send_signal
from pytest_ipcluster.cluster.proof import Proof
from pytest_ipcluster.cluster.slots import Slots

PATIENCE = 60
SCHEDULERS = {"mux": "direct", "task": "load-balancing", "broadcast": "broadcast"}


def scheduler(cluster: BackgroundCluster, channel: str) -> psutil.Process:
    """Return the process that listens where clients connect for this channel."""
    port = cluster._files.client_connection()[channel]
    for child in find(cluster._runtime.roles().controller.pid).children():
        connections = getattr(child, "net_connections", child.connections)  # the latter before psutil 6
        if any(c.laddr.port == port and c.status == psutil.CONN_LISTEN for c in connections("tcp")):
            return child
    raise AssertionError(f"nobody listens on port {port}")


@contextmanager
def frozen(process: psutil.Process) -> Iterator[None]:
    send_signal(process, signal.SIGSTOP)
    try:
        yield
    finally:
        resume(process)


@contextmanager
def hanging(process: psutil.Process) -> Iterator[None]:
    """Have a process hang during proofs, and these last some seconds, however long the limit for everything is."""
    real = Proof.carry

    def carry(proof, engines, _):
        with frozen(process):
            return real(proof, engines, time.monotonic() + 5)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Proof, "carry", carry)
        yield


@pytest.fixture
def unproven(cluster) -> BackgroundCluster:
    """The module's cluster, as if it had just come up, and with nothing that the hub has yet to hear of."""
    until(lambda: not cluster.slots.unfinished(direct=True).ids)
    cluster.slots._proven.clear()
    return cluster


@pytest.fixture
def client(cluster):
    client = cluster.client()
    yield client
    client.close(linger=0)


@pytest.mark.parametrize("channel", SCHEDULERS)
def test_a_scheduler_that_hangs_is_named(unproven, channel):
    name = SCHEDULERS[channel]
    expected = rf"the {name} scheduler has not carried a task to slots \[0, 1\] and back [\d.]+ s after the start"
    with hanging(scheduler(unproven, channel)), pytest.raises(ClusterStartError, match=expected) as caught:
        unproven.wait_for_engines()
    assert "[IPController]" in caught.value.log
    assert "whether a scheduler hangs" in caught.value.advice
    assert not caught.value.port_lost
    unproven.wait_for_engines()


def test_nothing_is_left_queued(unproven, client):
    unproven.wait_for_engines()

    def left() -> list[int]:
        return [client.queue_status(i)[key] for i in (0, 1) for key in ("queue", "tasks")]

    until(lambda: left() == [0, 0, 0, 0])  # the hub hears of an answer after us
    assert not unproven.slots.unfinished().ids


def test_engines_are_proven_once(cluster, monkeypatch):
    asked = []
    monkeypatch.setattr(Proof, "carry", lambda _, engines, *__: asked.append(engines) or "")
    cluster.slots._proven.clear()
    cluster.wait_for_engines(1)
    cluster.wait_for_engines()
    cluster.wait_for_engines()
    idents = {engine.slot: engine.ident for engine in cluster.engines}
    assert asked == [{0: idents[0]}, {1: idents[1]}]


def test_an_engine_that_works_already_is_not_waited_for(new_cluster):
    with new_cluster() as cluster:
        client = cluster.client()
        task = client[0].apply_async(time.sleep, 600)
        until(lambda: client.queue_status(0)["queue"] == 1)
        cluster.slots._proven.clear()
        cluster.wait_for_engines()
        assert not task.ready()
        client.close(linger=0)


def test_a_scheduler_that_dies_meanwhile_ends_the_wait(new_cluster, monkeypatch):
    cluster = new_cluster()

    def carry(*args):
        kill(scheduler(cluster, "broadcast"))
        return real(*args)

    real = Proof.carry
    monkeypatch.setattr(Proof, "carry", carry)
    cluster.start(check_after=PATIENCE)
    begun = time.monotonic()
    with pytest.raises(ClusterStartError, match=r"a scheduler of the controller .* ended"):
        cluster.wait_for_engines(timeout=PATIENCE)
    assert time.monotonic() - begun < PATIENCE / 2


def test_new_engines_are_proven_and_taken_back_when_nothing_reaches_them(new_cluster):
    with new_cluster() as cluster:
        with hanging(scheduler(cluster, "task")), pytest.raises(RepairError, match=r"load-balancing .* slots \[1\]"):
            cluster.restore(2)
        assert [repair.slot for repair in cluster.restore(2)] == [1]


def test_a_repair_does_not_wait_for_tasks_that_wait(new_cluster):
    with new_cluster() as cluster:
        client = cluster.client()
        tasks = [client.load_balanced_view().apply_async(time.sleep, 600) for _ in range(3)]
        until(lambda: len(cluster.slots.unfinished().waiting) == 2)
        assert [repair.slot for repair in cluster.restore(2)] == [1]
        assert not any(task.ready() for task in tasks)
        client.close(linger=0)


def test_the_ways_to_a_replacement_are_opened_before_it_has_registered(new_cluster, monkeypatch):
    cluster = new_cluster(n=1)
    cluster.bring_up()
    happened = []

    class Noted(Proof):
        def __init__(self, *args):
            happened.append("opened")
            super().__init__(*args)

        def carry(self, *args):
            happened.append("used")
            return super().carry(*args)

    def wait(keeper, *args, wait=Slots._wait):
        found = wait(keeper, *args)
        happened.append("the hub has said so")
        return found

    monkeypatch.setattr(slots, "Proof", Noted)
    monkeypatch.setattr(Slots, "_wait", wait)
    kill(cluster.engines[0].process)
    cluster.restore(1)
    assert happened == [
        "the hub has said so",
        "opened",
        "the hub has said so",
        "used",
    ]  # first that the old one is gone
