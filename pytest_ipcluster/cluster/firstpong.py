"""An engine that is forked answers the hub's last ping when its heart starts, and need not wait for the next one.

The hub takes an engine for registered at the first beat after one that its heart has answered. The engine listens to
the hub's beats from the moment in which it begins to register, so when its heart starts it knows the last of them. What
the hub is told, and when it believes it, stays ipyparallel's.
"""

from __future__ import annotations

from typing import Any

__all__ = ["LastPing", "answer_last_ping", "listen_while_registering"]


def listen_while_registering() -> None:
    """Have the engine that this process is going to be listen to the hub's beats as soon as it starts."""
    from ipyparallel.engine import app

    start, heart = app.IPEngine.start, app.Heart

    def start_listening(engine: Any) -> None:
        if not (engine.curve_serverkey or engine.sshserver or engine.sshkey):  # connecting is not so simple there
            info = engine.connection_info
            ping = LastPing(f"{info['interface']}:{info['hb_ping']}")
            app.Heart = lambda *args, **kwargs: answer_last_ping(heart(*args, **kwargs), ping)
        start(engine)

    app.IPEngine.start = start_listening


class LastPing:
    """Hears the hub's beats at this address, and keeps the last one."""

    def __init__(self, url: str) -> None:
        import zmq

        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.conflate = True
        self._socket.subscribe(b"")
        self._socket.connect(url)

    def take(self) -> bytes:
        """Return the last beat, empty if none was heard, and stop listening."""
        ping = self._socket.recv() if self._socket.poll(0) else b""
        self._context.destroy(linger=0)
        return ping


def answer_last_ping(heart: Any, last: LastPing) -> Any:
    """Have this heart of ipyparallel's, which has not started yet, answer the last ping as its first act."""
    device, ping = heart.device, last.take()
    set_up = getattr(device, "_setup_sockets", None)
    if set_up is None or not ping:
        return heart

    def set_up_and_answer() -> Any:
        sockets = set_up()
        sockets[1].send(ping)
        return sockets

    device._setup_sockets = set_up_and_answer
    return heart
