"""A ``HeartMonitor`` that reads its sockets itself: many pongs at one wake-up, and broken connections as they break."""

from __future__ import annotations

from typing import Any

import zmq

from pytest_ipcluster.hearts.connections import Connections, Listeners
from pytest_ipcluster.hearts.inbox import Inbox
from pytest_ipcluster.hearts.suspects import SuspiciousMonitor

__all__ = ["DirectMonitor"]

#: Seconds to wait for more pongs before any is read, for a wake-up costs as much as a hundred pongs: for each heart, at
#: least, and at most; and never more than this share of a period.
_REST, _SHORTEST_REST, _LONGEST_REST, _SHARE = 50e-6, 0.001, 0.02, 0.1
#: Seconds to the next beat, and since the last question, that make an extra ping worth while.
_SOON = 0.1


class DirectMonitor(SuspiciousMonitor):
    """What :class:`MonitorThread` runs. The streams are only there to be looked at."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._asked_at = 0.0
        self._behind = self._noticing = False

    def _listen(self) -> None:
        socket = self.pongstream.socket
        self._connections = Connections(socket)
        self._inbox = Inbox(socket, self._ledger, self._connections, self._clock, self._count_bad_message)
        self._listeners = Listeners(self.pingstream.socket)
        self._poller = zmq.Poller()
        self._poller.register(self._connections.notices, zmq.POLLIN)
        for stream in (self.pingstream, self.pongstream):
            # Its own, which for pings woke us up to twenty times a beat, and to do nothing.
            self.loop.remove_handler(stream.socket)
        self.loop.add_handler(socket, self._wake, self.loop.READ)
        self.loop.add_handler(self._connections.notices, self._notice, self.loop.READ)
        self.loop.add_handler(self._listeners.notices, self._let_go, self.loop.READ)

    def _hush(self) -> None:
        if self.pongstream.closed() or self._connections.notices.closed:
            return
        self.loop.remove_handler(self.pongstream.socket)
        for watch in (self._connections, self._listeners):
            self.loop.remove_handler(watch.notices)
            watch.close()

    def _send(self, token: bytes) -> None:
        self._inbox.next_round()
        self._ping(token)

    def _ping(self, token: bytes) -> None:
        self.pingstream.socket.send(token)

    # -- pongs

    def _tick(self) -> None:
        """Beat, and stay awake for the answers: another turn of the loop costs as much as fifty of them."""
        super()._tick()
        if self._running and self._ledger.is_waiting:
            self._wake()

    def _wake(self, *_: object) -> None:
        """Pongs are there, or about to be: let more of them come, then take them all."""
        if self._rest():
            self._notice()
        self._drain()

    def _rest(self) -> bool:
        """Wait a moment, but for nothing that matters; return whether a connection broke in the meantime."""
        rest = min(max(_SHORTEST_REST, _REST * len(self._ledger.hearts)), _LONGEST_REST, _SHARE * self._ledger.period)
        left = (self._ledger.deadline or 0.0) - self._clock()
        return bool(self._poller.poll(max(0, int(1000 * min(rest, left)))))

    def _hear(self) -> None:
        """Before a beat judges, take what has come in, if there is anybody to judge. The rest wakes us anyway."""
        if self._ledger.is_waiting:
            self._drain()

    def _drain(self) -> None:
        """Take everything that has come in; what is beyond the limit after whatever else is due."""
        if not self._inbox.drain(self._limit) and not self._behind:
            self._behind = True
            self.loop.add_callback(self._catch_up)

    def _catch_up(self) -> None:
        self._behind = False
        if self._running:
            self._drain()

    def _count_bad_message(self) -> None:
        self.bad_messages += 1

    # -- broken connections

    def _notice(self, *_: object) -> None:
        """Suspect the hearts whose connection has broken, when all that they had said is heard."""
        broken, that_was_all = self._connections.read()
        if not that_was_all and not self._noticing:
            self._noticing = True
            self.loop.add_callback(self._notice_more)
        if not broken:
            return
        self._drain()
        spoke = [self._connections.drop(descriptor) for descriptor in broken]
        suspects = [heart for heart in spoke if heart in self._ledger.hearts]
        self._ask_again(self._suspect(suspects))

    def _notice_more(self) -> None:
        """Read what was left after as much as is read at one go; whatever else is due has had its turn."""
        self._noticing = False
        if self._running:
            self._notice()

    def _ask_again(self, hearts: list[bytes]) -> None:
        """Send a ping out of turn to hearts that may well be alive, unless the next one is due soon."""
        now = self._clock()
        if hearts and (self._ledger.deadline or 0.0) - now > _SOON < now - self._asked_at:
            self._asked_at = now
            self._ping(self._ledger.ask())

    # -- listeners that have gone

    def _let_go(self, *_: object) -> None:
        """Keep nothing for listeners that have gone; for what is beyond the limit after whatever else is due."""
        if self._running and not self._listeners.let_go():
            self.loop.add_callback(self._let_go)
