from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

import pytest

from pytest_ipcluster.hearts.ledger import Beat, Failure, Ledger, Pong, token_maker

A, B, C = b"heart-a", b"heart-b", b"heart-c"


class Bench:
    """A ledger on a clock that only the test moves; one period is 1.0."""

    def __init__(self, misses: int = 3, **kwargs: object) -> None:
        self.ledger = Ledger(misses, 1.0, make_token=lambda n: b"token-%d" % n, **kwargs)
        self.now = 0.0
        self.last = self.ledger.beat(self.now)

    def beat(self, *hearts: bytes, after: float = 1.0) -> Beat:
        """Let these hearts answer the last ping at once, wait, beat."""
        for heart in hearts:
            self.ledger.pong(heart, self.last.token, self.now)
        self.now += after
        self.last = self.ledger.beat(self.now)
        return self.last

    def kill(self, heart: bytes, *others: bytes) -> Failure:
        """Beat without that heart until it is failed."""
        for _ in range(self.ledger.misses):
            beat = self.beat(*others)
        assert [failure.heart for failure in beat.failed] == [heart]
        return beat.failed[0]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def verdicts(beats: Iterable[Beat]) -> list[bytes]:
    return [failure.heart for beat in beats for failure in beat.failed]


def test_heart_is_new_at_the_first_beat_after_its_first_pong(bench: Bench) -> None:
    assert bench.ledger.pong(A, bench.last.token, 0.0) is Pong.CURRENT
    assert A not in bench.ledger.hearts
    assert bench.beat().new == (A,)
    assert bench.ledger.hearts == {A}


def test_heart_is_new_only_once(bench: Bench) -> None:
    assert bench.beat(A).new == (A,)
    assert bench.beat(A).new == ()


def test_hearts_are_told_in_order_of_their_ids(bench: Bench) -> None:
    assert bench.beat(C, A, B).new == (A, B, C)
    assert list(bench.beat().missed) == [A, B, C]


def test_responses_are_those_since_the_last_beat(bench: Bench) -> None:
    bench.ledger.pong(A, bench.last.token, 0.0)
    assert bench.ledger.responses == {A}
    bench.beat()
    assert bench.ledger.responses == set()


def test_silent_heart_is_on_probation_after_one_beat(bench: Bench) -> None:
    bench.beat(A)
    assert bench.beat().missed == {A: 1}
    assert bench.ledger.on_probation == {A}


def test_answer_ends_probation(bench: Bench) -> None:
    bench.beat(A)
    bench.beat()
    bench.beat(A)
    assert bench.ledger.on_probation == set()


@pytest.mark.parametrize("misses", [1, 2, 3, 10])
def test_that_many_misses_in_a_row_are_a_failure(misses: int) -> None:
    bench = Bench(misses)
    bench.beat(A)
    beats = [bench.beat() for _ in range(misses)]
    assert [dict(beat.missed) for beat in beats] == [{A: n} for n in range(1, misses + 1)]
    assert verdicts(beats[:-1]) == []
    assert verdicts(beats[-1:]) == [A]


def test_misses_that_are_not_in_a_row_are_no_failure(bench: Bench) -> None:
    bench.beat(A)
    beats = [bench.beat(*hearts) for hearts in [(), (), (A,)] * 5]
    assert verdicts(beats) == []


@pytest.mark.parametrize("misses", [1, 2, 3, 7])
@pytest.mark.parametrize("phase", [0.0, 0.01, 0.5, 0.99])
def test_verdict_falls_between_misses_and_one_more_period_after_the_death(misses: int, phase: float) -> None:
    bench = Bench(misses)
    bench.beat(A)
    death = bench.now + phase
    bench.ledger.pong(A, bench.last.token, death)
    while not (beat := bench.beat()).failed:
        pass
    assert misses <= beat.failed[0].verdict_at - death <= misses + 1


def test_failed_heart_is_not_watched_any_more(bench: Bench) -> None:
    bench.beat(A)
    bench.kill(A)
    assert not bench.ledger.hearts | bench.ledger.on_probation | bench.ledger.responses
    assert set(bench.ledger.tombstones) == {A}


