"""Thousands of hearts in a few processes: each has two connections, and sends back what it hears, as Heart does.

A heart here is no zmq socket but speaks zmq's protocol (ZMTP 3.0, https://rfc.zeromq.org/spec/23/) on plain ones: one
connection says that it is a SUB that wants everything, the other that it is a DEALER with the heart's id. A ping is one
frame, and its answer the same frame, so that whatever comes in on one goes out on the other byte by byte. For the
monitor that is what a Heart is; for this machine it is two descriptors and some microseconds a ping, while a Heart is a
process with eight descriptors, or thousands of them a zmq context with a limit of its own (``zmq.MAX_SOCKETS``).

``Load`` runs it for other benchmarks. By itself, for a monitor that listens somewhere::

    python benchmarks/hearts_load.py ipc:///tmp/ping ipc:///tmp/pong --hearts 1000 --seconds 60 < /dev/tty

It ends with its input, with the monitor, or after ``--seconds``.
"""

from __future__ import annotations

import argparse
import heapq
import mmap
import os
import resource
import select
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

#: Two connections for each heart, and some for everything else.
_OTHER_DESCRIPTORS = 50

#: Seconds for the monitor to answer a new connection.
_PATIENCE = 60.0

_COUNTER = struct.Struct("=Q")
_LONGEST_READ = 65536
_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
#: A message of one byte, 1 for "send me everything that begins with": nothing follows, so that is everything.
_SUBSCRIPTION = b"\x00\x01\x01"


class Load:
    """So many hearts, spread over so many processes; as a context manager it returns when all are connected.

    ``spread`` is over how many seconds the answers to one ping are spread; 0 is all at once. ``seconds`` is when it
    ends at the latest.
    """

    def __init__(
        self, ping: str, pong: str, *, hearts: int, processes: int = 4, spread: float = 0.0, seconds: float = 600.0
    ) -> None:
        self._addresses = ping, pong
        self._shares = [share for share in shares(hearts, processes) if share]
        self._first = [sum(self._shares[:number]) for number in range(len(self._shares))]
        self._arguments = [f"--of={hearts}", f"--spread={spread}", f"--seconds={seconds}"]
        self._processes: list[subprocess.Popen[str]] = []
        self._counters: mmap.mmap | None = None

    def __enter__(self) -> Load:
        with tempfile.NamedTemporaryFile(prefix="hearts-load-") as file:
            file.truncate(_COUNTER.size * len(self._shares))
            self._counters = mmap.mmap(file.fileno(), 0)
            try:
                self._start(file.name)
            except BaseException:
                self.stop()
                raise
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()

    def _start(self, counters: str) -> None:
        for number, (first, share) in enumerate(zip(self._first, self._shares, strict=True)):
            mine = [f"--hearts={share}", f"--first={first}", f"--counters={counters}", f"--number={number}"]
            command = [sys.executable, __file__, *self._addresses, *self._arguments, *mine]
            self._processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        for process in self._processes:
            assert process.stdout is not None
            if process.stdout.readline() != "connected\n":
                raise RuntimeError(f"a generator of hearts ended with code {process.wait()}: see above")

    def answers(self) -> int:
        """Return how many pings have been answered so far, by all hearts together."""
        assert self._counters is not None
        return sum(_COUNTER.unpack_from(self._counters, at * _COUNTER.size)[0] for at in range(len(self._shares)))

    def stop(self) -> None:
        """End all of them; may be called twice."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        self._processes = []


def shares(total: int, parts: int) -> list[int]:
    """Divide a number into almost equal parts."""
    return [total // parts + (number < total % parts) for number in range(parts)]


# -- one of the processes ------------------------------------------------------------------------------


def main() -> None:
    options = arguments().parse_args()
    allow_descriptors(2 * options.hearts + _OTHER_DESCRIPTORS)
    with counter(options.counters, options.number) as count:
        hearts = Hearts(options.spread, options.of or options.hearts, count)
        for number in range(options.first, options.first + options.hearts):
            hearts.add(options.ping, options.pong, number)
        print("connected", flush=True)
        hearts.beat(time.monotonic() + options.seconds)


def arguments() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("ping", help="where pings come from: tcp://HOST:PORT or ipc://PATH")
    made.add_argument("pong", help="where answers go")
    made.add_argument("--hearts", type=int, default=100)
    made.add_argument("--first", type=int, default=0, help="number of the first of them")
    made.add_argument("--of", type=int, help="how many there are in all processes")
    made.add_argument("--spread", type=float, default=0.0, help="seconds over which the answers to a ping are spread")
    made.add_argument("--seconds", type=float, default=600.0, help="when to end at the latest")
    made.add_argument("--counters", help="file of the counters, and")
    made.add_argument("--number", type=int, default=0, help="which of them is this process's own")
    return made


def allow_descriptors(number: int) -> None:
    """Raise our own limit of open descriptors; RuntimeError when the system does not allow so many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < number:
        raise RuntimeError(f"{number} descriptors are needed, {hard} allowed: more processes, or a higher ulimit -Hn")
    if soft < number:
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))


