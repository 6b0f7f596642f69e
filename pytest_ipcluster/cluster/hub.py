"""Asking the hub who is registered, and hearing it say who comes and goes.

This speaks the hub's own protocol (Jupyter messages on its ``registration`` and ``notification`` sockets), so
that every wait can be woken by the hub's notices *and* by the death of a process, which a blocking client call
cannot.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import zmq

from pytest_ipcluster.cluster.wakeup import Wakeup
from pytest_ipcluster.errors import ClusterError

__all__ = ["Hub", "HubSilentError", "Unfinished", "Wire"]

#: A notice published before our subscription arrived is lost. That is a matter of milliseconds, so the question that
#: makes up for it comes after so many seconds, the next one after twice as many, and so on up to the longest pause.
_ASK_SOON, _ASK_AGAIN = 0.02, 1.0

#: The longest sleep between two calls of ``check``, in seconds, for what no alarm rings for.
_TURN = 0.25


class HubSilentError(ClusterError):
    """The hub did not answer in time."""


@dataclass(frozen=True, slots=True)
class Unfinished:
    """Tasks that have not come to an end, by their message ids.

    Of load-balanced ones, those that are ``waiting`` for an engine and those that each engine was ``given``; and those
    that were sent ``direct`` to an engine. Of these some may have ended long ago: ten seconds after an engine was
    replaced, ipyparallel's hub takes the tasks that the new engine of this id has then for lost with the old one.
    """

    waiting: frozenset[str] = frozenset()
    given: Mapping[int, frozenset[str]] = field(default_factory=dict)
    direct: frozenset[str] = frozenset()

    @property
    def ids(self) -> frozenset[str]:
        """All of them."""
        return self.waiting.union(self.direct, *self.given.values())


class Wire:
    """Sockets to one cluster's controller, on a context of their own, made from its client connection file's content.

    ``session`` speaks its language. Lives in one thread. ``close()`` may be called twice.
    """

    def __init__(self, connection: Mapping[str, Any]) -> None:
        from jupyter_client.session import (
            Session,
        )  # the longest import of all, so only when there is somebody to talk to

        self.session = Session(
            key=connection["key"].encode(),
            signature_scheme=connection["signature_scheme"],
            packer=connection["pack"],
            unpacker=connection["unpack"],
        )
        self._connection = connection
        self._context = zmq.Context()

    def connect(self, channel: str, kind: int = zmq.DEALER) -> zmq.Socket[bytes]:
        """Return a new socket that is connected to this channel of the controller."""
        socket: zmq.Socket[bytes] = self._context.socket(kind)
        socket.linger = 0
        if self._connection.get("curve_serverkey"):
            socket.curve_serverkey = self._connection["curve_serverkey"].encode()
            socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
        socket.connect(f"{self._connection['interface']}:{self._connection[channel]}")
        return socket

    def close(self) -> None:
        """Close the sockets and their context."""
        self._context.destroy(linger=0)


class Hub:
    """A connection to the hub of one cluster, made from its client connection file's content, ``connection``.

    Lives in one thread. ``close()`` may be called twice.
    """

    def __init__(self, connection: Mapping[str, Any]) -> None:
        self.connection = connection
        self._wire = Wire(connection)
        self._session = self._wire.session
        self._requests = self._wire.connect("registration")
        self._notices = self._wire.connect("notification", zmq.SUB)
        self._notices.subscribe(b"")
        self._asked = False

    def engines(self, timeout: float) -> dict[int, str]:
        """Return the registered engines, id to uuid; raise :class:`HubSilentError` after ``timeout`` seconds."""
        engines = self._ask(timeout)
        if engines is None:
            raise HubSilentError(f"the hub did not answer within {timeout:.1f} s")
        return engines

    def _ask(self, timeout: float) -> dict[int, str] | None:
        """Ask for the engines; None when no answer came in time. An unanswered question stays asked."""
        if not self._asked:
            self._session.send(self._requests, "connection_request", content={})
            self._asked = True
        if not self._requests.poll(max(1, int(timeout * 1000))):
            return None
        self._asked = False
        _, reply = self._session.recv(self._requests, mode=0)
        return {int(number): uuid for number, uuid in reply["content"]["engines"].items()} if reply else None

    def load(self, timeout: float) -> tuple[int, set[int]]:
        """Return how many load-balanced tasks wait for an engine, and the ids of the engines that have tasks to do.

        Raises :class:`HubSilentError` after ``timeout`` seconds.
        """
        queues = self._queues(timeout)
        working = {number for number, queue in _by_engine(queues).items() if queue["queue"] or queue["tasks"]}
        return int(queues["unassigned"]), working

    def unfinished(self, timeout: float, *, direct: bool) -> Unfinished:
        """Return the tasks that have not come to an end, whoever submitted them; those of broadcasts are not known.

        Without ``direct``, load-balanced ones are enough. Raises :class:`HubSilentError` after ``timeout`` seconds.
        """
        # First only whether, for the full answer also names every task that each engine has ever done.
        queues = self._queues(timeout)
        if direct or queues["unassigned"] or any(queue["tasks"] for queue in _by_engine(queues).values()):
            return _unfinished(self._queues(timeout, verbose=True))
        return Unfinished()

    def _queues(self, timeout: float, *, verbose: bool = False) -> dict[str, Any]:
        """Ask for the tasks that are not finished, by engine, and the number of those that wait for one.

        With ``verbose`` they are given by their message ids.
        """
        self._session.send(self._requests, "queue_request", content={"targets": None, "verbose": verbose})
        deadline = time.monotonic() + timeout
        while self._requests.poll(max(0, int((deadline - time.monotonic()) * 1000))):
            _, reply = self._session.recv(self._requests, mode=0)
            if reply and "unassigned" in reply["content"]:
                return dict(reply["content"])
            self._asked = False  # it was the late answer to the question for the engines
        raise HubSilentError(f"the hub did not answer within {timeout:.1f} s")

    def unregister(self, number: int) -> None:
        """Tell the hub that the engine with this id is gone, as its nanny would."""
        self._session.send(self._requests, "unregistration_request", content={"id": number})

    def wait_until(
        self,
        reached: Callable[[dict[int, str]], bool],
        deadline: float,
        wakeup: Wakeup,
        check: Callable[[], object],
    ) -> dict[int, str] | None:
        """Wait until the registered engines satisfy ``reached``; return them, or None when the deadline passed.

        ``check`` is called at every turn and raises when waiting has become pointless; ``wakeup`` brings the
        turns.
        """
        wakeup.watch_fd(self._notices.fileno())
        ask_at, pause = 0.0, _ASK_SOON
        while True:
            check()
            now = time.monotonic()
            if self._drain() or now >= ask_at:
                engines, ask_at, pause = self._ask(_TURN), now + pause, min(2 * pause, _ASK_AGAIN)
                if engines is not None and reached(engines):
                    return engines
            if now >= deadline:
                return None
            wakeup.wait(min(_TURN, ask_at - now, deadline - now))

    def _drain(self) -> bool:
        """Read every notice that has arrived; they only say that it is time to ask. True if there was one."""
        found = False
        while self._notices.poll(0):
            self._notices.recv_multipart()
            found = True
        return found

    def close(self) -> None:
        """Close the sockets and their context."""
        self._wire.close()


def _unfinished(queues: Mapping[str, Any]) -> Unfinished:
    engines = _by_engine(queues)
    given = {number: frozenset(queue["tasks"]) for number, queue in engines.items() if queue["tasks"]}
    direct = frozenset(task for queue in engines.values() for task in queue["queue"])
    return Unfinished(frozenset(queues["unassigned"]), given, direct)


def _by_engine(queues: Mapping[str, Any]) -> dict[int, Any]:
    return {int(key): value for key, value in queues.items() if key.isdecimal()}
