"""The connections of the proxy: what happens to the bytes of each, and how it ends.

Nothing is understood of the bytes, so encrypted ones are as good as others. Standard library only.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

__all__ = ["DIRECTIONS", "DOWN", "UP", "Link", "Rule", "Way", "cancel", "log", "make_prompt", "reset"]

#: Bytes that are read at once, and how many such pieces wait at most in one direction of a connection.
_PIECE, _MOST_PIECES = 65536, 64

#: Seconds between two portions when a rate is kept.
_PORTION = 0.02

UP, DOWN = DIRECTIONS = ("up", "down")


class Rule:
    """What happens to the bytes of one channel that go in one direction. Durations are seconds, ``rate`` bytes/s.

    ``left`` is how many bytes a connection may carry before it is cut. ``passed`` and ``discarded`` count bytes.
    """

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self._set_free()
        self.forget()

    def forget(self) -> None:
        """Count from zero again."""
        self.passed = self.discarded = self.cuts = 0

    def _set_free(self) -> None:
        self.frozen = self.discarding = False
        self.delay = self.jitter = 0.0
        self.rate: float | None = None
        self.left: int | None = None
        self.random = random.Random(0)

    def change(self, values: Mapping[str, Any]) -> None:
        """Change some of it; a ``seed`` begins the sequence of random numbers anew."""
        for name, value in values.items():
            if name == "seed":
                self.random = random.Random(value)
            else:
                setattr(self, name, value)
        self._tell()

    def heal(self) -> None:
        """Let everything pass, also what waits."""
        self._set_free()
        self._tell()

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def wait(self, timeout: float | None = None) -> None:
        """Wait until the rule is changed, at most ``timeout`` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._changed.wait()

    async def thaw(self) -> None:
        """Wait while this direction is frozen."""
        while self.frozen:
            await self.wait()

    async def until_due(self, piece: Piece) -> None:
        """Wait until the time has come for the first piece of a line: those behind it can't overtake it."""
        while True:
            left = piece.read_at + self.delay + piece.spread * self.jitter - _now()
            if not self.frozen and left <= 0:
                return
            await self.wait(None if self.frozen else left)

    def portion(self, content: bytes) -> bytes:
        """Return the first bytes of these that may be sent at once."""
        size = len(content) if self.rate is None else max(1, int(self.rate * _PORTION))
        return content[: size if self.left is None else min(size, self.left)]

    def count(self, sent: int) -> bool:
        """Note how many bytes were sent; tell whether the connection is to be cut."""
        self.passed += sent
        if self.left is None:
            return False
        self.left -= sent
        if self.left > 0:
            return False
        self.left = None
        self.cuts += 1
        return True


class Piece(NamedTuple):
    """Bytes that wait to be passed on: none for the end of the stream, None when its sender has reset it."""

    read_at: float
    spread: float
    content: bytes | None


class StreamError(Exception):
    """A stream has ended in disorder: it was ``cut`` here, or else its sender has reset it."""

    def __init__(self, stream: Stream, *, cut: bool) -> None:
        super().__init__()
        self.stream = stream
        self.cut = cut


class Stream:
    """One direction of a connection: reads from ``source`` and passes on to ``target`` as the rule says."""

    def __init__(self, source: socket.socket, target: socket.socket, rule: Rule) -> None:
        self.source = source
        self.target = target
        self._rule = rule
        self._line: asyncio.Queue[Piece] = asyncio.Queue(_MOST_PIECES)

    async def run(self) -> None:
        """Pass on everything until the stream ends. Raises StreamError when that is not in order."""
        reader = asyncio.create_task(self._read())
        try:
            await self._write()
        except OSError:  # the target is gone. The other direction hears that, too, and tells it when it may
            return
        finally:
            await cancel([reader])

    async def _read(self) -> None:
        """Read as long as that is allowed: what is not read waits in the kernel, and then with its sender."""
        content: bytes | None = b"more"
        while content:
            await self._rule.thaw()
            try:
                content = await _loop().sock_recv(self.source, _PIECE)
            except OSError:
                content = None
            await self._line.put(Piece(_now(), self._rule.random.uniform(-1, 1), content))

    async def _write(self) -> None:
        while True:
            piece = await self._line.get()
            await self._rule.until_due(piece)
            if piece.content is None:
                raise StreamError(self, cut=False)
            if not piece.content:
                return self.target.shutdown(socket.SHUT_WR)
            await self._pass_on(piece.content)

    async def _pass_on(self, content: bytes) -> None:
        rule = self._rule
        while content and not rule.discarding:
            portion = rule.portion(content)
            await _loop().sock_sendall(self.target, portion)
            content = content[len(portion) :]
            if rule.count(len(portion)):
                raise StreamError(self, cut=True)
            if rule.rate is not None:
                await rule.wait(len(portion) / rule.rate)
            await rule.thaw()
        rule.discarded += len(content)