def test_death_gives_exactly_one_verdict(bench: Bench) -> None:
    bench.beat(A)
    assert verdicts(bench.beat() for _ in range(50)) == [A]


def test_failure_tells_last_pong_verdict_and_misses(bench: Bench) -> None:
    bench.beat(A)
    bench.beat(A)
    assert bench.kill(A) == Failure(A, last_pong=1.0, verdict_at=5.0, misses=3)
    assert bench.ledger.tombstones[A].verdict_at == 5.0


def test_death_of_one_heart_leaves_the_others_alone(bench: Bench) -> None:
    bench.beat(A, B)
    bench.kill(A, B)
    assert bench.ledger.hearts == {B}
    assert bench.ledger.on_probation == set()


@pytest.mark.parametrize(("misses", "window"), [(1, 2), (2, 3), (3, 4), (5, 6)])
def test_answer_to_any_of_the_last_pings_counts(misses: int, window: int) -> None:
    bench = Bench(misses)
    tokens = [bench.beat().token for _ in range(10)]
    newest_first = tokens[::-1]
    kinds = [bench.ledger.pong(b"heart-%d" % age, token, 0.0) for age, token in enumerate(newest_first)]
    assert kinds[:window] == [Pong.CURRENT] + [Pong.LATE] * (window - 1)
    assert set(kinds[window:]) == {Pong.STALE}


def test_heart_that_is_always_two_pings_behind_lives(bench: Bench) -> None:
    tokens = [bench.last.token, bench.beat().token, bench.beat().token]
    beats = []
    for _ in range(20):
        bench.ledger.pong(A, tokens[-3], bench.now)
        beats.append(bench.beat())
        tokens.append(beats[-1].token)
    assert verdicts(beats) == []
    assert bench.ledger.hearts == {A}


def test_late_answer_ends_probation(bench: Bench) -> None:
    bench.beat(A)
    missed = bench.last.token
    bench.beat()
    assert bench.ledger.on_probation == {A}
    assert bench.ledger.pong(A, missed, bench.now) is Pong.LATE
    assert bench.beat().missed == {}


def test_answer_given_twice_counts_once(bench: Bench) -> None:
    token = bench.last.token
    assert bench.ledger.pong(A, token, 0.0) is Pong.CURRENT
    assert bench.ledger.pong(A, token, 0.0) is Pong.STALE
    bench.beat()
    assert bench.ledger.pong(A, token, bench.now) is Pong.STALE
    assert bench.beat().missed == {A: 1}


@pytest.mark.parametrize("token", [b"", b"token-999", b"0.1", b"x" * 100_000, bytes(range(256))])
def test_unknown_token_is_counted_and_revives_nobody(bench: Bench, token: bytes) -> None:
    assert bench.ledger.pong(A, token, 0.0) is Pong.STALE
    assert bench.beat().new == ()
    assert bench.ledger.tally == {Pong.STALE: 1}


def test_replayed_old_pings_do_not_hide_a_death(bench: Bench) -> None:
    old = bench.last.token
    bench.beat(A)
    beats = []
    for _ in range(6):
        bench.ledger.pong(A, old, bench.now)
        beats.append(bench.beat())
    assert verdicts(beats) == [A]


def test_late_beat_of_ours_counts_no_misses(bench: Bench) -> None:
    bench.beat(A)
    beat = bench.beat(after=1.51)
    assert beat.stalled
    assert beat.missed == {}
    assert beat.late == pytest.approx(0.51)
    assert bench.ledger.on_probation == set()


def test_beat_late_by_less_than_half_a_period_counts(bench: Bench) -> None:
    bench.beat(A)
    beat = bench.beat(after=1.49)
    assert not beat.stalled
    assert beat.missed == {A: 1}


def test_stall_keeps_the_misses_that_were_counted_before(bench: Bench) -> None:
    bench.beat(A)
    bench.beat()
    bench.beat(after=100.0)
    assert bench.ledger.on_probation == {A}
    assert bench.beat().missed == {A: 2}


def test_answer_during_a_stall_ends_probation(bench: Bench) -> None:
    bench.beat(A)
    bench.beat()
    bench.beat(A, after=100.0)
    assert bench.ledger.on_probation == set()
    assert bench.beat().missed == {A: 1}


