"""Proving that work arrives: one task to every engine through each of the controller's schedulers.

That an engine is registered says only that it and the hub know each other. Tasks go through schedulers, which are
processes of their own: one that hangs or has lost its port carries nothing, and whoever waits for a result waits
for ever.

This speaks the schedulers' own protocol. A client of ipyparallel's would cost its import, which takes longer than
all of this, and could not be woken by the death of a process.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_ipcluster.cluster.hub import Wire
from pytest_ipcluster.cluster.wakeup import Wakeup

if TYPE_CHECKING:
    import zmq
    from jupyter_client.session import Session

__all__ = ["Proof"]

#: A task that a scheduler gets before the engine has connected to it is lost; another one this often (seconds) makes
#: up for it.
_ASK_AGAIN = 0.5

#: The longest sleep between two calls of ``check``, in seconds, for what no alarm rings for.
_TURN = 0.25

#: ``bool()`` in the form of an ``apply_request``: it exists wherever there is Python, and does nothing.
_TASK = (pickle.dumps(bool), pickle.dumps({"nargs": 0, "narg_bufs": 0, "kw_keys": []}))


class Proof:
    """Connections to each scheduler of a controller; ``connection`` is the content of its client connection file.

    They take a moment to come up, so whoever waits for engines opens them meanwhile. A load-balancing scheduler of the
    scheme "pure" is left out: it can't be told whom to give a task. ``check`` is called at every turn of a wait and
    raises when waiting has become pointless; ``wakeup`` brings the turns. Lives in one thread. ``close()`` may be
    called twice.
    """

    def __init__(self, connection: Mapping[str, Any], wakeup: Wakeup, check: Callable[[], object]) -> None:
        self._wakeup, self._check = wakeup, check
        self._wire = Wire(connection)
        kinds = [kind for kind in _KINDS if not kind.keeps or connection["task_scheme"] != "pure"]
        self._sockets = {kind: self._wire.connect(kind.channel) for kind in kinds}

    def carry(self, engines: Mapping[int, str], deadline: float) -> str:
        """Have a task carried to each of these engines (id to uuid) by each scheduler; return "" when all answered.

        At the ``deadline`` on the clock of ``time.monotonic()`` return which scheduler has not carried one to whom.
        """
        paths = [_Path(kind, socket, self._wire.session, dict(engines)) for kind, socket in self._sockets.items()]
        for path in paths:
            self._wakeup.watch_fd(path.socket.fileno())
        first = [path for path in paths if not path.kind.keeps]
        last = [path for path in paths if path.kind.keeps]
        try:
            return self._wait(first, deadline) or self._wait(last, deadline)
        finally:
            for path in paths:
                self._wakeup.ignore_fd(path.socket.fileno())

    def close(self) -> None:
        """Close the connections."""
        self._wire.close()

    def _wait(self, paths: list[_Path], deadline: float) -> str:
        ask_at = 0.0
        while True:
            self._check()
            for path in paths:
                path.hear()
            if not any(path.waiting for path in paths):
                return ""
            now = time.monotonic()
            if now >= ask_at:
                ask_at = now + _ASK_AGAIN
                for path in paths:
                    path.ask()
            if now >= deadline:
                return " and ".join(path.complaint() for path in paths if path.waiting)
            self._wakeup.wait(min(_TURN, ask_at - now, deadline - now))


@dataclass(frozen=True, slots=True)
class _Message:
    """The engine that a task is meant for, empty for several, the address it carries, and what the scheduler reads."""

    uuid: str
    ident: bytes | None
    metadata: dict[str, Any]


def _direct(engines: Mapping[int, str]) -> Iterator[_Message]:
    for uuid in engines.values():
        yield _Message(uuid, uuid.encode(), {})


def _load_balanced(engines: Mapping[int, str]) -> Iterator[_Message]:
    plain: dict[str, Any] = {"after": [], "follow": [], "timeout": None, "retries": 0}
    for uuid in engines.values():
        yield _Message(uuid, None, {"targets": [uuid], **plain})


def _broadcast(engines: Mapping[int, str]) -> Iterator[_Message]:
    if engines:
        targets = [[uuid, number] for number, uuid in engines.items()]
        yield _Message("", None, {"targets": targets, "is_broadcast": True, "is_coalescing": False})


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of scheduler: its name, the controller's channel that leads to it, and the messages that it takes.

    One that ``keeps`` a task until the engine can take it is not asked twice: the second task might stay there. It is
    asked last, when the engine is known to have connected elsewhere: a task that it loses keeps the engine from getting
    any other.
    """

    name: str
    channel: str
    messages: Callable[[Mapping[int, str]], Iterator[_Message]]
    keeps: bool = False


_KINDS = (
    _Kind("direct", "mux", _direct),
    _Kind("load-balancing", "task", _load_balanced, keeps=True),
    _Kind("broadcast", "broadcast", _broadcast),
)


@dataclass(slots=True)
class _Path:
    """The way to the engines through one scheduler; ``waiting`` are those from which no answer came back on it yet."""

    kind: _Kind
    socket: zmq.Socket[bytes]
    session: Session
    waiting: dict[int, str]
    _meant: dict[str, str] = field(default_factory=dict)  # tasks that are on their way: message id to engine

    def ask(self) -> None:
        """Send a task to every engine that is waited for."""
        on_their_way = set(self._meant.values()) if self.kind.keeps else set()
        for message in self.kind.messages({n: u for n, u in self.waiting.items() if u not in on_their_way}):
            task = self.session.msg("apply_request", content={}, metadata=message.metadata)
            self._meant[task["header"]["msg_id"]] = message.uuid
            self.session.send(self.socket, task, ident=message.ident, buffers=list(_TASK))

    def hear(self) -> None:
        """Book every answer that has arrived. One that does not come from an engine says that it was not reached."""
        while self.socket.poll(0):
            _, answer = self.session.recv(self.socket, mode=0)
            if answer is not None:
                uuid = self._meant.pop(answer["parent_header"]["msg_id"], "") or answer["metadata"].get("engine")
                if answer["content"].get("status") == "ok":
                    self.waiting = {n: u for n, u in self.waiting.items() if u != uuid}

    def complaint(self) -> str:
        """Say who is still waited for."""
        return f"the {self.kind.name} scheduler has not carried a task to slots {sorted(self.waiting)} and back"
