"""The heart of a forked engine answers the last ping that the engine has heard, and then each one, like any other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import zmq
from ipyparallel.controller.heartmonitor import Heart

from pytest_ipcluster.cluster.firstpong import LastPing, answer_last_ping

# Milliseconds, long enough that no test passes because its time ran out.
PATIENCE = 30_000


class Hub:
    """The hub's two sockets for hearts."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.pings, self.pongs = context.socket(zmq.XPUB), context.socket(zmq.ROUTER)
        self.pings.xpub_verboser = True
        self.ping_url, self.pong_url = (
            f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}" for socket in (self.pings, self.pongs)
        )

    def wait_for(self, news: bytes) -> None:
        """Wait until somebody begins to listen, which is ``b"\\x01"``, or no longer does, ``b"\\x00"``."""
        heard = b""
        while heard != news:
            assert self.pings.poll(PATIENCE)
            heard = self.pings.recv()

    def pong(self) -> list[bytes]:
        assert self.pongs.poll(PATIENCE)
        return self.pongs.recv_multipart()


@pytest.fixture
def hub() -> Iterator[Hub]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield Hub(context)
    context.destroy(linger=0)


@pytest.fixture
def heart(hub) -> Iterator[Heart]:
    heart = Heart(hub.ping_url, hub.pong_url, heart_id=b"heart")
    yield heart
    heart.device._context.term()  # which is the device's own, and ends its thread
    heart.device.join(10)


def listener(hub: Hub) -> LastPing:
    ping = LastPing(hub.ping_url)
    hub.wait_for(b"\x01")
    return ping


def test_the_ping_before_its_start_is_answered_and_the_next_ones_too(hub, heart):
    ping = listener(hub)
    hub.pings.send(b"1")
    assert ping._socket.poll(PATIENCE)
    answer_last_ping(heart, ping).start()
    assert hub.pong() == [b"heart", b"1"]
    hub.wait_for(b"\x01")
    hub.pings.send(b"2")
    assert hub.pong() == [b"heart", b"2"]


def test_of_several_pings_only_one_is_answered(hub, heart):
    ping = listener(hub)
    for number in range(100):
        hub.pings.send(b"%d" % number)
    assert ping._socket.poll(PATIENCE)
    answer_last_ping(heart, ping).start()
    assert hub.pong()[1].isdigit()
    hub.wait_for(b"\x01")
    hub.pings.send(b"next")
    assert hub.pong() == [b"heart", b"next"]


def test_who_has_heard_nothing_answers_nothing(hub, heart):
    answer_last_ping(heart, listener(hub)).start()
    hub.wait_for(b"\x01")
    hub.pings.send(b"1")
    assert hub.pong() == [b"heart", b"1"]


def test_nobody_listens_any_longer_than_that(hub):
    listener(hub).take()
    hub.wait_for(b"\x00")