def test_new_heart_is_seen_in_a_stalled_beat(bench: Bench) -> None:
    beat = bench.beat(A, after=5.0)
    assert beat.stalled
    assert beat.new == (A,)


def test_long_stall_fails_nobody(bench: Bench) -> None:
    hearts = [b"heart-%d" % n for n in range(24)]
    bench.beat(*hearts)
    beats = [bench.beat(*hearts[::2], after=30.0), bench.beat(*hearts)]
    assert verdicts(beats) == []
    assert bench.ledger.hearts == set(hearts)


def test_next_beat_is_due_a_full_period_after_the_ping_went_out(bench: Bench) -> None:
    assert bench.ledger.deadline == bench.now + 1.0
    bench.ledger.sent(bench.now + 0.7)
    assert bench.ledger.deadline == bench.now + 1.7
    assert not bench.beat(after=1.9).stalled


def test_first_beat_is_never_late() -> None:
    assert not Ledger().beat(12345.0).stalled


def test_failed_heart_that_answers_again_is_returned_and_not_new(bench: Bench) -> None:
    bench.beat(A)
    bench.kill(A)
    beat = bench.beat(A)
    assert beat.returned == (A,)
    assert beat.new == ()
    assert bench.ledger.hearts == {A}
    assert bench.ledger.tombstones == {}


def test_second_death_gives_one_further_verdict(bench: Bench) -> None:
    bench.beat(A)
    first = bench.kill(A)
    bench.beat(A)
    beats = [bench.beat() for _ in range(20)]
    assert verdicts(beats) == [A]
    assert bench.ledger.tombstones[A] != first


def test_answer_to_a_ping_from_before_the_verdict_returns_nobody(bench: Bench) -> None:
    bench.beat(A)
    in_flight = bench.last.token
    bench.ledger.condemn(A, bench.now)
    assert bench.ledger.pong(A, in_flight, bench.now) is Pong.STALE
    assert bench.beat().returned == ()


def test_condemned_heart_is_failed_once(bench: Bench) -> None:
    bench.beat(A)
    failure = bench.ledger.condemn(A, 7.0)
    assert failure == Failure(A, last_pong=0.0, verdict_at=7.0, misses=0)
    assert bench.ledger.condemn(A, 8.0) is failure
    assert verdicts(bench.beat() for _ in range(10)) == []


def test_unknown_heart_cannot_be_condemned(bench: Bench) -> None:
    assert bench.ledger.condemn(A, 0.0) is None
    assert bench.ledger.tombstones == {}


def test_heart_that_was_admitted_and_never_answered_is_failed_without_a_last_pong(bench: Bench) -> None:
    bench.ledger.admit(A)
    assert bench.kill(A).last_pong is None


def test_forgotten_heart_gets_no_verdict(bench: Bench) -> None:
    bench.beat(A)
    bench.beat()
    bench.ledger.forget(A)
    assert verdicts(bench.beat() for _ in range(10)) == []
    assert not bench.ledger.hearts | bench.ledger.on_probation


def test_what_a_forgotten_heart_still_says_is_ignored(bench: Bench) -> None:
    bench.beat(A)
    bench.ledger.forget(A)
    assert bench.ledger.pong(A, bench.last.token, bench.now) is Pong.STRANGER
    assert bench.beat().new == ()


def test_forgotten_heart_can_be_admitted_again(bench: Bench) -> None:
    bench.beat(A)
    bench.ledger.forget(A)
    bench.ledger.admit(A)
    assert bench.ledger.pong(A, bench.last.token, bench.now) is Pong.CURRENT


def test_forgetting_a_tombstone_makes_the_heart_unknown(bench: Bench) -> None:
    bench.beat(A)
    bench.kill(A)
    bench.ledger.forget(A)
    assert bench.ledger.tombstones == {}


def test_hearts_that_are_not_accepted_are_counted_and_not_watched() -> None:
    bench = Bench(accept={A}.__contains__)
    assert bench.beat(A, B).new == (A,)
    assert bench.ledger.tally == {Pong.CURRENT: 1, Pong.STRANGER: 1}


