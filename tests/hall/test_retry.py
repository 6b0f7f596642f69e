"""A cluster of pytest's own that lost a port comes up all the same, and what happened is written down."""

from __future__ import annotations

import socket

import pytest
from traitlets.config import Config

from pytest_ipcluster import ClusterStartError
from pytest_ipcluster.cluster import background
from pytest_ipcluster.cluster.ports import HeldPorts
from pytest_ipcluster.deathwatch import DeathWatch
from pytest_ipcluster.keeper import Keeper


@pytest.fixture
def keeper(hall):
    keeper = Keeper(hall.settings("--ipcluster-n=1"), DeathWatch(), [])
    yield keeper
    keeper.close()


@pytest.fixture
def robbed(monkeypatch):
    """Have the next start lose its registration port to a socket that listens on it."""
    thieves: list[socket.socket] = []

    class Robbed(HeldPorts):
        def __init__(self) -> None:
            super().__init__()
            if not thieves:
                self.release()
                thieves.append(socket.create_server(("127.0.0.1", self.numbers[0])))

    monkeypatch.setattr(background, "HeldPorts", Robbed)
    yield
    for thief in thieves:
        thief.close()


@pytest.mark.usefixtures("robbed")
def test_a_retried_start_is_an_event(hall, keeper):
    cluster = keeper.provide(hall.settings("--ipcluster-n=1").shape, Config())
    assert cluster.retries == 1
    kinds = [event.kind for event in keeper.events.since()]
    assert kinds.count("retried") == 1
    assert kinds.index("retried") < kinds.index("new heart")
    assert "Address already in use" in next(e.detail for e in keeper.events.since() if e.kind == "retried")
    assert "failed" not in kinds


def test_hearts_of_the_first_try_are_forgotten_without_a_verdict(hall, keeper):
    cluster = keeper.provide(hall.settings("--ipcluster-n=1").shape, Config())
    heart = cluster.engines[0].heart
    keeper._retry(ClusterStartError("a port was lost", port_lost=True))
    assert heart not in keeper.hearts.monitor.hearts
    told = [event.kind for event in keeper.events.since() if event.heart == heart]
    assert [kind for kind in told if kind != "missed"] == ["new heart", "forgotten"]
