"""What has come in at a ROUTER: one call takes it all, at about a microsecond a pong."""

from __future__ import annotations

import sys
from collections.abc import Callable

import zmq

from pytest_ipcluster.hearts.connections import Connections
from pytest_ipcluster.hearts.ledger import Ledger

__all__ = ["Inbox"]

#: Frames of one message that are read at one go.
_FRAMES_AT_ONCE = 1000


class Inbox:
    """Reads pongs from ``socket`` into ``ledger``. ``bad`` is called for every message that is no pong at all.

    Two bare calls take a pong, and one look at the set of those that are expected: what comes in is nearly always the
    first answer of a watched heart to the newest ping. Whatever is anything else is looked at closely, frame by frame,
    and so is everything while there are connections of which it is not known who speaks there.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        ledger: Ledger,
        connections: Connections,
        clock: Callable[[], float],
        bad: Callable[[], object],
    ) -> None:
        self._socket = socket
        self._ledger = ledger
        self._connections = connections
        self._clock = clock
        self._bad = bad
        # In the midst of a message that is too long: its further frames mean nothing.
        self._skipping = False

    def drain(self, limit: int) -> bool:
        """Book what has come in, at most about ``limit`` messages; return whether that was all."""
        answers: list[bytes] = []
        try:
            if self._skipping:
                limit -= self._skip()
            if self._connections.wanted:
                self._take_closely(limit)
            else:
                self._take(limit, answers)
        except zmq.Again:
            return True
        finally:
            if answers:
                self._ledger.answered(answers, self._clock())
        return False

    def _take(self, limit: int, answers: list[bytes]) -> None:
        """Take pongs in a hurry. Asking each time whether a message has more frames would double the cost."""
        receive, again = self._socket.recv, int(zmq.NOBLOCK)  # the plain number is quicker
        token, remove, answered = self._ledger.token, self._ledger.expected.remove, answers.append
        heart = None
        try:
            while limit > 0:
                limit -= 1
                heart = receive(again)
                rest = receive(again)
                if rest == token:
                    try:
                        remove(heart)
                    except KeyError:
                        pass
                    else:
                        answered(heart)
                        continue
                limit -= self._look(heart, rest, bool(answers))
                heart = None
        except zmq.Again:
            if heart is not None and not (answers and heart is answers[-1]):
                self._bad()  # it was no heart but one frame too many
            raise
        if not self._skipping and self._has_more():
            self._bad()
            self._skipping = True

    def _look(self, heart: bytes, rest: bytes, in_a_hurry: bool) -> int:
        """Book what was no expected answer; return how many frames more that took.

        A pong that was taken in a hurry and has one frame too many puts the frames out of step: the next message seems
        to begin with that frame. It is a pong like any other.
        """
        if not self._has_more():
            self._ledger.pong(heart, rest, self._clock())
            return 0
        self._bad()
        last = self._socket.recv(zmq.NOBLOCK)
        if self._has_more():
            return 1 + self._skip()
        if in_a_hurry:
            self._ledger.pong(rest, last, self._clock())
        return 1

    def _take_closely(self, limit: int) -> None:
        """Take messages by frames, which know whether there are more, and by which connection they came."""
        receive = self._socket.recv
        while limit > 0:
            limit -= 1
            heart = receive(zmq.NOBLOCK)
            rest = receive(zmq.NOBLOCK, copy=False)
            if rest.more:
                self._bad()
                limit -= self._skip()
            else:
                self._connections.heard(heart, rest)
                self._ledger.pong(heart, rest.bytes, self._clock())

    def _skip(self) -> int:
        """Throw away the rest of a message; return how many frames that were, beyond any limit if there are more."""
        self._skipping = True
        for count in range(1, _FRAMES_AT_ONCE):
            if not self._socket.recv(zmq.NOBLOCK, copy=False).more:
                self._skipping = False
                return count
        return sys.maxsize

    def _has_more(self) -> bool:
        return bool(self._socket.getsockopt(zmq.RCVMORE))
