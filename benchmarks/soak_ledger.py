"""A million virtual heartbeats: is any verdict of the ledger wrong?

Runs seeded schedules on a virtual clock, no socket and no process involved: hearts that live, fall silent, come back,
answer late, twice or with pings made up, are muted, forgotten and failed, while the monitor is on time or too late for
its own beat. Beside the ledger runs a second one that was written from the rules alone (``plain_ledger.py``). Prints
how many heartbeats and verdicts there were and how many verdicts were wrong, and ends with 1 if any was.

    python benchmarks/soak_ledger.py --schedules 1000
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import common
from plain_ledger import PlainLedger

from pytest_ipcluster.hearts.ledger import Ledger
from pytest_ipcluster.hearts.verdicts import Beat

#: Beats and hearts of one schedule.
BEATS, HEARTS = 50, 20

WRONGS = ("false", "missed", "late", "twice", "wrong id", "other")


@dataclass
class Outcome:
    """What schedules came to.

    A verdict is ``false`` or ``missed`` beside the plain ledger's, ``late`` when that gave it sooner; ``other`` is
    anything else that the two have not in common.
    """

    heartbeats: int = 0
    verdicts: int = 0
    wrong: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(WRONGS, 0)))

    def __add__(self, other: Outcome) -> Outcome:
        wrong = {kind: self.wrong[kind] + other.wrong[kind] for kind in WRONGS}
        return Outcome(self.heartbeats + other.heartbeats, self.verdicts + other.verdicts, Counter(wrong))


def plainly(beat: Beat) -> dict[str, object]:
    """Return what a beat has found as the plain ledger tells it."""
    return {
        "stalled": beat.stalled,
        "missed": dict(beat.missed),
        "failed": [(failure.heart, failure.last_pong) for failure in beat.failed],
        "returned": list(beat.returned),
        "new": list(beat.new),
    }


class Schedule:
    """One life of a monitor, decided by its seed."""

    def __init__(self, seed: int) -> None:
        self._rng = rng = random.Random(seed)
        self._hearts = [b"heart-%d" % number for number in range(HEARTS)]
        allowed = rng.sample(self._hearts, rng.randrange(HEARTS)) if rng.random() < 0.5 else None
        misses = rng.randint(1, 5)
        self._ours = Ledger(misses, 1.0, make_token=lambda number: b"token-%d" % number, allowed=allowed)
        self._plain = PlainLedger(misses, None, allowed)
        self._lively = dict.fromkeys(self._hearts, True)
        self._late = {heart: rng.choice([0, 0, 0, 0, 1, 2, 4]) for heart in self._hearts}
        self._now = 0.0
        self._told: list[tuple[int, bytes]] = []
        self._right: list[tuple[int, bytes]] = []
        self.outcome = Outcome()

    def run(self) -> Outcome:
        for number in range(BEATS):
            self._beat(number)
            for heart in self._rng.sample(self._hearts, HEARTS):
                self._live(heart)
            self._order()
            self._now += self._rng.choice([1.0, 1.0, 1.0, 1.0, 1.0, 1.2, 1.4, 1.7, 10.0])
        self._judge()
        return self.outcome

    def _beat(self, number: int) -> None:
        beat, found = self._ours.beat(self._now), self._plain.beat(self._now)
        told = [failure.heart for failure in beat.failed]
        right = [heart for heart, _ in found["failed"]]  # type: ignore[attr-defined]
        self._told += [(number, heart) for heart in told]
        self._right += [(number, heart) for heart in right]
        same_sets = (self._ours.hearts, self._ours.on_probation) == (self._plain.hearts, self._plain.on_probation)
        self.outcome.wrong["other"] += told == right and not (same_sets and plainly(beat) == found)
        self.outcome.wrong["twice"] += len(told) - len(set(told))
        self.outcome.wrong["wrong id"] += len(set(told) - set(self._hearts))

    def _live(self, heart: bytes) -> None:
        """Let one heart beat, or not, as it goes in its life."""
        self.outcome.heartbeats += 1
        rng = self._rng
        if rng.random() < 0.06:
            self._lively[heart] ^= True
        if self._lively[heart] and rng.random() < 0.97:
            self._answer(heart, self._late[heart])
        if rng.random() < 0.05:  # again, or long after, or something made up
            self._answer(heart, rng.choice([-1, 0, 1, 2, 3, 5, 10]))

    def _answer(self, heart: bytes, age: int) -> None:
        ping = self._plain.pings - age
        call = self._rng.choice(["pong"] * 9 + ["doubt"])
        if call == "pong" and age == 0 and heart in self._ours.expected:
            self._ours.expected.remove(heart)
            self._ours.answered([heart], self._now)
            self._plain.pong(heart, ping, self._now)
            return
        arguments = [self._now] if call == "pong" else []
        ours = getattr(self._ours, call)(heart, b"token-%d" % ping, *arguments)
        self.outcome.wrong["other"] += ours != getattr(self._plain, call)(heart, ping, *arguments)

    def _order(self) -> None:
        """Now and then do what a test does with a heart."""
        while self._rng.random() < 0.3:
            heart = self._rng.choice(self._hearts)
            order = self._rng.choice(["admit", "allow", "condemn", "forget", "mute", "unmute", "unmute", "ask"])
            theirs: list[Any] = [] if order == "ask" else [heart]
            ours = [*theirs, self._now] if order in ("allow", "condemn") else theirs
            getattr(self._ours, order)(*ours)
            getattr(self._plain, order)(*([*theirs, self._now] if order == "allow" else theirs))

    def _judge(self) -> None:
        """Compare all verdicts: one that was given at another beat is late, or it is false and missed."""
        told, right = Counter(self._told), Counter(self._right)
        false, missed = list((told - right).elements()), list((right - told).elements())
        for number, heart in list(missed):
            later = next((one for one in false if one[1] == heart and one[0] > number), None)
            if later is not None:
                false.remove(later)
                missed.remove((number, heart))
                self.outcome.wrong["late"] += 1
        self.outcome.wrong["false"] += len(false)
        self.outcome.wrong["missed"] += len(missed)
        self.outcome.verdicts += len(self._told)


def run(seed: int) -> Outcome:
    """Run one schedule."""
    return Schedule(seed).run()


def main() -> None:
    parser = common.parser(__doc__, rounds=None)
    parser.add_argument("--schedules", type=common.positive, default=1000, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="that of the first; the others follow it (default: 0)")
    options = parser.parse_args()
    outcome = Outcome()
    for seed in range(options.seed, options.seed + options.schedules):
        outcome += (one := run(seed))
        if sum(one.wrong.values()):
            common.say(f"wrong with seed {seed}: {dict(one.wrong)}")
    rows = [
        common.Row(f"{kind} verdicts" if kind != "other" else "other differences", "", outcome.wrong[kind], limit=0)
        for kind in WRONGS
    ]
    common.say(f"{outcome.heartbeats} heartbeats, {outcome.verdicts} verdicts by missed beats")
    common.report(__file__, rows, file=options.json, settings=common.settings(options), runs=outcome.wrong)
    sys.exit(bool(sum(outcome.wrong.values())))


if __name__ == "__main__":
    main()
