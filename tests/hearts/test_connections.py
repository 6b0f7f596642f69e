from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import pytest
import zmq

from pytest_ipcluster.hearts.connections import Connections

A, B = b"heart-a", b"heart-b"
LIMIT = 10_000


class Exchange:
    """A ROUTER with its connections, and sockets that come and go."""

    def __init__(self) -> None:
        self.context = zmq.Context()
        self.router = self.context.socket(zmq.ROUTER)
        self.port = self.router.bind_to_random_port("tcp://127.0.0.1")
        self.connections = Connections(self.router)
        self.voices: list[zmq.Socket[bytes]] = []

    def connect(self, heart: bytes) -> zmq.Socket[bytes]:
        voice = self.context.socket(zmq.DEALER)
        voice.linger, voice.identity = 0, heart
        voice.connect(f"tcp://127.0.0.1:{self.port}")
        self.voices.append(voice)
        return voice

    def hear(self, voice: zmq.Socket[bytes]) -> None:
        voice.send(b"pong")
        assert self.router.poll(LIMIT)
        heart, frame = self.router.recv(), self.router.recv(copy=False)
        self.connections.heard(heart, frame)

    def read(self, enough: Callable[[list[int]], object]) -> list[int]:
        """Read notices until there are enough."""
        broken, _ = self.connections.read()
        while not enough(broken):
            assert self.connections.notices.poll(LIMIT), "no more notices"
            broken += self.connections.read()[0]
        return broken


@pytest.fixture
def exchange() -> Iterator[Exchange]:
    exchange = Exchange()
    yield exchange
    for voice in exchange.voices:
        voice.close()
    exchange.connections.close()
    exchange.context.destroy(linger=0)


def test_new_connection_is_wanted_until_somebody_is_heard_there(exchange: Exchange) -> None:
    voice = exchange.connect(A)
    exchange.read(lambda _: exchange.connections.wanted)
    assert len(exchange.connections.wanted) == 1
    exchange.hear(voice)
    assert exchange.connections.wanted == set()


def test_broken_connection_tells_whose_it_was_and_is_forgotten(exchange: Exchange) -> None:
    voices = [exchange.connect(A), exchange.connect(B)]
    for voice in voices:
        exchange.hear(voice)
    voices[1].close()
    (descriptor,) = exchange.read(bool)
    assert exchange.connections.drop(descriptor) == B
    assert exchange.connections.drop(descriptor) is None


def test_broken_connection_of_one_who_was_never_heard_is_nobodys(exchange: Exchange) -> None:
    voice = exchange.connect(A)
    exchange.read(lambda _: exchange.connections.wanted)
    voice.close()
    (descriptor,) = exchange.read(bool)
    assert exchange.connections.drop(descriptor) is None
    assert exchange.connections.wanted == set()


def test_descriptor_that_is_used_again_is_that_of_the_last_who_spoke_there(exchange: Exchange) -> None:
    first = exchange.connect(A)
    exchange.hear(first)
    first.close()
    exchange.read(bool)  # and not dropped yet
    second = exchange.connect(B)
    exchange.hear(second)
    descriptors = {heart: descriptor for descriptor, heart in exchange.connections._hearts.items()}
    second.close()
    broken = exchange.read(bool)
    assert [exchange.connections.drop(descriptor) for descriptor in broken] == [B]
    assert descriptors[B] == broken[0]


def test_there_is_room_for_any_number_of_notices(exchange: Exchange) -> None:
    """libzmq's thread waits where a notice finds no room: no message would come in any more, and no socket close."""
    assert exchange.connections.notices.rcvhwm == 0


class Flood:
    """Notices without an end: connections that are made and break."""

    count = 0

    def recv_multipart(self, _flags: int) -> list[bytes]:
        self.count += 1
        return [struct.pack("=Hi", zmq.EVENT_DISCONNECTED if self.count % 2 == 0 else zmq.EVENT_ACCEPTED, 7), b""]


def test_of_a_flood_of_notices_only_so_many_are_read_at_one_go(exchange: Exchange) -> None:
    """Strangers that come and go must leave time for a beat."""
    notices, exchange.connections.notices = exchange.connections.notices, Flood()
    broken, that_was_all = exchange.connections.read()
    exchange.connections.notices = notices
    assert not that_was_all
    assert len(broken) == 500
    assert exchange.connections.wanted == set()
