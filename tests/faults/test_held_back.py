"""Answers that a client's own hurt lane holds back: the deadman does not take them for lost."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import ipyparallel
import pytest
from catalogue import SOON, new_cluster, victims
from waiting import until

from pytest_ipcluster import BackgroundCluster, CallOverdueError, Deadman, EngineLost
from pytest_ipcluster.cluster.processes import send_signal
from pytest_ipcluster.faults import reach, vigil

ANSWER = "done"


@pytest.fixture(scope="module")
def cluster() -> Iterator[BackgroundCluster]:
    with new_cluster(network=True) as cluster:
        yield cluster


@pytest.fixture
def client(cluster) -> Iterator[ipyparallel.Client]:
    """One by lane, which is connected."""
    cluster.restore(2)
    client = cluster.client(by_lane=True)
    client[:].apply_sync(os.getpid)
    yield client
    client.close(linger=0)


@pytest.fixture
def other(cluster) -> Iterator[ipyparallel.Client]:
    client = cluster.client()
    yield client
    client.close(linger=0)


@pytest.fixture
def deadman(cluster, client, other, monkeypatch) -> Iterator[Deadman]:
    """One that gives ipyparallel no time to tell of a death first."""
    monkeypatch.setattr(reach, "_TOLD", reach._UNDER_WAY)
    with Deadman(cluster, client, other) as deadman:
        yield deadman


@pytest.fixture
def held(cluster, client, other, tmp_path) -> ipyparallel.AsyncResult:
    """A task that the engine in slot 0 has done, and whose answer is on its way."""
    begun = tmp_path / "begun"
    cluster.lanes.freeze("client", direction="down")
    task = client[0].apply_async(begun.write_text, ANSWER)
    until(begun.exists)  # the other client's way is shorter
    other[0].apply_sync(os.getpid)  # the engine does one thing after the other
    return task


def judged(cluster, other) -> None:
    """Kill the engine in slot 0, and return when the deadman has given up a task there."""
    late = other[0].apply_async(time.sleep, 600)
    send_signal(victims(cluster, "nanny", slot=0)[0], 9)  # who would be first to tell
    send_signal(cluster.engines[0].process, 9)
    with pytest.raises(EngineLost):
        late.get(SOON)


def judges_again(deadman: Deadman, monkeypatch: pytest.MonkeyPatch) -> None:
    """Return when the deadman has looked at all clients twice more."""
    looks: list[object] = []
    plain = deadman._judge
    monkeypatch.setattr(deadman, "_judge", lambda *sight: looks.append(plain(*sight)))
    until(lambda: len(looks) >= 2)


def test_an_answer_survives_its_engine(cluster, other, deadman, held, monkeypatch):
    judged(cluster, other)
    judges_again(deadman, monkeypatch)
    assert not held.ready()
    cluster.lanes.heal("client", channels="mux")
    assert held.get(SOON) == len(ANSWER)


def test_what_was_sent_after_the_death_is_lost_at_once(cluster, client, other, deadman, held):
    judged(cluster, other)
    with pytest.raises(EngineLost, match="slot 0"):
        client[0].apply_async(os.getpid).get(SOON)
    assert not held.ready()
    deadman.close()
    with pytest.raises(EngineLost, match="slot 0"):
        held.get(SOON)


def test_what_does_not_arrive_after_the_healing_is_lost(cluster, client, other, deadman, monkeypatch):
    monkeypatch.setattr(vigil, "_ARRIVES", 0.0)
    cluster.lanes.freeze("client", direction="down")
    task = client[0].apply_async(time.sleep, 600)
    judged(cluster, other)
    judges_again(deadman, monkeypatch)
    assert not task.ready()
    cluster.lanes.heal("client")
    with pytest.raises(EngineLost, match="slot 0"):
        task.get(SOON)


def test_at_the_limit_the_report_names_the_networks_that_are_hurt(cluster, deadman, held):
    cluster.lanes.delay(1, 0.001)
    deadman.expire_at(time.monotonic())
    with pytest.raises(CallOverdueError) as caught:
        held.get(SOON)
    assert "whose network is hurt: the engine in slot 1, clients by lane\n" in caught.value.report
