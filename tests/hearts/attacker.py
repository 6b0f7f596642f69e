"""A hostile process on the same machine: ``attacker.py ATTACK PING PONG``, until its input ends.

It says ``ready`` on its output when the attack has been carried out once, and then goes on with it. It has limits of
its own for memory, descriptors and time on the CPU.
"""

from __future__ import annotations

import random
import resource
import select
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress

import zmq

MEGABYTE = 2**20
#: The greeting of ZMTP 3.0 and what a DEALER or SUB says of itself after it.
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)


def limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (2048 * MEGABYTE, 2048 * MEGABYTE))
    resource.setrlimit(resource.RLIMIT_NOFILE, (4000, 4000))
    resource.setrlimit(resource.RLIMIT_CPU, (120, 120))


class Attacker:
    """The two addresses, and ways to talk to them."""

    def __init__(self, ping: str, pong: str) -> None:
        self.ping, self.pong = ping, pong
        self.context = zmq.Context()
        self.random = random.Random(5)

    def dealer(self, identity: bytes = b"", *, waiting: int = 1000) -> zmq.Socket[bytes]:
        """Connect, with so many messages at most that wait to be sent: they count against our own limit of memory."""
        voice = self.context.socket(zmq.DEALER)
        voice.linger, voice.sndtimeo, voice.sndhwm = 0, 200, waiting
        if identity:
            voice.identity = identity
        voice.connect(self.pong)
        return voice

    def listener(self) -> zmq.Socket[bytes]:
        pings = self.context.socket(zmq.SUB)
        pings.linger, pings.rcvtimeo = 0, 60_000
        pings.subscribe(b"")
        pings.connect(self.ping)
        return pings

    def plain(self, url: str) -> socket.socket:
        host, _, port = url.removeprefix("tcp://").rpartition(":")
        return socket.create_connection((host, int(port)), 5)

    def introduced(self, url: str, kind: bytes) -> socket.socket:
        """Return a plain connection that has introduced itself as a zmq socket of this kind."""
        body = b"\x05READY\x0bSocket-Type" + struct.pack("!I", len(kind)) + kind
        made = self.plain(url)
        made.sendall(GREETING + bytes([0x04, len(body)]) + body)
        receive(made, len(GREETING))
        _flags, size = receive(made, 2)
        receive(made, size)
        return made