def test_heart_that_is_accepted_no_longer_is_failed() -> None:
    welcome = {A}
    bench = Bench(accept=welcome.__contains__)
    bench.beat(A)
    welcome.clear()
    assert verdicts(bench.beat(A) for _ in range(3)) == [A]


def test_sets_are_changed_in_place(bench: Bench) -> None:
    ledger = bench.ledger
    before = [id(known) for known in (ledger.hearts, ledger.responses, ledger.on_probation)]
    bench.beat(A, B)
    bench.kill(B, A)
    bench.beat(A, B)
    assert [id(known) for known in (ledger.hearts, ledger.responses, ledger.on_probation)] == before


def test_tokens_are_unpredictable_and_end_in_their_sequence_number() -> None:
    tokens = [token_maker()(7) for _ in range(100)]
    assert len(set(tokens)) == 100
    assert all(len(token) <= 64 and token.endswith(b"-7") for token in tokens)


def test_one_token_does_not_give_away_the_next() -> None:
    make = token_maker()
    assert len({make(number).rpartition(b"-")[0] for number in range(100)}) == 100


def life(rng: random.Random, beats: int) -> Iterator[bool]:
    """Whether a heart answers, beat by beat: alive and dead stretches of random length."""
    alive = True
    for _ in range(beats):
        alive ^= rng.random() < 0.05
        yield alive


@pytest.mark.parametrize("seed", range(20))
def test_every_death_of_any_heart_gives_one_verdict_and_every_return_one_return(seed: int) -> None:
    rng, misses = random.Random(seed), 3
    bench = Bench(misses)
    lives = {b"heart-%d" % n: list(life(rng, 500)) for n in range(8)}
    bench.beat(*lives)
    found = dict.fromkeys(lives, "")
    for moment in range(500):
        beat = bench.beat(*(heart for heart, alive in lives.items() if alive[moment]))
        for heart in verdicts([beat]):
            found[heart] += "x"
        for heart in beat.returned:
            found[heart] += "r"
    expected = {}
    for heart, alive in lives.items():
        silence, told = 0, ""
        for answered in alive:
            told += "r" if answered and silence >= misses else ""
            silence = 0 if answered else silence + 1
            told += "x" if silence == misses else ""
        expected[heart] = told
    assert found == expected


# Many answers at once, and pings between beats.


def take(bench: Bench, *hearts: bytes) -> None:
    """Do what the reader of many pongs does with answers to the newest ping."""
    bench.ledger.expected.difference_update(hearts)
    bench.ledger.answered(list(hearts), bench.now)


def test_answers_booked_at_once_are_answers(bench: Bench) -> None:
    bench.beat(A, B)
    bench.now += 0.5
    take(bench, A, B)
    assert bench.ledger.responses == {A, B}
    assert bench.ledger.tally[Pong.CURRENT] == 4
    assert bench.ledger.last_pong(A) == 1.5
    assert bench.beat().missed == {}


def test_watched_heart_that_is_admitted_once_more_has_missed_nothing(bench: Bench) -> None:
    bench.beat(A)
    bench.ledger.admit(A)
    take(bench, A)
    assert bench.beat().missed == {}


def test_heart_that_has_answered_at_once_with_others_has_answered(bench: Bench) -> None:
    bench.beat(A)
    take(bench, A)
    assert bench.ledger.pong(A, bench.last.token, bench.now) is Pong.STALE


def test_last_pong_is_remembered_when_the_heart_falls_silent(bench: Bench) -> None:
    bench.beat(A, B)
    take(bench, A, B)
    bench.beat()
    for _ in range(3):
        take(bench, B)
        beat = bench.beat()
    assert beat.failed == (Failure(A, last_pong=1.0, verdict_at=5.0, misses=3),)


def test_last_pong_is_remembered_through_a_late_beat_of_ours(bench: Bench) -> None:
    bench.beat(A)
    take(bench, A)
    bench.beat()
    bench.beat(after=9.0)
    bench.beat()
    assert bench.ledger.last_pong(A) == 1.0


