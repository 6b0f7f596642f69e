"""A monitor in a process of its own: ``python -m pytest_ipcluster.hearts.watcher``, with a socket as standard input.

It watches hearts as :class:`MonitorThread` does, with the same ledger, and tells whoever has started it what each beat
has found. Handlers are called there. It is told what to do by the same socket, both ways in messages of
``multiprocessing.connection``:

``{"ping": address, "pong": address, "period": milliseconds, "misses": number, "allowed": hearts or None,
"keys": MonitorKeys or None}``
    The first message. The answer is ``("listening", ping, pong)``, or ``("failed", exception)``.
``("forget" | "admit" | "condemn" | "allow" | "mute" | "unmute", heart)``, ``("set", name, value)``
    What was done there with this heart, or set.

It says ``("beat", beat, times, tally, bad messages)`` for every beat (``tally`` is what pongs were worth since the last
one), and ``("suspected", heart, last pong)`` when a connection has broken.
It ends with the one who started it: at the end of the socket, when its parent is another one, and, on Linux, by a
signal of the kernel.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import zmq
from tornado.ioloop import IOLoop
from zmq.eventloop.zmqstream import ZMQStream

from pytest_ipcluster.hearts.direct import DirectMonitor
from pytest_ipcluster.hearts.doorkeeper import Doorkeeper
from pytest_ipcluster.hearts.keys import MonitorKeys
from pytest_ipcluster.hearts.thread import bind, make_context, remove_socket_files
from pytest_ipcluster.hearts.verdicts import Beat

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

#: From <linux/prctl.h>.
_PR_SET_PDEATHSIG = 1


class Watcher(DirectMonitor):
    """A monitor that tells what it finds, and calls no handlers."""

    def __init__(self, connection: Connection, **kwargs: Any) -> None:
        super().__init__(gone=self._ask, **kwargs)
        self._connection = connection
        self._parent = os.getppid()

    def obey(self, *_: object) -> None:
        """Do what has been told."""
        try:
            while self._connection.poll():
                order, subject, *value = self._connection.recv()
                if order == "set":
                    setattr(self, subject, *value)
                else:
                    self._change(order, subject)
        except (EOFError, OSError):  # nobody wants to know any more
            self.loop.stop()

    def _change(self, order: str, heart: bytes) -> None:
        if order in ("condemn", "allow"):
            getattr(self._ledger, order)(heart, self._clock())
        else:
            getattr(self._ledger, order)(heart)

    def _announce(self, beat: Beat) -> None:
        for heart in (*beat.new, *beat.returned):
            self._ledger.admit(heart)
        times, tally = (self.tic, self.lifetime, self.last_ping), dict(self._ledger.tally)
        self._ledger.tally.clear()
        self._tell("beat", replace(beat, token=b""), times, tally, self.bad_messages)
        if os.getppid() != self._parent:
            self.loop.stop()

    def _ask(self, heart: bytes) -> None:
        """Leave it to who has started us to look whether the process of this heart is gone."""
        self._tell("suspected", heart, self._ledger.last_pong(heart))

    def _tell(self, *news: object) -> None:
        try:
            self._connection.send(news)
        except OSError:
            self.loop.stop()


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def main() -> None:
    """Listen, say so, and watch until the one who wants to know is gone."""
    _die_with_parent()
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"):  # Ctrl-C is for pytest, which then tells us to end
        with contextlib.suppress(AttributeError):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    from multiprocessing.connection import Connection

    connection = Connection(os.dup(0))
    told = connection.recv()
    with ExitStack() as stack:
        try:
            watcher = _watcher(stack, connection, **told)
        except BaseException as error:
            connection.send(("failed", error))
            return
        watcher.start()
        stack.callback(watcher.stop)
        watcher.loop.start()


def _watcher(
    stack: ExitStack, connection: Connection, ping: str, pong: str, keys: MonitorKeys | None, **settings: Any
) -> Watcher:
    context = make_context()
    stack.callback(context.destroy, linger=0)
    loop = IOLoop(make_current=False)
    stack.callback(loop.close)
    if keys is not None:
        stack.callback(Doorkeeper(context, keys, loop).close)
    pings, ping = bind(context.socket(zmq.PUB), ping, keys)
    pongs, pong = bind(context.socket(zmq.ROUTER), pong, keys)
    stack.callback(remove_socket_files, ping, pong)
    streams = [ZMQStream(socket, loop) for socket in (pings, pongs)]
    for stream in streams:
        stack.callback(stream.close, linger=0)
    watcher = Watcher(connection, pingstream=streams[0], pongstream=streams[1], loop=loop, **settings)
    loop.add_handler(connection.fileno(), watcher.obey, loop.READ)
    connection.send(("listening", ping, pong))
    return watcher


if __name__ == "__main__":
    main()