@contextmanager
def counter(path: str | None, number: int) -> Iterator[memoryview]:
    """Give a number that other processes see, as a view of eight bytes."""
    if path is None:
        yield memoryview(bytearray(_COUNTER.size))
        return
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        at = number * _COUNTER.size
        view = memoryview(memory)[at : at + _COUNTER.size]
        try:
            yield view
        finally:
            view.release()


class Hearts:
    """The hearts of one process, in one loop."""

    def __init__(self, spread: float, of: int, count: memoryview) -> None:
        self._spread, self._of, self._count = spread, of, count
        self._sockets: list[socket.socket] = []
        self._answers_to: dict[int, int] = {}
        self._delays: dict[int, float] = {}
        self._waiting: list[tuple[float, int, bytes]] = []
        self._answered = 0

    def add(self, ping: str, pong: str, number: int) -> None:
        """Connect one heart: first what answers, so that nothing is heard that cannot be answered."""
        out = connect(pong, b"DEALER", b"heart-%05d" % number)
        into = connect(ping, b"SUB")
        self._sockets += [out, into]
        self._answers_to[into.fileno()] = out.fileno()
        self._delays[into.fileno()] = self._spread * number / self._of

    def beat(self, until: float) -> None:
        """Answer pings until the input ends, the monitor does, or it is time."""
        with select.epoll() as poll:
            poll.register(0, select.EPOLLIN)
            for into in self._answers_to:
                poll.register(into, select.EPOLLIN)
            while (left := until - time.monotonic()) > 0:
                due = self._waiting[0][0] - time.monotonic() if self._waiting else left
                events = poll.poll(max(0.0, min(left, due)), len(self._answers_to) + 1)
                try:
                    if not self._hear([file for file, _ in events]):
                        return
                    self._answer_those_due()
                except (ConnectionError, BrokenPipeError):
                    return
                _COUNTER.pack_into(self._count, 0, self._answered)

    def _hear(self, files: list[int]) -> bool:
        """Take what has come in, and answer it or put it off; False when there is no more to come."""
        read, write, answers_to = os.read, os.write, self._answers_to
        for file in files:
            if file == 0:
                return False
            data = read(file, _LONGEST_READ)
            if not data:
                return False
            if self._spread:
                heapq.heappush(self._waiting, (time.monotonic() + self._delays[file], answers_to[file], data))
            else:
                write(answers_to[file], data)
                self._answered += 1
        return True

    def _answer_those_due(self) -> None:
        now = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now:
            _, out, data = heapq.heappop(self._waiting)
            os.write(out, data)
            self._answered += 1


def connect(address: str, kind: bytes, identity: bytes = b"") -> socket.socket:
    """Connect to a zmq socket as a socket of this kind would, and return when it has introduced itself, too."""
    scheme, _, rest = address.partition("://")
    if scheme == "ipc":
        made = socket.socket(socket.AF_UNIX)
        made.settimeout(_PATIENCE)
        made.connect("\0" + rest[1:] if rest.startswith("@") else rest)
    else:
        host, _, port = rest.rpartition(":")
        made = socket.create_connection((host, int(port)), _PATIENCE)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.sendall(_GREETING + introduction(kind, identity))
    receive(made, len(_GREETING))
    _flags, size = receive(made, 2)
    receive(made, size)
    if kind == b"SUB":
        made.sendall(_SUBSCRIPTION)
    made.settimeout(None)
    return made


def introduction(kind: bytes, identity: bytes) -> bytes:
    """Return the command READY of the protocol: what kind of socket this is, and its routing id."""
    properties = {b"Socket-Type": kind, **({b"Identity": identity} if identity else {})}
    body = b"\x05READY" + b"".join(
        bytes([len(name)]) + name + struct.pack("!I", len(value)) + value for name, value in properties.items()
    )
    return bytes([0x04, len(body)]) + body


def receive(source: socket.socket, size: int) -> bytes:
    """Read exactly so many bytes."""
    data = b""
    while len(data) < size:
        more = source.recv(size - len(data))
        if not more:
            raise ConnectionError("the monitor has closed the connection during the introduction")
        data += more
    return data


if __name__ == "__main__":
    main()