def receive(made: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = made.recv(size - len(data))
        if not more:
            raise ConnectionError("not introduced")
        data += more
    return data


def send(voice: zmq.Socket[bytes], *frames: bytes) -> None:
    with suppress(zmq.Again):  # it is dropped, or not listened to: that is the point
        voice.send_multipart(frames)


def random_frames(attacker: Attacker) -> Iterator[None]:
    voice = attacker.dealer()
    while True:
        for _ in range(20_000):
            send(voice, attacker.random.randbytes(attacker.random.randrange(64)))
        yield


def many_parts(attacker: Attacker) -> Iterator[None]:
    voice = attacker.dealer()
    while True:
        for _ in range(200):
            send(voice, *[b"x"] * 1000)
        yield


def big_frame(attacker: Attacker) -> Iterator[None]:
    voice, payload = attacker.dealer(waiting=3), bytes(50 * MEGABYTE)
    while True:
        send(voice, payload)
        yield


def many_megabytes(attacker: Attacker) -> Iterator[None]:
    voice, payload = attacker.dealer(waiting=300), bytes(MEGABYTE)
    while True:
        for _ in range(300):
            send(voice, payload)
        yield


def flood(attacker: Attacker) -> Iterator[None]:
    voices = [attacker.dealer(b"flood-%d" % number) for number in range(8)]
    while True:
        for _ in range(20_000):
            for voice in voices:
                with suppress(zmq.Again):
                    voice.send(b"made up", zmq.NOBLOCK)
        yield


def echo(attacker: Attacker, *identities: bytes) -> Iterator[None]:
    """Answer every ping in the name of these hearts."""
    pings, voices = attacker.listener(), [attacker.dealer(identity) for identity in identities]
    while True:
        token = pings.recv()
        for voice in voices:
            send(voice, token)
        yield


def live_identity(attacker: Attacker) -> Iterator[None]:
    return echo(attacker, b"heart-b")


def forged_hearts(attacker: Attacker) -> Iterator[None]:
    return echo(attacker, *[b"forged-%03d" % number for number in range(800)])


def replay(attacker: Attacker) -> Iterator[None]:
    pings = attacker.listener()
    token = pings.recv()
    voices = [attacker.dealer(identity) for identity in (b"heart-a", b"heart-b", b"stranger", b"")]
    while True:
        for _ in range(1000):
            for voice in voices:
                send(voice, token)
                send(voice, b"heart-a", token)
        yield


def idle_connections(attacker: Attacker) -> Iterator[None]:
    held: list[socket.socket] = []
    while True:
        for _ in range(600):
            with suppress(OSError):
                held.append(attacker.plain(attacker.pong))
        yield
        while held:
            held.pop().close()


def other_protocols(attacker: Attacker) -> Iterator[None]:
    garbage = [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        attacker.random.randbytes(500),
        b"\x01\x00" + b"\x08\x00heart-a" * 20,
        b"\x07\x00heart-a\x06\x00token",
    ]
    while True:
        for number in range(300):
            with suppress(OSError):
                made = attacker.plain((attacker.ping, attacker.pong)[number % 2])
                made.sendall(garbage[number % len(garbage)])
                made.close()
        yield


def false_lengths(attacker: Attacker) -> Iterator[None]:
    """Announce frames that nobody could hold."""
    held = []
    while True:
        for length in (2**62, 2**33, 2**31, 2**63 - 1, 2**24):
            for url in (attacker.ping, attacker.pong):
                with suppress(OSError):
                    made = attacker.introduced(url, b"DEALER" if url == attacker.pong else b"SUB")
                    made.sendall(b"\x02" + struct.pack("!Q", length) + bytes(1000))
                    held.append(made)
        yield
        while held:
            held.pop().close()


def subscriptions(attacker: Attacker, length: int, count: int) -> Iterator[None]:
    """Subscribe to thousands of things, which somebody has to remember."""
    pings = attacker.context.socket(zmq.SUB)
    pings.linger = 0
    pings.connect(attacker.ping)
    for number in range(count):
        pings.subscribe(b"%08d" % number + attacker.random.randbytes(length - 8))
    while True:
        yield


def long_subscriptions(attacker: Attacker) -> Iterator[None]:
    return subscriptions(attacker, 508, 20_000)


def short_subscriptions(attacker: Attacker) -> Iterator[None]:
    return subscriptions(attacker, 16, 5_000)


def connect_and_break(attacker: Attacker) -> Iterator[None]:
    while True:
        for _ in range(5_000):
            for url in (attacker.pong, attacker.ping):
                with suppress(OSError):
                    attacker.plain(url).close()
        yield


def slow_introduction(attacker: Attacker) -> Iterator[None]:
    held = []
    while True:
        for _ in range(100):
            with suppress(OSError):
                held.append(attacker.plain(attacker.pong))
                held[-1].sendall(GREETING[: attacker.random.randrange(64)])
        yield
        while held:
            held.pop().close()


def names_of_others(attacker: Attacker) -> Iterator[None]:
    """Send more frames than a pong has, so that the others look like a pong of another heart."""
    pings, voices = attacker.listener(), [attacker.dealer(b"x-%d" % number) for number in range(8)]
    while True:
        token = pings.recv()
        for voice in voices:
            for frames in ((b"heart-a", token), (b"heart-a", token, b"x"), (token, b"heart-a", token), (b"heart-a",)):
                send(voice, *frames)
        yield


ATTACKS: dict[str, Callable[[Attacker], Iterator[None]]] = {
    attack.__name__: attack
    for attack in (
        random_frames,
        many_parts,
        big_frame,
        many_megabytes,
        flood,
        live_identity,
        forged_hearts,
        replay,
        idle_connections,
        other_protocols,
        false_lengths,
        long_subscriptions,
        short_subscriptions,
        connect_and_break,
        slow_introduction,
        names_of_others,
    )
}


def main() -> None:
    limit()
    name, ping, pong, *identities = sys.argv[1:]
    attacker = Attacker(ping, pong)
    steps = echo(attacker, *map(str.encode, identities)) if name == "dead_identity" else ATTACKS[name](attacker)
    next(steps)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while not select.select([sys.stdin], [], [], 0.001)[0]:
        next(steps)


if __name__ == "__main__":
    main()
