"""Who is alive: pongs and beats in, verdicts out. No socket, no thread and no clock of its own.

One beat goes: book the pongs that came in, judge, send the token the beat hands out. A heart that answers no
ping from one beat to the next has missed once; ``misses`` of these in a row are a failure. So a heart that dies
is failed ``misses`` to ``misses + 1`` periods later.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import replace

from pytest_ipcluster.hearts.guests import Guests
from pytest_ipcluster.hearts.verdicts import Beat, Failure, Pong, token_maker

__all__ = ["Beat", "Failure", "Ledger", "Pong", "token_maker"]


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

    ``period`` is in seconds. ``accept`` is asked about every heart id; ``allowed`` are the only ids that are watched,
    with those that are allowed later; without both all are welcome. The three sets are only ever changed in place, so
    they may be shared.
    """

    def __init__(
        self,
        misses: int = 3,
        period: float = 0.1,
        *,
        make_token: Callable[[int], bytes] | None = None,
        accept: Callable[[bytes], bool] | None = None,
        allowed: Iterable[bytes] | None = None,
    ) -> None:
        self.misses = misses
        self.period = period
        #: Whose answers count.
        self.guests = Guests(accept, allowed)
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
        # Watched hearts that are muted, and have not answered the newest ping before that.
        self._unheard: set[bytes] = set()
        # Per heart: the newest ping that needs no answer any more, and when the last good pong came. What came in
        # batches stands there until the second next beat, and comes here only for those who have then fallen silent.
        self._heard: dict[bytes, _Stamp] = {}
        self._batches: list[_Batch] = []
        self._old_batches: list[_Batch] = []
        self._missed: dict[bytes, int] = {}

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

    def doubt(self, heart: bytes, token: bytes) -> Pong:
        """Book an answer that somebody else may have given in this heart's name, and say what it was worth.

        It proves nothing, but the heart has not missed the next beat either.
        """
        kind = self._weigh(heart, token)
        if kind is Pong.CURRENT or kind is Pong.LATE:
            kind = Pong.DOUBTFUL
            if heart in self.hearts:
                self._heard[heart] = self._last(heart)
                self._responses.add(heart)
        self.tally[kind] += 1
        return kind

    def answered(self, hearts: list[bytes], now: float) -> None:
        """Book the first answers of watched hearts to the newest ping, which were taken off ``expected``.

        The same as :meth:`pong` for each of them, and nearly free of charge.
        """
        if (accept := self.guests.accept) is not None:
            welcome = [heart for heart in hearts if accept(heart)]
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
        self.guests.allow(heart)
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

    def allow(self, heart: bytes, now: float) -> bool:
        """Watch this heart as soon as it answers; return whether it just has, when it was not allowed yet."""
        sequence = self.guests.allow(heart)
        if heart in self.hearts or heart in self.guests.muted or not self.guests.are_to_hear(heart):
            return False
        if sequence not in self._window.values() or sequence <= self._last(heart)[0]:
            return False
        self._book(heart, sequence, now)
        return True

    def mute(self, heart: bytes) -> None:
        """Count the answers of a heart as if they had never come, until it is unmuted."""
        self.guests.muted.add(heart)
        if heart in self.expected:
            self.expected.discard(heart)
            self._unheard.add(heart)

    def unmute(self, heart: bytes) -> None:
        """Hear a heart again; when it has been failed it may return."""
        self.guests.muted.discard(heart)
        if heart in self._unheard:
            self._unheard.discard(heart)
            self.expected.add(heart)

    def forget(self, heart: bytes) -> None:
        """Drop a heart without a verdict. What it still says is ignored from now on, unless it is admitted again."""
        self._strike(heart)
        self.tombstones.pop(heart, None)
        self._heard.pop(heart, None)
        for batch in (*self._old_batches, *self._batches):
            batch.discard(heart)
        self.guests.ban(heart)

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
            tuple(heart for heart in hearts if self.guests.are_to_hear(heart) and heart not in self.hearts)
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
        sequence = self._window.get(token)
        if not self.guests.are_to_hear(heart):
            self.guests.knock(heart, sequence)
            return Pong.STRANGER
        if heart in self.guests.muted:
            return Pong.MUTED
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
        waiting = self.expected | self._admitted | self._unheard
        silent = {heart for heart in waiting if heart not in self._responses}
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
        for known in (self.hearts, self.responses, self.on_probation, self._unknown):
            known.discard(heart)
        for waiting in (self.expected, self._admitted, self._unheard):
            waiting.discard(heart)
        self._missed.pop(heart, None)

    def _take_in_batches(self) -> None:
        for batch in self._batches:
            if not batch.counted:
                batch.counted = True
                self._responses.update(batch.hearts)

    def _begin_round(self) -> bytes:
        """Issue the token of a beat, and close the pings that are too old."""
        token = self._issue_token()
        self._rounds.append(self._sequence)
        while len(self._rounds) > self.misses + 1:
            self._rounds.popleft()
        for old in [old for old, sequence in self._window.items() if sequence < self._rounds[0]]:
            del self._window[old]
        self.guests.forget_knocks(before=self._rounds[0])
        return token

    def _issue_token(self) -> bytes:
        """Open a new ping for answers, which all that are watched are expected to give."""
        self._sequence += 1
        self.token = self._make_token(self._sequence)
        self._window[self.token] = self._sequence
        # A copy of a set costs some nanoseconds a heart, without one hash or comparison.
        self.expected = self.hearts.copy()
        self._admitted.clear()
        if self.guests.muted:
            self._unheard = self.expected & self.guests.muted
            self.expected -= self._unheard
        return self.token
