"""Who is alive: pongs and beats in, verdicts out. No socket, no thread and no clock of its own.

One beat goes: book the pongs that came in, judge, send the token the beat hands out. A heart that answers no
ping from one beat to the next has missed once; ``misses`` of these in a row are a failure. So a heart that dies
is failed ``misses`` to ``misses + 1`` periods later.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

__all__ = ["Beat", "Failure", "Ledger", "Pong", "make_token"]


class Pong(StrEnum):
    """What an answer was worth."""

    #: It answers the newest ping.
    CURRENT = "current"
    #: It answers an earlier ping that still counts: the heart is slow, and alive.
    LATE = "late"
    #: It proves nothing: too old, made up, given twice, or sent before the heart's own failure.
    STALE = "stale"
    #: It comes from a heart that is not to be watched.
    STRANGER = "stranger"


@dataclass(frozen=True, slots=True)
class Failure:
    """The verdict on one heart. Times are seconds of the caller's clock; ``last_pong`` is None if none ever came."""

    heart: bytes
    last_pong: float | None
    verdict_at: float
    misses: int


@dataclass(frozen=True, slots=True)
class Beat:
    """What one beat found out, hearts in order of their ids, and the token to send with it.

    ``missed`` gives for every heart that missed this beat how many it has missed in a row, failed ones
    included. ``late`` is by how many seconds this beat itself came too late; ``stalled`` says that it was too
    late to judge.
    """

    token: bytes
    new: tuple[bytes, ...] = ()
    missed: Mapping[bytes, int] = field(default_factory=dict)
    failed: tuple[Failure, ...] = ()
    returned: tuple[bytes, ...] = ()
    late: float = 0.0
    stalled: bool = False


def make_token(sequence: int) -> bytes:
    """Return a ping that nobody can guess who has not heard it."""
    return b"%s-%d" % (secrets.token_hex(16).encode(), sequence)


class Ledger:
    """Books pongs, judges at every beat. Not thread-safe: it belongs to the thread that beats.

    ``period`` is in seconds. ``accept`` is asked about every heart id; without it all are welcome. The three
    sets are only ever changed in place, so they may be shared.
    """

    def __init__(
        self,
        misses: int = 3,
        period: float = 0.1,
        *,
        make_token: Callable[[int], bytes] = make_token,
        accept: Callable[[bytes], bool] | None = None,
    ) -> None:
        self.misses = misses
        self.period = period
        self.accept = accept
        self.hearts: set[bytes] = set()
        self.responses: set[bytes] = set()
        self.on_probation: set[bytes] = set()
        self.tombstones: dict[bytes, Failure] = {}
        self.tally: Counter[Pong] = Counter()
        #: When the next beat is due; None before the first.
        self.deadline: float | None = None
        self._make_token = make_token
        self._sequence = 0
        # The pings that may still be answered, oldest first: token -> sequence number.
        self._window: dict[bytes, int] = {}
        # Per heart: the newest ping that needs no answer any more, and when the last good pong came.
        self._heard: dict[bytes, tuple[int, float | None]] = {}
        self._missed: dict[bytes, int] = {}
        self._forgotten: set[bytes] = set()

    def pong(self, heart: bytes, token: bytes, now: float) -> Pong:
        """Book one answer and say what it was worth. Any bytes are allowed; nothing here raises."""
        kind = self._weigh(heart, token)
        self.tally[kind] += 1
        if kind is Pong.CURRENT or kind is Pong.LATE:
            self._heard[heart] = (self._window[token], now)
            self.responses.add(heart)
        return kind

    def beat(self, now: float) -> Beat:
        """Judge what came in since the last beat, and hand out the token of the next ping.

        A beat that is itself late by more than half a period counts no misses: whoever stopped us may have
        stopped the hearts as well. The next beat is due a full period later, see :meth:`sent`.
        """
        late = 0.0 if self.deadline is None else max(0.0, now - self.deadline)
        stalled = late > self.period / 2
        missed = {} if stalled else self._count_misses()
        failed = tuple(self._bury(heart, now) for heart, count in missed.items() if count >= self.misses)
        self._renew_probation()
        unknown = self.responses - self.hearts
        returned = tuple(sorted(unknown & self.tombstones.keys()))
        new = tuple(sorted(unknown - self.tombstones.keys()))
        for heart in unknown:
            self.admit(heart)
        self.responses.clear()
        self.sent(now)
        return Beat(self._issue_token(), new, missed, failed, returned, late, stalled)

    def sent(self, now: float) -> None:
        """Say when the ping really went out: hearts have a full period to answer it, however long we dallied."""
        self.deadline = now + self.period

    def admit(self, heart: bytes) -> None:
        """Watch a heart from now on, whatever was known about it."""
        self._forgotten.discard(heart)
        self.tombstones.pop(heart, None)
        self.hearts.add(heart)

    def condemn(self, heart: bytes, now: float) -> Failure | None:
        """Fail a watched heart at once, for a reason that is not a missed beat.

        Returns the verdict; the standing one if the heart has failed before, None if it was never watched.
        """
        if heart in self.hearts:
            return self._bury(heart, now)
        return self.tombstones.get(heart)

    def forget(self, heart: bytes) -> None:
        """Drop a heart without a verdict. What it still says is ignored from now on, unless it is admitted again."""
        self._strike(heart)
        self.tombstones.pop(heart, None)
        self._heard.pop(heart, None)
        self._forgotten.add(heart)

    def last_pong(self, heart: bytes) -> float | None:
        """Return when the last answer came that counted."""
        return self._heard.get(heart, (0, None))[1]

    def _weigh(self, heart: bytes, token: bytes) -> Pong:
        if heart in self._forgotten or not (self.accept is None or self.accept(heart)):
            return Pong.STRANGER
        sequence = self._window.get(token)
        if sequence is None or sequence <= self._heard.get(heart, (0, None))[0]:
            return Pong.STALE
        return Pong.CURRENT if sequence == self._sequence else Pong.LATE

    def _count_misses(self) -> dict[bytes, int]:
        """Return how often in a row the silent hearts have now missed; only they cost anything."""
        self._missed = {heart: self._missed.get(heart, 0) + 1 for heart in sorted(self.hearts - self.responses)}
        return dict(self._missed)

    def _renew_probation(self) -> None:
        """Let those go who answered; what is left is on probation. Never empty in between, for readers elsewhere."""
        for heart in self.responses & self._missed.keys():
            del self._missed[heart]
        self.on_probation.intersection_update(self._missed)
        self.on_probation.update(self._missed)

    def _bury(self, heart: bytes, now: float) -> Failure:
        """Pass the verdict. Only an answer to a ping from after it can bring the heart back."""
        last_pong = self.last_pong(heart)
        failure = Failure(heart, last_pong, now, self._missed.get(heart, 0))
        self._strike(heart)
        self._heard[heart] = (self._sequence, last_pong)
        self.tombstones[heart] = failure
        return failure

    def _strike(self, heart: bytes) -> None:
        for known in (self.hearts, self.responses, self.on_probation):
            known.discard(heart)
        self._missed.pop(heart, None)

    def _issue_token(self) -> bytes:
        """Open a new ping for answers and close those that are too old: at least two are open."""
        self._sequence += 1
        token = self._make_token(self._sequence)
        self._window[token] = self._sequence
        while len(self._window) > max(self.misses, 2):
            del self._window[next(iter(self._window))]
        return token