def test_forgotten_heart_has_not_answered_at_once_with_others(bench: Bench) -> None:
    bench.beat(A, B)
    take(bench, A, B)
    bench.ledger.forget(A)
    assert bench.ledger.responses == {B}
    assert bench.ledger.last_pong(A) is None


def test_condemned_heart_that_had_answered_with_others_knows_its_last_pong(bench: Bench) -> None:
    bench.beat(A, B)
    take(bench, A, B)
    assert bench.ledger.condemn(A, 1.5) == Failure(A, last_pong=1.0, verdict_at=1.5, misses=0)
    assert bench.ledger.responses == {B}
    assert bench.beat().returned == ()


def test_strangers_among_many_answers_are_counted_and_missed() -> None:
    welcome = {A, B}
    bench = Bench(accept=welcome.__contains__)
    bench.beat(A, B)
    welcome.discard(B)
    take(bench, A, B)
    assert bench.ledger.tally == {Pong.CURRENT: 3, Pong.STRANGER: 1}
    assert bench.beat().missed == {B: 1}


class Touchy(bytes):
    """A heart id that counts how often it is looked up or compared."""

    touched = 0

    def __hash__(self) -> int:
        Touchy.touched += 1
        return super().__hash__()

    def __eq__(self, other: object) -> bool:
        Touchy.touched += 1
        return super().__eq__(other)


@pytest.mark.parametrize("missing", [0, 3])
def test_beat_looks_at_the_missing_and_at_nobody_else(bench: Bench, missing: int) -> None:
    hearts = [Touchy(b"heart-%d" % number) for number in range(1000)]
    bench.beat(*hearts)
    take(bench, *hearts[missing:])
    bench.beat()  # who was heard last, and when, is looked up once when a heart falls silent
    take(bench, *hearts[missing:])
    Touchy.touched = 0
    assert len(bench.beat().missed) == missing
    assert Touchy.touched <= 30 * missing


def test_ping_between_beats_is_answered_like_any_other(bench: Bench) -> None:
    bench.beat(A)
    token = bench.ledger.ask()
    assert bench.ledger.pong(A, token, bench.now) is Pong.CURRENT
    assert bench.beat().missed == {}


def test_nobody_has_missed_a_beat_who_does_not_answer_a_ping_between_beats(bench: Bench) -> None:
    bench.beat(A, B, C)
    take(bench, A)
    bench.ledger.pong(B, bench.last.token, bench.now)
    bench.ledger.ask()
    bench.ledger.pong(C, bench.last.token, bench.now)
    assert bench.ledger.responses == {A, B, C}
    assert bench.beat().missed == {}


def test_pings_between_beats_close_no_ping_of_a_beat(bench: Bench) -> None:
    bench.beat(A)
    in_flight = bench.last.token
    for _ in range(10):
        bench.ledger.ask()
    assert bench.ledger.pong(A, in_flight, bench.now) is Pong.LATE
    for _ in range(bench.ledger.misses):
        bench.beat()
    assert bench.ledger.pong(B, in_flight, bench.now) is Pong.LATE
    bench.beat()
    assert bench.ledger.pong(C, in_flight, bench.now) is Pong.STALE
    assert len(bench.ledger._window) == bench.ledger.misses + 1


# -- who is allowed


def test_only_hearts_that_are_allowed_are_watched() -> None:
    bench = Bench(allowed=[A])
    assert bench.beat(A, B).new == (A,)
    assert bench.ledger.tally == {Pong.CURRENT: 1, Pong.STRANGER: 1}
    bench.ledger.allow(B, bench.now)
    assert bench.beat(A, B).new == (B,)


def test_heart_that_had_answered_when_it_is_allowed_need_not_answer_again() -> None:
    bench = Bench(allowed=[])
    bench.ledger.pong(A, bench.last.token, bench.now)
    assert bench.ledger.allow(A, 0.5)
    assert not bench.ledger.allow(B, 0.5)
    assert bench.beat().new == (A,)
    assert bench.ledger.last_pong(A) == 0.5


@pytest.mark.parametrize("token", [b"made up", b"token-1"])
def test_answer_that_proves_nothing_does_not_help_when_one_is_allowed(token: bytes) -> None:
    bench = Bench(allowed=[])
    for _ in range(5):
        bench.beat()
    bench.ledger.pong(A, token, bench.now)
    assert not bench.ledger.allow(A, bench.now)
    assert bench.beat().new == ()


