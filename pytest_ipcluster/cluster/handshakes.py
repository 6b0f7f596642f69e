"""The heart of a forked engine does not start before the schedulers know the engine.

An engine begins to connect to its schedulers, and starts its heart without looking whether they have met. What a
scheduler sends to somebody whom it does not know is lost, and a load-balancing one may have a task ready for whoever
comes: it waits for no more than the hub's word, which the heart is the last thing to bring about.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

__all__ = ["Handshakes", "shake_hands_before_the_heart_starts"]

#: Seconds after which the heart starts all the same: a scheduler that never answers is no reason for not being there.
_PATIENCE = 5.0


def shake_hands_before_the_heart_starts() -> None:
    """Have the engine that this process is going to be wait for its schedulers before it starts its heart."""
    from ipyparallel.engine import app

    make_connector, start_heart = app.IPEngine.init_connector, app.IPEngine.start_heartbeat
    handshakes = Handshakes()

    def make_watchful_connector(engine: Any) -> tuple[Callable[..., Any], Any]:
        connect, tunnel = make_connector(engine)

        def connect_and_watch(socket: Any, *args: Any, **kwargs: Any) -> Any:
            if socket is getattr(engine, "shell_socket", None):
                handshakes.expect_one_more(socket)
            return connect(socket, *args, **kwargs)

        return connect_and_watch, tunnel

    def start_heart_later(engine: Any, *args: Any, **kwargs: Any) -> None:
        if not handshakes.wait(_PATIENCE):
            engine.log.warning("A scheduler has not answered within %s s: it may lose the first tasks", _PATIENCE)
        start_heart(engine, *args, **kwargs)

    app.IPEngine.init_connector = make_watchful_connector
    app.IPEngine.start_heartbeat = start_heart_later


class Handshakes:
    """Those of the connections of one socket, which is watched until :meth:`wait`, from the first one on."""

    def __init__(self) -> None:
        self._expected = 0
        self._socket: Any = None
        self._notices: Any = None

    def expect_one_more(self, socket: Any) -> None:
        """Take note that this socket is about to connect once more."""
        import zmq

        if self._socket is None:
            self._socket = socket
            self._notices = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self._expected += 1

    def wait(self, seconds: float) -> bool:
        """Wait until the socket has shaken hands with everybody, at most so long; return whether it has."""
        met: set[bytes] = set()  # by address, for who has lost a connection greets once more
        deadline = time.monotonic() + seconds
        while len(met) < self._expected and self._notices.poll(max(0.0, 1000 * (deadline - time.monotonic()))):
            _, address = self._notices.recv_multipart()
            met.add(address)
        self._look_away()
        return len(met) >= self._expected

    def _look_away(self) -> None:
        if self._socket is not None:
            self._socket.disable_monitor()
            self._notices.close(linger=0)
