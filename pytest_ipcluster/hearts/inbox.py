"""What has come in at a ROUTER: one call takes it all, at about a microsecond a pong."""

from __future__ import annotations

import sys
from collections.abc import Callable

import zmq

from pytest_ipcluster.hearts.connections import Connections
from pytest_ipcluster.hearts.ledger import Ledger
from pytest_ipcluster.hearts.verdicts import Pong

__all__ = ["Inbox"]

#: Frames of one message that are read at one go.
_FRAMES_AT_ONCE = 1000
#: Every so many rounds all pongs are looked at closely.
_CLOSELY_EVERY = 8
#: Rounds for which they are after something that should not be.
_WARINESS = 10


class Inbox:
    """Reads pongs from ``socket`` into ``ledger``. ``bad`` is called for every message that is no pong at all.

    Two bare calls take a pong, and one look at the set of those that are expected: what comes in is nearly always the
    first answer of a watched heart to the newest ping. At the first thing that is anything else the rest is looked at
    closely, frame by frame: a frame knows whether it is the last of its message.

    Two bare calls do not know that, so a watched heart that sends too many frames could speak for another one. Hence
    every eighth round is looked at closely from the beginning, and so are those in which a heart is on probation or
    after frames too many: a heart that is silent misses the beat then, whoever speaks for it at other times. So is
    everything while there are connections of which it is not known who speaks there.
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
        self._count_bad = bad
        # In the midst of a message that is too long: its further frames mean nothing.
        self._skipping = False
        self._rounds = 0
        self._wary = 0

    def next_round(self) -> None:
        """Take note of a beat."""
        self._rounds += 1
        self._wary = max(0, self._wary - 1)

    @property
    def is_close(self) -> bool:
        """Whether all that comes in now is looked at closely."""
        return bool(
            self._wary
            or self._connections.wanted
            or self._ledger.on_probation
            or self._rounds % _CLOSELY_EVERY == _CLOSELY_EVERY - 1
        )

    def drain(self, limit: int) -> bool:
        """Book what has come in, at most about ``limit`` messages; return whether that was all."""
        answers: list[bytes] = []
        try:
            if self._skipping:
                limit -= self._skip()
            if not self.is_close:
                limit = self._take(limit, answers)
            self._take_closely(limit, answers)
        except zmq.Again:
            return True
        finally:
            if answers:
                self._ledger.answered(answers, self._clock())
        return False

    def _take(self, limit: int, answers: list[bytes]) -> int:
        """Take expected pongs in a hurry, up to the first thing that is none; return what is left of the limit.

        Asking each time whether a message has more frames would double the cost.
        """
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
                return limit - self._look(heart, rest, bool(answers))
        except zmq.Again:
            if heart is not None and not (answers and heart is answers[-1]):
                self._bad()  # it was no heart but one frame too many
            raise
        if self._has_more():
            self._bad()
            self._skipping = True
        return 0

    def _look(self, heart: bytes, rest: bytes, in_a_hurry: bool) -> int:
        """Book what was no expected answer; return how many frames more that took.

        A pong that was taken in a hurry and has frames too many puts the frames out of step: a message seems to begin
        with one of those. Whose message comes after that can't be told.
        """
        if not self._has_more():
            self._book(heart, rest, in_a_hurry)
            return 0
        self._bad()
        last = self._socket.recv(zmq.NOBLOCK)
        if self._has_more():
            return 1 + self._skip()
        if in_a_hurry:
            self._book(rest, last, in_a_hurry)
        return 1

    def _book(self, heart: bytes, token: bytes, in_a_hurry: bool) -> None:
        if not in_a_hurry:
            self._ledger.pong(heart, token, self._clock())
        elif self._ledger.doubt(heart, token) is Pong.DOUBTFUL:
            self._wary = _WARINESS

    def _take_closely(self, limit: int, answers: list[bytes]) -> None:
        """Take messages by frames, which know whether there are more, and by which connection they came."""
        receive, again = self._socket.recv, int(zmq.NOBLOCK)
        token, expected, wanted = self._ledger.token, self._ledger.expected, self._connections.wanted
        while limit > 0:
            limit -= 1
            heart = receive(again)
            rest = receive(again, copy=False)
            if rest.more:
                self._bad()
                limit -= self._skip()
                continue
            if wanted:
                self._connections.heard(heart, rest)
            said = rest.bytes
            if said == token and heart in expected:
                expected.remove(heart)
                answers.append(heart)
            else:
                self._ledger.pong(heart, said, self._clock())

    def _bad(self) -> None:
        self._wary = _WARINESS
        self._count_bad()

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
