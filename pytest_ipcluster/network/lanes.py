"""A network of its own for each engine of a cluster, and the ways to hurt it: the other end of the proxy."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_ipcluster.errors import ClusterError
from pytest_ipcluster.network.routes import CHANNELS, CLIENT_CHANNELS

__all__ = ["CHANNEL_NAMES", "CLIENT", "DIRECTIONS", "Lanes"]

#: The name of the lane that clients can have, in place of a slot.
CLIENT = "client"

#: The channels by the names that users know, with the listeners that belong to each.
CHANNEL_NAMES: Mapping[str, tuple[str, ...]] = {
    "registration": ("registration",),
    "control": ("control",),
    "mux": ("mux",),
    "task": ("task",),
    "iopub": ("iopub",),
    "heartbeat": ("hb_ping", "hb_pong"),
    "broadcast": ("broadcast",),
    "notification": ("notification",),
}

#: From the engine to the controller, and the other way.
DIRECTIONS = ("up", "down")

#: Seconds for the proxy to do what takes it a few milliseconds; it is late only on a machine that is stuck.
_ANSWERS_WITHIN = 30.0

#: The longest path that a Unix socket can have here, with a margin (bytes).
_LONGEST_PATH = 100

#: Seconds between two looks whether the proxy has ended before it has come.
_LOOK_EVERY = 0.25


#: A slot, or ``CLIENT``.
Where = int | str

#: A name of a channel, several of them, or None for all.
Channels = str | Iterable[str] | None


class Lanes:
    """The lanes of one running cluster, one for each slot, and one for clients. Good for any thread.

    ``folder`` is a private one, for the socket by which the proxy is ordered about and for the file ``routes`` that
    tells launchers the ports; ``connection_file`` is the one with which engines connect, ``client_file`` that of
    clients; ``spawn`` starts a process. Every order is given ``timeout`` seconds. Raises ClusterError when the proxy
    does not come, is gone, or doesn't answer.

    A fault stays until it is healed. A ``slot`` can also be ``"client"``, once that lane is in use. ``channels`` is one
    of ``CHANNEL_NAMES`` or several, ``direction`` one of ``"up"`` (from the engine or the client to the controller) and
    ``"down"``; left out they mean all and both. A slot, a channel or a direction that does not exist is a ValueError.
    Durations are seconds.
    """

    def __init__(
        self,
        folder: Path,
        connection_file: Path,
        client_file: Path,
        spawn: Callable[[Sequence[str]], subprocess.Popen[bytes]],
        timeout: float = _ANSWERS_WITHIN,
    ) -> None:
        self.routes = folder / "lanes.json"
        #: By which Unix socket the proxy is ordered about.
        self.socket = folder / "lanes"
        self._files = (connection_file, client_file)
        self._timeout = timeout
        self._lock = threading.RLock()
        self._number = 0
        self._ports: dict[Where, dict[str, int]] = {}
        self._hurt: set[Where] = set()
        self._suspects: set[Where] = set()
        with _listener(self.socket) as listener:
            #: The Popen object of the proxy.
            self.process = spawn([sys.executable, "-m", "pytest_ipcluster.network.proxy", str(self.socket)])
            self._connection = _accepted(listener, self.process, timeout)
        self._answers = self._connection.makefile("rb")

    # -- lanes -------------------------------------------------------------------------------------

    def open(self, slots: Iterable[int]) -> None:
        """Open the lanes of these slots, where that has not been done, and write down their ports in ``routes``."""
        with self._lock:
            for slot in set(slots) - self._ports.keys():
                self._open(slot, CHANNELS, self._files[0], leaf=slot)
            unwritten = self.routes.with_suffix(".new")
            unwritten.write_text(json.dumps(self._ports), encoding="utf-8")
            unwritten.replace(self.routes)

    def _open(self, name: Where, channels: Sequence[str], file: Path, leaf: int) -> None:
        self._ports[name] = self._order("open", lane=str(name), channels=channels, file=str(file), leaf=leaf)

    def client_ports(self) -> dict[str, int]:
        """Return the ports of the clients' lane, which is opened if need be."""
        with self._lock:
            if CLIENT not in self._ports:
                self._open(CLIENT, CLIENT_CHANNELS, self._files[1], leaf=0)
            return dict(self._ports[CLIENT])

    def ports(self, slot: int) -> dict[str, int]:
        """Return the ports of this slot's lane, which is opened if need be."""
        self.open([slot])
        return dict(self._ports[slot])

    @property
    def slots(self) -> tuple[int, ...]:
        """The slots that have a lane."""
        return tuple(sorted(slot for slot in self._ports if isinstance(slot, int)))

    @property
    def hurt(self) -> tuple[Where, ...]:
        """The slots whose lanes have been hurt and not been healed as a whole since; ``"client"`` comes last."""
        return tuple(sorted(self._hurt, key=lambda slot: (isinstance(slot, str), slot)))

    @property
    def broken(self) -> tuple[int, ...]:
        """The slots whose engines may have lost messages: connections were broken here, or bytes discarded.

        Healing does not change that.
        """
        return tuple(slot for slot in self.slots if slot in self._suspects and self._is_broken(slot))

    def _is_broken(self, slot: int) -> bool:
        counts = self.state(slot).values()
        lost = (one[way][what] for one in counts for way in DIRECTIONS for what in ("cuts", "discarded"))
        return any(one["resets"] for one in counts) or any(lost)

    def state(self, slot: Where) -> dict[str, dict[str, Any]]:
        """Return the counts of each listener of the lane since the engine came that uses it.

        Connections: ``accepted``, ``resets`` made here, and how many are ``open`` and ``half_open`` now. For ``"up"``
        and ``"down"``: bytes ``passed`` and ``discarded``, and ``cuts`` made.
        """
        return dict(self._ask("state", slot, None))

    # -- faults ------------------------------------------------------------------------------------

    def freeze(self, slot: Where, *, channels: Channels = None, direction: str | None = None) -> None:
        """Carry nothing any more, and lose nothing: what was on its way arrives after the healing.

        With both directions frozen nobody can connect either.
        """
        self._change(slot, channels, direction, frozen=True)

    def delay(
        self,
        slot: Where,
        seconds: float,
        jitter: float = 0.0,
        *,
        channels: Channels = None,
        direction: str | None = None,
        seed: int = 0,
    ) -> None:
        """Carry everything so many seconds later, give or take up to ``jitter`` seconds; the order stays.

        In both directions a round trip takes twice as long. The same ``seed`` gives the same sequence of delays.
        """
        if not 0 <= jitter <= seconds:
            raise ValueError(f"delay {seconds!r}, jitter {jitter!r}: expected seconds, 0 <= jitter <= delay")
        told = f"{seed} {slot}"  # not the same jitter on every lane
        self._change(slot, channels, direction, delay=seconds, jitter=jitter, seed=told)

    def rate(
        self, slot: Where, bytes_per_second: float, *, channels: Channels = None, direction: str | None = None
    ) -> None:
        """Carry at most so many bytes a second, on each connection and in each direction."""
        if not bytes_per_second > 0:
            raise ValueError(f"rate {bytes_per_second!r}: expected more than 0 bytes per second")
        self._change(slot, channels, direction, rate=bytes_per_second)

    def discard(self, slot: Where, *, channels: Channels = None, direction: str | None = None) -> None:
        """Throw away whatever comes. No network does this: what follows after the healing makes no sense to anybody."""
        self._change(slot, channels, direction, discarding=True)

    def cut(self, slot: Where, after: int = 0, *, channels: Channels = None, direction: str | None = None) -> None:
        """Carry exactly ``after`` more bytes on each channel in each direction, then break that connection, once.

        With 0 the next byte breaks it and does not arrive. The receiver sees an end, the sender a reset.
        """
        if isinstance(after, bool) or not isinstance(after, int) or after < 0:
            raise ValueError(f"cut after {after!r}: expected a number of bytes, 0 or more")
        self._change(slot, channels, direction, left=after)

    def reset(self, slot: Where, *, channels: Channels = None, direction: str | None = None) -> int:
        """Break the connections that there are, with a reset to both ends; return how many there were.

        New ones can be made at once. With a ``direction`` it is the same as ``half_open``.
        """
        return self._break(slot, channels, DIRECTIONS if direction is None else [_direction(direction)])

    def half_open(self, slot: Where, *, channels: Channels = None, direction: str | None = "down") -> int:
        """Break connections for one end only, the engine (``"down"``) or the controller (``"up"``); return how many.

        To the other end each is as alive as before, and what it sends there is lost. ``heal`` ends these for good.
        """
        return self._break(slot, channels, [_direction("down" if direction is None else direction)])

    def refuse(self, slot: Where, *, channels: Channels = None) -> None:
        """Take no new connections; those that there are stay."""
        self._hurt_by("refuse", slot, channels)

    def heal(self, slot: Where, *, channels: Channels = None, direction: str | None = None) -> None:
        """Undo every fault. What is lost stays lost, and an engine that the hub has dropped stays dropped.

        With a ``direction`` only what is done to the bytes that go there.
        """
        self._ask("heal", slot, channels, directions=_directions(direction))
        if channels is None and direction is None:
            self._hurt.discard(slot)

    def heal_all(self) -> None:
        """Heal every lane that was hurt."""
        for slot in self.hurt:
            self.heal(slot)

    def clear(self, slot: Where) -> None:
        """Drop all connections of the lane with everything in them, and heal it: for an engine that is no more."""
        if slot in self._ports:
            self._ask("clear", slot, None)
            self._hurt.discard(slot)
            self._suspects.discard(slot)

    def _change(self, slot: Where, channels: Channels, direction: str | None, **rule: object) -> None:
        self._hurt_by("change", slot, channels, directions=_directions(direction), rule=rule)

    def _break(self, slot: Where, channels: Channels, directions: Sequence[str]) -> int:
        return int(self._hurt_by("reset", slot, channels, directions=directions))

    def _hurt_by(self, what: str, slot: Where, channels: Channels, **more: object) -> Any:
        lane, listeners = self._lane(slot), self._listeners(slot, channels)
        self._hurt.add(slot)  # also when the answer does not come
        self._suspects.add(slot)
        return self._order(what, lane=lane, channels=listeners, **more)

    def _ask(self, what: str, slot: Where, channels: Channels, **more: object) -> Any:
        return self._order(what, lane=self._lane(slot), channels=self._listeners(slot, channels), **more)

    def _lane(self, slot: Where) -> str:
        if isinstance(slot, bool) or slot not in self._ports:
            raise ValueError(f"slot {slot!r}: expected one of {', '.join(map(repr, self._ports))}")
        return str(slot)

    def _listeners(self, slot: Where, channels: Channels) -> list[str]:
        """Return the listeners of these channels; all that the lane has for None."""
        ports = self._ports[slot]
        if channels is None:
            return list(ports)
        names = [channels] if isinstance(channels, str) else list(channels)
        known = [name for name, listeners in CHANNEL_NAMES.items() if set(listeners) <= ports.keys()]
        for name in names:
            if name not in known:
                raise ValueError(f"channel {name!r}: expected one or several of {', '.join(map(repr, known))}")
        if not names:
            raise ValueError("channels: expected at least one")
        return [listener for name in dict.fromkeys(names) for listener in CHANNEL_NAMES[name]]

    # -- the wire ----------------------------------------------------------------------------------

    def _order(self, what: str, **more: object) -> Any:
        """Give an order and wait until it has been carried out."""
        with self._lock:
            self._number += 1
            try:
                self._connection.sendall(json.dumps({"number": self._number, "do": what, **more}).encode() + b"\n")
                answer = self._answer()
            except TimeoutError as error:
                self.close()  # what is read half is of no use to the next order
                raise ClusterError(f"the lanes' proxy has not answered {what!r} for {self._timeout:g} s") from error
            except (OSError, ValueError) as error:
                raise ClusterError(f"the lanes' proxy (pid {self.process.pid}) has ended") from error
        if "failed" in answer:
            raise ClusterError(f"the lanes' proxy could not {what}: {answer['failed']}")
        return answer["done"]

    def _answer(self) -> dict[str, Any]:
        """Return the answer to the last order; those before it were not waited for to the end."""
        while True:
            answer = json.loads(self._answers.readline())
            if answer["number"] == self._number:
                return dict(answer)

    def close(self) -> None:
        """Have the proxy end: nothing goes through any lane after that. May be called twice."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._answers.close()
        self._connection.close()


def _listener(path: Path) -> socket.socket:
    """Return a Unix socket that listens at this path. Raises ClusterError where there can be none."""
    if not hasattr(socket, "AF_UNIX"):
        raise ClusterError("no Unix sockets here: engines can't have networks of their own")
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise ClusterError(f"the path {path} is too long for a Unix socket: have a shorter TMPDIR")
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)
    return listener


def _accepted(listener: socket.socket, process: subprocess.Popen[bytes], timeout: float) -> socket.socket:
    """Return the proxy's connection. Raises ClusterError when it ends before, or does not come in time."""
    deadline = time.monotonic() + timeout
    listener.settimeout(_LOOK_EVERY)
    while time.monotonic() < deadline:
        with contextlib.suppress(TimeoutError):
            connection, _ = listener.accept()
            connection.settimeout(timeout)
            return connection
        if process.poll() is not None:
            raise ClusterError(f"the lanes' proxy has ended with code {process.returncode} instead of coming up")
    raise ClusterError(f"the lanes' proxy (pid {process.pid}) has not come up within {timeout:g} s")


def _directions(direction: str | None) -> list[str]:
    return list(DIRECTIONS) if direction is None else [_direction(direction)]


def _direction(direction: str) -> str:
    if direction not in DIRECTIONS:
        raise ValueError(f"direction {direction!r}: expected 'up', 'down', or None for both")
    return direction