class Way(Protocol):
    """How a link gets to the controller, and the rules on its way."""

    @property
    def rules(self) -> Mapping[str, Rule]:
        """The rules by direction."""

    async def passable(self) -> None:
        """Wait until a connection can be made."""

    def target(self) -> tuple[str, int]:
        """Return host and port of the controller. Raises OSError, ValueError, KeyError when there is none."""


class Link:
    """The connection of an engine (``near``), and the one to the controller (``far``) that belongs to it."""

    def __init__(self, near: socket.socket) -> None:
        self.near = near
        self.far: socket.socket | None = None
        self.kept: socket.socket | None = None
        self._resetting: list[socket.socket] = []
        self._task = asyncio.current_task()

    async def run(self, way: Way) -> None:
        """Connect to the controller as soon as that can be, and carry bytes until both directions have ended."""
        try:
            await way.passable()
            self.far = await _connected(*way.target())
            up, down = way.rules[UP], way.rules[DOWN]
            await self._carry(Stream(self.near, self.far, up), Stream(self.far, self.near, down))
        except (OSError, ValueError, KeyError) as error:  # no such port yet, or no longer
            log(f"no way to the controller: {error!r}")
            self._resetting = self._sockets
        finally:
            self._close()

    @property
    def _sockets(self) -> list[socket.socket]:
        return [one for one in (self.near, self.far) if one is not None and one.fileno() != -1]

    async def _carry(self, *streams: Stream) -> None:
        tasks = [asyncio.create_task(stream.run()) for stream in streams]
        try:
            await asyncio.gather(*tasks)
        except StreamError as error:
            await cancel(tasks)
            if not error.cut:
                self._resetting = self._sockets
                return
            reset(error.stream.source)
            await _end_properly(error.stream.target)
        finally:
            await cancel(tasks)

    def _close(self) -> None:
        for one in self._sockets:
            if one is not self.kept:
                reset(one) if one in self._resetting else one.close()

    async def reset(self, ends: Iterable[str] = DIRECTIONS) -> None:
        """End it with a reset that goes to the engine (``"down"``), to the controller (``"up"``), or both ways.

        An end that is not told stays open, and nobody reads from it.
        """
        told = [one for one, way in ((self.near, DOWN), (self.far, UP)) if one is not None and way in ends]
        self._resetting = told
        self.kept = next((one for one in self._sockets if one not in told), None)
        assert self._task is not None
        await cancel([self._task])


# -- sockets and tasks -------------------------------------------------------------------------------


def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


def _now() -> float:
    return _loop().time()


async def cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Have these tasks end, whatever they do; a socket must not be closed while one of them uses it."""
    tasks = set(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def _connected(host: str, port: int) -> socket.socket:
    one = socket.socket()
    make_prompt(one)
    try:
        await _loop().sock_connect(one, (host, port))
    except BaseException:
        one.close()
        raise
    return one


def make_prompt(one: socket.socket) -> None:
    """Have a socket send at once, and not block."""
    one.setblocking(False)
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def reset(one: socket.socket) -> None:
    """Close a socket so that its peer sees a reset."""
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.close()


async def _end_properly(one: socket.socket) -> None:
    """End a connection so that all that was sent arrives: a reset could overtake what lies in the buffers."""
    one.shutdown(socket.SHUT_WR)
    while await _loop().sock_recv(one, _PIECE):
        pass


def log(line: str) -> None:
    """Write a line into the proxy's log, which is its output."""
    print(line, flush=True)  # noqa: T201 - see above
