"""The proxy: carries every byte between engines and controller, so that one engine's network can be hurt.

In a process of its own, for a test that holds the interpreter lock must not cut the network. Standard library only.
Run as ``python -m pytest_ipcluster.network.proxy SOCKET``: it connects to that Unix socket, takes orders from there, a
line of JSON each, and ends when that connection does. Every order has a ``"number"``; the answer repeats it, with
``"done"`` or ``"failed"``.

A *lane* is the network of one engine. It has one listener on 127.0.0.1 for each *channel*, as the controller has; what
connects there is connected to the controller's port of that channel, which stands in a connection file that is read
at that moment. *Up* is from the engine to the controller, *down* the other way. Each direction of a channel has a rule
of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any

from pytest_ipcluster.network.streams import DIRECTIONS, Link, Rule, cancel, log, make_prompt, reset

#: The connections that a listener keeps at most at a time; an engine has one or two on each channel.
_MOST_LINKS = 64

#: Seconds before the next try when there are no more descriptors.
_AGAIN = 0.1


class Channel:
    """One listener of a lane. Its target is the port ``key`` in a connection file; of several, number ``leaf``."""

    def __init__(self, file: str, key: str, leaf: int) -> None:
        self._file, self._key, self._leaf = file, key, leaf
        self.rules = {direction: Rule() for direction in DIRECTIONS}
        self.refusing = False
        self._accepted = self._resets = 0
        self._links: set[Link] = set()
        self._kept: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port = int(self._listener.getsockname()[1])
        self._tasks = {asyncio.create_task(self._listen())}

    async def _listen(self) -> None:
        while True:
            try:
                near, _ = await asyncio.get_running_loop().sock_accept(self._listener)
            except OSError as error:  # no more descriptors, which can change
                log(f"cannot accept a connection: {error!r}")
                await asyncio.sleep(_AGAIN)  # that one is free again is told to nobody
                continue
            task = asyncio.create_task(self._serve(near))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, near: socket.socket) -> None:
        self._accepted += 1
        if self.refusing or len(self._links) + len(self._kept) >= _MOST_LINKS:
            return reset(near)
        make_prompt(near)
        link = Link(near)
        self._links.add(link)
        try:
            await link.run(self)
        finally:
            self._links.discard(link)
            if link.kept is not None:
                self._kept.append(link.kept)

    async def passable(self) -> None:
        """Wait while both directions are frozen: nobody can connect through such a network."""
        while all(rule.frozen for rule in self.rules.values()):
            thaws = [asyncio.create_task(rule.thaw()) for rule in self.rules.values()]
            try:
                await asyncio.wait(thaws, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await cancel(thaws)

    def target(self) -> tuple[str, int]:
        """Return host and port of the controller. Raises OSError, ValueError, KeyError when the file has none."""
        with open(self._file, encoding="utf-8") as file:
            content = json.load(file)
        host, port = content["interface"].partition("://")[2], content[self._key]
        if isinstance(port, list):
            port = port[self._leaf % len(port)]
        return ("127.0.0.1" if host in {"*", "0.0.0.0"} else host), int(port)  # noqa: S104 - not bound here

    async def reset(self, ends: Iterable[str] = DIRECTIONS) -> int:
        """Reset all its connections, at these ends; return how many there were."""
        links = list(self._links)
        for link in links:
            await link.reset(ends)
        self._resets += len(links)
        return len(links)

    async def heal(self, directions: Iterable[str] = DIRECTIONS) -> None:
        """Let everything pass again in these directions; with both of them also undo what was done to connections.

        Half-open ones are ended, and those that came after them, for what one end takes for alive the other may have
        replaced.
        """
        for direction in directions:
            self.rules[direction].heal()
        if set(directions) != set(DIRECTIONS):
            return
        self.refusing = False
        if self._kept:
            self._drop_kept()
            await self.reset()

    def _drop_kept(self) -> None:
        for one in self._kept:
            reset(one)
        self._kept = []

    async def clear(self) -> None:
        """Drop every connection with what waits in it, heal, and count from zero: another engine is to come."""
        await self.reset()
        self._drop_kept()
        await self.heal()
        self._accepted = self._resets = 0
        for rule in self.rules.values():
            rule.forget()

    def state(self) -> dict[str, Any]:
        """Return its counts."""
        rules = {
            direction: {"passed": rule.passed, "discarded": rule.discarded, "cuts": rule.cuts}
            for direction, rule in self.rules.items()
        }
        links = {"open": len(self._links), "half_open": len(self._kept)}
        return {"accepted": self._accepted, "resets": self._resets, **links, **rules}


class Proxy:
    """All lanes, by name, each with its channels by name; the methods in ``ORDERS`` are what can be ordered."""

    def __init__(self) -> None:
        self._lanes: dict[str, dict[str, Channel]] = {}

    async def obey(self, order: dict[str, Any]) -> Any:
        """Carry out one order and return the answer to it."""
        return await ORDERS[order["do"]](self, order)

    async def open(self, order: dict[str, Any]) -> dict[str, int]:
        """Open a lane that is not there yet; return the ports of its channels."""
        channels = self._lanes.setdefault(order["lane"], {})
        for name in order["channels"]:
            if name not in channels:
                channels[name] = Channel(order["file"], name, order["leaf"])
        return {name: channel.port for name, channel in channels.items()}

    def _chosen(self, order: dict[str, Any]) -> Iterator[Channel]:
        channels = self._lanes[order["lane"]]
        yield from (channels[name] for name in order["channels"])

    async def change(self, order: dict[str, Any]) -> None:
        """Change rules."""
        for channel in self._chosen(order):
            for direction in order["directions"]:
                channel.rules[direction].change(order["rule"])

    async def refuse(self, order: dict[str, Any]) -> None:
        """Take no more connections."""
        for channel in self._chosen(order):
            channel.refusing = True

    async def reset(self, order: dict[str, Any]) -> int:
        """Reset connections; return how many."""
        return sum([await channel.reset(order["directions"]) for channel in self._chosen(order)])

    async def heal(self, order: dict[str, Any]) -> None:
        """Heal channels."""
        for channel in self._chosen(order):
            await channel.heal(order["directions"])

    async def clear(self, order: dict[str, Any]) -> None:
        """Drop connections and heal."""
        for channel in self._chosen(order):
            await channel.clear()

    async def state(self, order: dict[str, Any]) -> dict[str, Any]:
        """Return the counts of the channels."""
        return {name: self._lanes[order["lane"]][name].state() for name in order["channels"]}


ORDERS: dict[str, Callable[[Proxy, dict[str, Any]], Coroutine[Any, Any, Any]]] = {
    "open": Proxy.open,
    "change": Proxy.change,
    "refuse": Proxy.refuse,
    "reset": Proxy.reset,
    "heal": Proxy.heal,
    "clear": Proxy.clear,
    "state": Proxy.state,
}


def _allow_many_descriptors() -> None:
    with contextlib.suppress(ImportError):  # not everywhere, and neither is the limit
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def serve(path: str) -> None:
    """Obey what comes over the Unix socket at this path, one order after the other, until that ends."""
    orders, answers = await asyncio.open_unix_connection(path)
    proxy = Proxy()
    while line := await orders.readline():
        order = json.loads(line)
        answer = {"number": order["number"]}
        try:
            answer["done"] = await proxy.obey(order)
        except Exception as error:  # whoever has ordered it is to know
            answer["failed"] = repr(error)
        answers.write(json.dumps(answer).encode() + b"\n")
        await answers.drain()


if __name__ == "__main__":
    _allow_many_descriptors()
    with contextlib.suppress(ConnectionError):  # who gives the orders is gone
        asyncio.run(serve(sys.argv[1]))