def test_strangers_are_remembered_in_a_bounded_number_and_for_a_bounded_time() -> None:
    bench = Bench(allowed=[])
    for number in range(5000):
        bench.ledger.pong(b"stranger-%d" % number, bench.last.token, bench.now)
    assert len(bench.ledger.guests._knocks) == 1000
    for _ in range(bench.ledger.misses + 1):
        bench.beat()
    assert bench.ledger.guests._knocks == {}
    assert bench.ledger.tally == {Pong.STRANGER: 5000}
    assert bench.ledger._heard == {}


def test_forgotten_heart_is_allowed_no_more() -> None:
    bench = Bench(allowed=[A])
    bench.beat(A)
    bench.ledger.forget(A)
    assert bench.beat(A).new == ()
    bench.ledger.allow(A, bench.now)
    assert bench.beat(A).new == (A,)


def test_allowed_heart_that_is_dead_does_not_come_back_silently() -> None:
    bench = Bench(allowed=[A])
    bench.beat(A)
    bench.kill(A)
    assert bench.beat(A).returned == (A,)


# -- who is muted


def test_muted_heart_is_failed_by_missed_beats_and_returns_when_it_is_heard_again(bench: Bench) -> None:
    bench.beat(A, B)
    bench.ledger.mute(A)
    beats = [bench.beat(A, B) for _ in range(3)]
    assert [dict(beat.missed) for beat in beats] == [{A: 1}, {A: 2}, {A: 3}]
    assert verdicts(beats) == [A]
    assert bench.ledger.tally[Pong.MUTED] == 3
    assert bench.beat(A, B).returned == ()
    bench.ledger.unmute(A)
    assert bench.beat(A, B).returned == (A,)


def test_heart_that_is_muted_after_its_answer_has_not_missed_that_beat(bench: Bench) -> None:
    bench.beat(A, B)
    take(bench, A)
    bench.ledger.mute(A)
    assert bench.beat(B).missed == {}
    assert bench.beat(B).missed == {A: 1}


def test_heart_that_is_unmuted_before_its_verdict_lives(bench: Bench) -> None:
    bench.beat(A)
    bench.ledger.mute(A)
    bench.beat(A)
    bench.beat(A)
    bench.ledger.unmute(A)
    assert bench.beat(A).missed == {}
    assert bench.ledger.hearts == {A}


def test_muted_heart_is_not_among_the_expected(bench: Bench) -> None:
    bench.beat(A, B)
    bench.ledger.mute(A)
    assert bench.ledger.expected == {B}
    bench.beat(B)
    assert bench.ledger.expected == {B}
    bench.ledger.unmute(A)
    assert bench.ledger.expected == {A, B}


def test_muted_and_unmuted_heart_that_was_admitted_after_its_answer_gives_it_only_once(bench: Bench) -> None:
    assert bench.ledger.pong(A, bench.last.token, 0.0) is Pong.CURRENT
    bench.ledger.admit(A)
    bench.ledger.mute(A)
    bench.ledger.unmute(A)
    assert bench.ledger.pong(A, bench.last.token, 0.0) is Pong.STALE


def test_forgotten_heart_is_no_longer_muted(bench: Bench) -> None:
    bench.beat(A)
    bench.ledger.mute(A)
    bench.ledger.forget(A)
    bench.ledger.admit(A)
    assert bench.beat(A).missed == {}


# -- answers of doubtful origin


def test_doubtful_answer_proves_nothing_and_yet_no_beat_is_missed(bench: Bench) -> None:
    bench.beat(A)
    take(bench, A)
    bench.beat()
    assert bench.ledger.doubt(A, bench.last.token) is Pong.DOUBTFUL
    assert bench.beat().missed == {}
    assert bench.ledger.last_pong(A) == 1.0
    bench.beat()
    bench.beat()
    assert bench.ledger.last_pong(A) == 1.0
    assert bench.ledger.doubt(B, bench.last.token) is Pong.DOUBTFUL
    assert bench.beat().new == ()
