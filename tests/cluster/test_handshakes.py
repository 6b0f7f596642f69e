"""Nobody is met before hands are shaken, however soon the connection is there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import zmq

from pytest_ipcluster.cluster.handshakes import Handshakes

# Seconds, long enough that no test passes because its time ran out; and what a test waits where nothing is to come.
PATIENCE, MOMENT = 30.0, 0.05


class Party:
    """Those who are to be met, and the one who is to meet them."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._context = context
        self.hosts: list[zmq.Socket[bytes]] = []
        self.handshakes = Handshakes()
        self.guest = context.socket(zmq.ROUTER)

    def host(self, kind: int = zmq.ROUTER) -> str:
        """Return the address of a socket like a scheduler's; a STREAM takes connections, and never says who it is."""
        host = self._context.socket(kind)
        self.hosts.append(host)
        return f"tcp://127.0.0.1:{host.bind_to_random_port('tcp://127.0.0.1')}"

    def meet(self, *addresses: str) -> None:
        for address in addresses:
            self.handshakes.expect_one_more(self.guest)
            self.guest.connect(address)


@pytest.fixture
def party() -> Iterator[Party]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    party = Party(context)
    yield party
    context.destroy(linger=0)


def test_wait_ends_when_hands_are_shaken_with_all(party):
    party.meet(party.host(), party.host(), party.host())
    assert party.handshakes.wait(PATIENCE)


def test_connection_alone_is_no_handshake(party):
    party.meet(party.host(), party.host(zmq.STREAM))
    assert party.hosts[1].poll(1000 * PATIENCE)  # the connection is there
    assert not party.handshakes.wait(MOMENT)


def test_who_greets_twice_does_not_stand_for_another(party):
    address = party.host()
    party.meet(address, address)  # a connection that breaks is made once more
    assert not party.handshakes.wait(MOMENT)


def test_socket_is_watched_no_longer_than_that(party):
    party.meet(party.host())
    assert party.handshakes.wait(PATIENCE)
    assert party.handshakes._notices.closed
    assert party.guest._monitor_socket is None


def test_nobody_to_meet_is_not_waited_for():
    assert Handshakes().wait(PATIENCE)
