"""Three kinds of alive: a process that runs, an interpreter that answers, a task that is worked on.

A heart proves the first alone: it beats in a thread without Python. What proves the second is an answer on the control
channel, where an engine takes requests beside its task. The third the engine tells by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, closing
from typing import TYPE_CHECKING, Any

from pytest_ipcluster.cluster.engines import Engine
from pytest_ipcluster.cluster.hub import Hub, Wire
from pytest_ipcluster.errors import ClusterError

if TYPE_CHECKING:
    import zmq

__all__ = ["answers", "state_of"]

#: Seconds for an interpreter that is not stuck: one that computes in Python answers within a twentieth of that.
_PATIENCE = 1.0

#: Seconds after which it is asked again: what is sent before the way to a new engine stands is lost.
_ASK_AGAIN = 0.25


def state_of(engine: Engine, connect: Callable[[], AbstractContextManager[Hub]]) -> str:
    """Return ``"idle"``, ``"busy"``, ``"stuck"`` or ``"zombie"`` for an engine whose process lives and is not paused.

    A hub that is silent can't tell a zombie, and without the control scheduler every engine looks stuck.
    """
    try:
        with connect() as hub:
            if engine.ident not in hub.engines(_PATIENCE).values():
                return "zombie"
            connection = hub.connection
    except ClusterError:  # nobody knows
        return "busy" if engine.task else "idle"
    if not answers(connection, engine.ident, _PATIENCE):
        return "stuck"
    return "busy" if engine.task else "idle"


def answers(connection: Mapping[str, Any], ident: str, timeout: float) -> bool:
    """Tell whether the interpreter of the engine with this uuid answers within ``timeout`` seconds, whatever it does.

    It is asked to drop a task that nobody has sent. ``connection`` is the content of the client connection file.
    """
    with closing(Wire(connection)) as wire:
        control = wire.connect("control")
        deadline, asked = time.monotonic() + timeout, set()
        while True:
            question = wire.session.msg("abort_request", content={"msg_ids": ["a task that nobody has sent"]})
            wire.session.send(control, question, ident=ident.encode())
            asked.add(question["header"]["msg_id"])
            left = deadline - time.monotonic()
            if _is_answered(wire, control, asked, min(_ASK_AGAIN, left)):
                return True
            if left <= 0:
                return False


def _is_answered(wire: Wire, control: zmq.Socket[bytes], asked: Collection[str], timeout: float) -> bool:
    """Wait for an answer to one of these questions; one that is there already counts, however little time is left."""
    deadline = time.monotonic() + timeout
    while control.poll(max(0, int(1000 * (deadline - time.monotonic())))):
        _, reply = wire.session.recv(control, mode=0)
        if reply is not None and reply["parent_header"].get("msg_id") in asked:
            return True
    return False
