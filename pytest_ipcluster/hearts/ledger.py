"""Who is alive: pongs and beats in, verdicts out. No socket, no thread and no clock of its own.

One beat goes: book the pongs that came in, judge, send the token the beat hands out. A heart that answers no
ping from one beat to the next has missed once; ``misses`` of these in a row are a failure. So a heart that dies
is failed ``misses`` to ``misses + 1`` periods later.
"""

from __future__ import annotations

import secrets
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from hashlib import blake2b

__all__ = ["Beat", "Failure", "Ledger", "Pong", "token_maker"]


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


def token_maker() -> Callable[[int], bytes]:
    """Return a function that makes pings that nobody can guess who has not heard them.

    It asks the system for randomness once, and derives them from that.
    """
    key = secrets.token_bytes(32)

    def make_token(sequence: int) -> bytes:
        digest = blake2b(b"%d" % sequence, key=key, digest_size=16)
        return b"%s-%d" % (digest.hexdigest().encode(), sequence)

    return make_token


#: The number of a ping, and when an answer came that counted.
_Stamp = tuple[int, float | None]


class _Batch:
    """Hearts whose answers to one ping were read at one time; who is in it is seldom asked."""

    def __init__(self, hearts: list[bytes], stamp: _Stamp) -> None:
        self.hearts: list[bytes] | set[bytes] = hearts
        self.stamp = stamp
        #: Whether ``Ledger.responses`` has them.
        self.counted = False

    def __contains__(self, heart: bytes) -> bool:
        return heart in self._as_set()

    def discard(self, heart: bytes) -> None:
        self._as_set().discard(heart)

    def _as_set(self) -> set[bytes]:
        if not isinstance(self.hearts, set):
            self.hearts = set(self.hearts)
        return self.hearts


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
        make_token: Callable[[int], bytes] | None = None,
        accept: Callable[[bytes], bool] | None = None,
    ) -> None:
        self.misses = misses
        self.period = period
        self.accept = accept
        self.hearts: set[bytes] = set()
        self._responses: set[bytes] = set()
        self.on_probation: set[bytes] = set()
        self.tombstones: dict[bytes, Failure] = {}
        self.tally: Counter[Pong] = Counter()
        #: When the next beat is due; None before the first.
        self.deadline: float | None = None
        #: The newest ping.
        self.token = b""
        #: Watched hearts that have not answered it. Who reads many pongs takes them off here, see :meth:`answered`.
        self.expected: set[bytes] = set()
        self._make_token = make_token or token_maker()
        self._sequence = 0
        # The pings that may still be answered, oldest first: token -> sequence number; and those that beats have sent.
        self._window: dict[bytes, int] = {}
        self._rounds: deque[int] = deque()
        # Hearts that were admitted, and that have answered without being watched, since the last ping.
        self._admitted: set[bytes] = set()
        self._unknown: set[bytes] = set()
        # Per heart: the newest ping that needs no answer any more, and when the last good pong came. What came in
        # batches stands there until the second next beat, and comes here only for those who have then fallen silent.
        self._heard: dict[bytes, _Stamp] = {}
        self._batches: list[_Batch] = []
        self._old_batches: list[_Batch] = []
        self._missed: dict[bytes, int] = {}
        self._forgotten: set[bytes] = set()

    @property
    def responses(self) -> set[bytes]:
        """The hearts that have answered since the last beat."""
        self._take_in_batches()
        return self._responses

    @property
    def is_waiting(self) -> bool:
        """Whether there are watched hearts that have not answered the newest ping."""
        return bool(self.expected or self._admitted)

    def pong(self, heart: bytes, token: bytes, now: float) -> Pong:
        """Book one answer and say what it was worth. Any bytes are allowed; nothing here raises."""
        kind = self._weigh(heart, token)
        self.tally[kind] += 1
        if kind is Pong.CURRENT or kind is Pong.LATE:
            self._book(heart, self._window[token], now)
        return kind

    def answered(self, hearts: list[bytes], now: float) -> None:
        """Book the first answers of watched hearts to the newest ping, which were taken off ``expected``.

        The same as :meth:`pong` for each of them, and nearly free of charge.
        """
        if self.accept is not None:
            welcome = [heart for heart in hearts if self.accept(heart)]
            if strangers := len(hearts) - len(welcome):
                self.tally[Pong.STRANGER] += strangers
                self.expected.update(set(hearts).difference(welcome))
            hearts = welcome
        if hearts:
            self.tally[Pong.CURRENT] += len(hearts)
            self._batches.append(_Batch(hearts, (self._sequence, now)))

    def beat(self, now: float) -> Beat:
        """Judge what came in since the last beat, and hand out the token of the next ping.

        A beat that is itself late by more than half a period counts no misses: whoever stopped us may have
        stopped the hearts as well. The next beat is due a full period later, see :meth:`sent`.
        """
        late = 0.0 if self.deadline is None else max(0.0, now - self.deadline)
        stalled = late > self.period / 2
        silent = self._silent()
        missed = {} if stalled else self._count_misses(silent)
        failed = tuple(self._bury(heart, now) for heart, count in missed.items() if count >= self.misses)
        self._renew_probation(silent)
        unknown = sorted(heart for heart in self._unknown if heart in self._responses and heart not in self.hearts)
        returned = tuple(heart for heart in unknown if heart in self.tombstones)
        new = tuple(heart for heart in unknown if heart not in self.tombstones)
        for heart in unknown:
            self.admit(heart)
        self._responses.clear()
        self._unknown.clear()
        self._old_batches, self._batches = self._batches, []
        self.sent(now)
        return Beat(self._begin_round(), new, missed, failed, returned, late, stalled)

    def ask(self) -> bytes:
        """Hand out the token of a ping between two beats. Nobody has missed anything who does not answer it."""
        self._take_in_batches()
        return self._issue_token()

    def sent(self, now: float) -> None:
        """Say when the ping really went out: hearts have a full period to answer it, however long we dallied."""
        self.deadline = now + self.period

    def admit(self, heart: bytes) -> None:
        """Watch a heart from now on, whatever was known about it."""
        self._forgotten.discard(heart)
        self.tombstones.pop(heart, None)
        if heart not in self.hearts:
            self.hearts.add(heart)
            self._admitted.add(heart)

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
        for batch in (*self._old_batches, *self._batches):
            batch.discard(heart)
        self._forgotten.add(heart)

    def adopt(self, beat: Beat) -> Beat:
        """Take over what a beat of another ledger has found, and return what of it is news here.

        For one that books no pongs itself: the other one is in the process that watches.
        """
        failed = tuple(failure for failure in beat.failed if failure.heart in self.hearts)
        missed = {heart: count for heart, count in beat.missed.items() if heart in self.hearts}
        for failure in failed:
            self._strike(failure.heart)
            self.tombstones[failure.heart] = failure
        if not beat.stalled:
            self._missed = {heart: count for heart, count in missed.items() if heart in self.hearts}
            self.on_probation.intersection_update(self._missed)
            self.on_probation.update(self._missed)
        new, returned = (
            tuple(heart for heart in hearts if heart not in self._forgotten and heart not in self.hearts)
            for hearts in (beat.new, beat.returned)
        )
        return replace(beat, new=new, missed=missed, failed=failed, returned=returned)

    def heard(self, heart: bytes, at: float | None) -> None:
        """Say when the last answer of a heart came that counted, where another ledger books them."""
        self._heard[heart] = (self._sequence, at)

    def last_pong(self, heart: bytes) -> float | None:
        """Return when the last answer came that counted."""
        return self._last(heart)[1]

    def _weigh(self, heart: bytes, token: bytes) -> Pong:
        if heart in self._forgotten or not (self.accept is None or self.accept(heart)):
            return Pong.STRANGER
        sequence = self._window.get(token)
        if sequence is None or self._needs_no_more(heart) or sequence <= self._last(heart)[0]:
            return Pong.STALE
        return Pong.CURRENT if sequence == self._sequence else Pong.LATE

    def _needs_no_more(self, heart: bytes) -> bool:
        """Tell whether a watched heart has answered the newest ping; of a batch this is known before it is booked."""
        return heart in self.hearts and heart not in self.expected and heart not in self._admitted

    def _book(self, heart: bytes, sequence: int, now: float) -> None:
        self._heard[heart] = (sequence, now)
        self._responses.add(heart)
        if sequence == self._sequence:
            self.expected.discard(heart)
        if heart not in self.hearts:
            self._unknown.add(heart)

    def _last(self, heart: bytes) -> _Stamp:
        """Return the newest ping that this heart need not answer any more, and when its last good pong came."""
        last = self._heard.get(heart, (0, None))
        for batch in (*self._old_batches, *self._batches):
            if batch.stamp[0] >= last[0] and heart in batch:
                last = batch.stamp
        return last

    def _silent(self) -> set[bytes]:
        """Return the watched hearts that have not answered since the last beat; only they cost anything."""
        silent = {heart for heart in self.expected | self._admitted if heart not in self._responses}
        for heart in silent - self._missed.keys():
            self._heard[heart] = self._last(heart)
        return silent & self.hearts

    def _count_misses(self, silent: set[bytes]) -> dict[bytes, int]:
        """Return how often in a row these have now missed."""
        self._missed = {heart: self._missed.get(heart, 0) + 1 for heart in sorted(silent)}
        return dict(self._missed)

    def _renew_probation(self, silent: set[bytes]) -> None:
        """Let those go who answered; what is left is on probation. Never empty in between, for readers elsewhere."""
        for heart in [heart for heart in self._missed if heart not in silent]:
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
        for known in (self.hearts, self.responses, self.on_probation, self.expected, self._admitted, self._unknown):
            known.discard(heart)
        self._missed.pop(heart, None)

    def _take_in_batches(self) -> None:
        for batch in self._batches:
            if not batch.counted:
                batch.counted = True
                self._responses.update(batch.hearts)

    def _begin_round(self) -> bytes:
        """Issue the token of a beat, and close the pings that are too old: those of at least two beats are open."""
        token = self._issue_token()
        self._rounds.append(self._sequence)
        while len(self._rounds) > max(self.misses, 2):
            self._rounds.popleft()
        for old in [old for old, sequence in self._window.items() if sequence < self._rounds[0]]:
            del self._window[old]
        return token

    def _issue_token(self) -> bytes:
        """Open a new ping for answers, which all that are watched are expected to give."""
        self._sequence += 1
        self.token = self._make_token(self._sequence)
        self._window[self.token] = self._sequence
        # A copy of a set costs some nanoseconds a heart, without one hash or comparison.
        self.expected = self.hearts.copy()
        self._admitted.clear()
        return self.token
