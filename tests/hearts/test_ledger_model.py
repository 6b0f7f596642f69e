"""The ledger beside the same rules written down plainly: whatever is done to both, they agree."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pytest_ipcluster.hearts.ledger import Ledger

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")
sys.path.insert(0, BENCHMARKS)
try:
    import soak_ledger
    from plain_ledger import PlainLedger
finally:
    sys.path.remove(BENCHMARKS)

HEARTS = [b"heart-a", b"heart-b", b"heart-c"]
some_heart = st.sampled_from(HEARTS)
ages = st.sampled_from([0, 0, 0, 1, 1, 2, 3, 4, 5, 9])


class Two(RuleBasedStateMachine):
    """A ledger and its plain twin, which are told the same."""

    @initialize(misses=st.integers(1, 4), choosy=st.booleans(), listed=st.booleans())
    def begin(self, misses: int, choosy: bool, listed: bool) -> None:
        self.liked = set(HEARTS)
        accept = self.liked.__contains__ if choosy else None
        allowed = HEARTS[:1] if listed else None
        self.ours = Ledger(misses, 1.0, make_token=lambda n: b"token-%d" % n, accept=accept, allowed=allowed)
        self.plain = PlainLedger(misses, accept, allowed)
        self.now = 0.0
        self.both_beat()

    def both_beat(self) -> None:
        beat, found = self.ours.beat(self.now), self.plain.beat(self.now)
        assert soak_ledger.plainly(beat) == found

    def token(self, age: int) -> tuple[int, bytes]:
        ping = self.plain.pings - age
        return ping, b"token-%d" % ping

    @rule(wait=st.sampled_from([1.0, 1.0, 1.0, 1.0, 1.3, 2.0, 50.0]))
    def beat(self, wait: float) -> None:
        self.now += wait
        self.both_beat()

    @rule(heart=some_heart, age=ages)
    def pong(self, heart: bytes, age: int) -> None:
        ping, token = self.token(age)
        assert self.ours.pong(heart, token, self.now) == self.plain.pong(heart, ping, self.now)

    @rule(heart=some_heart, age=ages)
    def doubt(self, heart: bytes, age: int) -> None:
        ping, token = self.token(age)
        assert self.ours.doubt(heart, token) == self.plain.doubt(heart, ping)

    @rule(hearts=st.lists(some_heart, unique=True))
    def answered(self, hearts: list[bytes]) -> None:
        """As an inbox does it: who is expected is taken off, and booked with others."""
        heard = [heart for heart in hearts if heart in self.ours.expected]
        self.ours.expected.difference_update(heard)
        self.ours.answered(heard, self.now)
        for heart in heard:
            assert self.plain.pong(heart, self.plain.pings, self.now) in ("current", "stranger")

    @rule(hearts=st.lists(some_heart, unique=True, min_size=1), again=some_heart, age=ages)
    def answered_before_it_is_booked(self, hearts: list[bytes], again: bytes, age: int) -> None:
        """As an inbox does it: what else comes in is booked before those who were expected."""
        heard = [heart for heart in hearts if heart in self.ours.expected]
        self.ours.expected.difference_update(heard)
        for heart in heard:
            self.plain.pong(heart, self.plain.pings, self.now)
        if again not in heard or self.plain.is_welcome(again):
            self.pong(again, age)
        self.ours.answered(heard, self.now)

    @rule()
    def ask(self) -> None:
        self.ours.ask()
        self.plain.ask()

    @rule(order=st.sampled_from(["admit", "forget", "mute", "unmute"]), heart=some_heart)
    def order(self, order: str, heart: bytes) -> None:
        getattr(self.ours, order)(heart)
        getattr(self.plain, order)(heart)

    @rule(heart=some_heart)
    def allow(self, heart: bytes) -> None:
        assert self.ours.allow(heart, self.now) == self.plain.allow(heart, self.now)

    @rule(heart=some_heart)
    def condemn(self, heart: bytes) -> None:
        verdict = self.ours.condemn(heart, self.now)
        self.plain.condemn(heart)
        assert (verdict is not None) == (heart in self.plain.tombstones)

    @precondition(lambda self: self.ours.guests.accept is not None)
    @rule(heart=some_heart)
    def change_mind(self, heart: bytes) -> None:
        self.liked ^= {heart}

    @invariant()
    def they_agree(self) -> None:
        if not hasattr(self, "ours"):
            return
        assert self.ours.hearts == self.plain.hearts
        assert self.ours.on_probation == self.plain.on_probation
        assert set(self.ours.tombstones) == self.plain.tombstones
        assert self.ours.tally == self.plain.tally
        for heart in HEARTS:
            assert self.ours.last_pong(heart) == self.plain.life(heart).last_pong

    @precondition(lambda self: hasattr(self, "ours"))
    @rule()
    def look_at_responses(self) -> None:
        """It takes batches in, so it is not asked after every step."""
        assert self.ours.responses == self.plain.responses


TestTwo = Two.TestCase
TestTwo.settings = settings(
    deadline=None, max_examples=300, stateful_step_count=60, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.mark.parametrize("seed", range(6))
def test_no_verdict_of_many_heartbeats_is_wrong(seed: int) -> None:
    """Six times 25 schedules of 1,000 heartbeats; ``benchmarks/soak_ledger.py`` runs the thousand."""
    outcome = soak_ledger.Outcome()
    for number in range(25):
        outcome += soak_ledger.run(1000 * seed + number)
    assert outcome.heartbeats >= 25_000
    assert outcome.verdicts > 100
    assert outcome.wrong == dict.fromkeys(soak_ledger.WRONGS, 0)
