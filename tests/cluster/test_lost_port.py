"""A start that loses a port of ours is tried once more with other ports; one that loses a port of the user's is not."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest
from clusters import left_of, pids
from ipyparallel.util import select_random_ports

from pytest_ipcluster import ClusterStartError
from pytest_ipcluster.cluster import background
from pytest_ipcluster.cluster.ports import HeldPorts

# The controller takes the ports in this order: see init_hub in ipyparallel.controller.app.
REGISTRATION, MUX, MONITOR = 0, 9, 17


@pytest.fixture
def steal(monkeypatch) -> Iterator[Callable[..., None]]:
    """Have the first starts lose the port at this position, to a socket that really listens on it."""
    thieves: list[socket.socket] = []

    def steal(position: int, *, times: int = 1) -> None:
        class Robbed(HeldPorts):
            def __init__(self) -> None:
                super().__init__()
                if len(thieves) < times:
                    self.release()
                    thieves.append(socket.create_server(("127.0.0.1", self.numbers[position])))

        monkeypatch.setattr(background, "HeldPorts", Robbed)

    yield steal
    for thief in thieves:
        thief.close()


@pytest.mark.parametrize("position", [REGISTRATION, MUX, MONITOR], ids=["registration", "mux", "monitor"])
def test_a_start_that_lost_a_port_is_tried_again(new_cluster, steal, position):
    steal(position)
    told = []
    cluster = new_cluster()
    cluster.bring_up(retrying=told.append)
    assert len(pids(cluster)) == 1
    assert cluster.retries == 1
    assert [error.port_lost for error in told] == [True]


def test_a_second_lost_port_is_the_error(new_cluster, steal):
    steal(MUX, times=2)
    cluster = new_cluster()
    with pytest.raises(ClusterStartError, match="Address already in use") as caught:
        cluster.bring_up()
    assert caught.value.port_lost
    assert caught.value.__notes__[0].startswith("This was the second try. The first one ended with: a part of the cont")
    assert cluster.retries == 1
    assert left_of(cluster) == []


def test_the_block_tries_again_too(new_cluster, steal):
    steal(REGISTRATION)
    with new_cluster() as cluster:
        assert cluster.retries == 1


def test_a_port_of_the_users_choice_is_not_changed(new_cluster):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = [taken.getsockname()[1], *select_random_ports(17)]
        cluster = new_cluster(extra_args=["--", f"--ports={','.join(map(str, ports))}"])
        with pytest.raises(ClusterStartError) as caught:
            cluster.bring_up()
    assert caught.value.port_lost
    assert cluster.retries == 0


def test_ports_of_a_named_profile_are_not_ours(new_cluster):
    assert not new_cluster(private=False, profile="lab")._chose_the_ports()


def test_any_other_failure_is_not_tried_again(new_cluster):
    cluster = new_cluster(extra_args=["--nosuch"])
    with pytest.raises(ClusterStartError) as caught:
        cluster.bring_up()
    assert not caught.value.port_lost
    assert cluster.retries == 0
    assert left_of(cluster) == []
