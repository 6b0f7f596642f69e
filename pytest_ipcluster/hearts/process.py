"""The monitor in a process of its own: for many hearts, or beside tests that keep the interpreter to themselves.

A thread that monitors shares the interpreter lock with the tests. With a thousand hearts and a test that computes, it
comes too late for every other beat. A process does not; only the handlers are then called late.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from tornado.ioloop import IOLoop
from traitlets import observe

from pytest_ipcluster.hearts.handlers import HandlerError
from pytest_ipcluster.hearts.suspects import SuspiciousMonitor
from pytest_ipcluster.hearts.thread import MonitorThread, remove_socket_files
from pytest_ipcluster.hearts.verdicts import Beat, Pong

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

__all__ = ["MonitorProcess"]

#: Seconds for the process to listen, most of which are imports, and to end.
_PATIENCE = 10.0


class RemoteMonitor(SuspiciousMonitor):
    """What tests see of the monitor in the other process: its hearts and verdicts. Handlers are called here.

    It hears of every beat over ``connection``, and passes on what is done with it here. It has no streams, and does not
    beat by itself.
    """

    def __init__(self, connection: Connection, **kwargs: Any) -> None:
        self._connection = connection
        super().__init__(**kwargs)

    def start(self) -> None:
        """Begin to listen to the other process."""
        self._running = True
        self.loop.add_handler(self._connection.fileno(), self._take_news, self.loop.READ)

    def stop(self) -> None:
        """Stop listening; may be called twice."""
        if self._running:
            self.loop.remove_handler(self._connection.fileno())
        self._running = False

    def beat(self) -> None:
        """Raise RuntimeError: the other process beats."""
        raise RuntimeError("this monitor beats in a process of its own")

    def handle_new_heart(self, heart: bytes) -> None:
        """Watch a heart and tell the handlers for new hearts."""
        super().handle_new_heart(heart)
        self._tell("admit", heart)

    def forget(self, heart: bytes) -> None:
        """Drop a heart without a verdict, for one that is stopped on purpose. Its pongs are ignored from now on."""
        self._tell("forget", heart)
        super().forget(heart)

    def allow(self, heart: bytes) -> None:
        """Watch a heart from the next beat on if it has just answered, otherwise from its next answer on."""
        self._tell("allow", heart)
        super().allow(heart)

    def mute(self, heart: bytes) -> None:
        """Have the other process drop the pongs of a heart; it is told at once, and does so some time later."""
        self._tell("mute", heart)
        super().mute(heart)

    def unmute(self, heart: bytes) -> None:
        """Have the other process hear a heart again."""
        self._tell("unmute", heart)
        super().unmute(heart)

    def _fail(self, heart: bytes, noticed: str = "") -> None:
        if heart in self.hearts:
            self._tell("condemn", heart)
        super()._fail(heart, noticed)

    # -- the other process

    def _tell(self, *order: object) -> None:
        with suppress(OSError):  # its end is noticed elsewhere
            self._connection.send(order)

    def _take_news(self, *_: object) -> None:
        try:
            while self._running and self._connection.poll():
                kind, *news = self._connection.recv()
                if kind == "beat":
                    self._take_beat(*news)
                else:
                    self._take_suspicion(*news)
        except (EOFError, OSError):
            self._lose()

    def _take_beat(
        self, beat: Beat, times: tuple[float, float, float], tally: dict[Pong, int], bad_messages: int
    ) -> None:
        self.tic, self.lifetime, self.last_ping = times
        self._ledger.tally += Counter(tally)
        self.bad_messages = bad_messages
        beat = self._ledger.adopt(beat)
        self._announce(beat)

    def _take_suspicion(self, heart: bytes, last_pong: float | None) -> None:
        if heart in self.hearts:
            self._ledger.heard(heart, last_pong)
            self._suspect([heart])

    def _lose(self) -> None:
        """Watch nobody any more, and have the test that runs fail."""
        self.stop()
        lost = ChildProcessError("the process of the heart monitor has ended: no heart is watched any more")
        self._handler_errors.append(HandlerError(self._take_news, b"", lost))
        self.hearts.clear()
        self._note("monitor lost", at=self._clock())

    @observe("period", "misses")
    def _pass_settings_on(self, change: Any) -> None:
        self._tell("set", change["name"], change["new"])


class MonitorProcess(MonitorThread):
    """A :class:`MonitorThread` whose hearts are watched by a process of its own.

    The thread calls the handlers. ``accept`` is not there: a function cannot be sent, but ``allowed`` can. When the
    process ends unasked,
    ``raise_handler_errors`` of the monitor raises ChildProcessError, and it watches nobody.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self._settings.pop("accept") is not None:
            raise TypeError("a monitor in a process of its own can't ask accept(): tell it the ids, as allowed=...")
        #: The process that watches; None before the start.
        self.process: subprocess.Popen[bytes] | None = None

    def _serve(self, stack: ExitStack) -> None:
        loop = IOLoop(make_current=False)
        stack.callback(loop.close)
        stack.callback(self._refuse_calls)
        stack.callback(lambda: remove_socket_files(self.ping_url, self.pong_url))
        connection = self._launch(stack)
        settings = {name: self._settings[name] for name in ("period", "misses", "allowed")}
        connection.send({"ping": self.ping_url, "pong": self.pong_url, "keys": self._keys, **settings})
        if not connection.poll(_PATIENCE):
            raise TimeoutError(f"the process of the heart monitor did not listen within {_PATIENCE:g} s")
        said, *told = connection.recv()
        if said == "failed":
            raise told[0]
        self.ping_url, self.pong_url = told
        monitor = RemoteMonitor(connection, loop=loop, events=self.events, **self._settings)
        monitor.start()
        stack.callback(monitor.stop)
        self._begin(loop, monitor)
        loop.start()

    def _launch(self, stack: ExitStack) -> Connection:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "pytest_ipcluster.hearts.watcher"]
            self.process = subprocess.Popen(command, stdin=theirs.fileno(), start_new_session=True)
        stack.callback(self._end, self.process)
        from multiprocessing.connection import Connection

        connection = Connection(ours.detach())
        stack.callback(connection.close)
        return connection

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        """Wait for the process, which ends when it is no more listened to; kill one that does not."""
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
