"""The rules of the ledger written down a second time, for nobody's speed: it keeps everything and looks back at it.

Nothing here comes from the package. What is compared with it are the words that answers get, the sets of hearts, and
what beats find.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field


@dataclass
class Life:
    """All that is known of one heart."""

    watched: bool = False
    buried: bool = False
    muted: bool = False
    #: Numbers of the pings that it has answered so that it counted, and when.
    answers: list[tuple[int, float]] = field(default_factory=list)
    #: What it answers up to this ping counts no more: it was failed when this was the newest.
    deaf_until: int = 0
    #: What was told of it since the last beat: "answered", "doubtful".
    since_beat: list[str] = field(default_factory=list)
    #: What beats that judged have found about it since it was last watched anew: "heard", "missed".
    beats: list[str] = field(default_factory=list)
    #: The last ping that it answered without being welcome.
    knock: int = 0

    @property
    def newest(self) -> int:
        return max([self.deaf_until, *(ping for ping, _ in self.answers)])

    @property
    def last_pong(self) -> float | None:
        return self.answers[-1][1] if self.answers else None

    @property
    def missed_in_a_row(self) -> int:
        count = 0
        for found in reversed(self.beats):
            if found != "missed":
                break
            count += 1
        return count


class PlainLedger:
    """The same calls as the ledger's, and the same results as plain values. ``period`` is 1."""

    def __init__(
        self,
        misses: int,
        accept: Callable[[bytes], bool] | None = None,
        allowed: Iterable[bytes] | None = None,
    ) -> None:
        self.misses = misses
        self.accept = accept
        self.allowed = None if allowed is None else set(allowed)
        self.banned: set[bytes] = set()
        self.lives: dict[bytes, Life] = {}
        self.tally: Counter[str] = Counter()
        self.due: float | None = None
        self.pings = 0
        #: Which of the pings were those of beats.
        self.beats: list[int] = []

    # -- what it knows

    def life(self, heart: bytes) -> Life:
        return self.lives.setdefault(heart, Life())

    @property
    def hearts(self) -> set[bytes]:
        return {heart for heart, life in self.lives.items() if life.watched}

    @property
    def responses(self) -> set[bytes]:
        return {heart for heart, life in self.lives.items() if life.since_beat}

    @property
    def on_probation(self) -> set[bytes]:
        return {heart for heart in self.hearts if self.lives[heart].missed_in_a_row}

    @property
    def tombstones(self) -> set[bytes]:
        return {heart for heart, life in self.lives.items() if life.buried}

    def is_open(self, ping: int) -> bool:
        """The pings that count are those from the beat on that is as many back as it takes to be failed."""
        return bool(self.beats) and self.beats[-self.misses - 1 :][0] <= ping <= self.pings

    def is_welcome(self, heart: bytes) -> bool:
        listed = heart not in self.banned if self.allowed is None else heart in self.allowed
        return listed and (self.accept is None or self.accept(heart))

    # -- answers

    def worth(self, heart: bytes, ping: int) -> str:
        life = self.life(heart)
        if not self.is_welcome(heart):
            if self.allowed is not None and self.is_open(ping):
                life.knock = ping
            return "stranger"
        if life.muted:
            return "muted"
        if not self.is_open(ping) or ping <= life.newest:
            return "stale"
        return "current" if ping == self.pings else "late"

    def pong(self, heart: bytes, ping: int, now: float) -> str:
        worth = self.worth(heart, ping)
        self.tally[worth] += 1
        if worth in ("current", "late"):
            self.book(heart, ping, now)
        return worth

    def book(self, heart: bytes, ping: int, now: float) -> None:
        self.life(heart).answers.append((ping, now))
        self.life(heart).since_beat.append("answered")

    def doubt(self, heart: bytes, ping: int) -> str:
        worth = self.worth(heart, ping)
        if worth in ("current", "late"):
            worth = "doubtful"
            if self.life(heart).watched:
                self.life(heart).since_beat.append("doubtful")
        self.tally[worth] += 1
        return worth

    def ask(self) -> None:
        self.pings += 1

    # -- orders

    def admit(self, heart: bytes) -> None:
        self.welcome(heart)
        life = self.life(heart)
        life.buried = False
        if not life.watched:
            life.watched = True
            life.beats.clear()

    def welcome(self, heart: bytes) -> None:
        self.banned.discard(heart)
        if self.allowed is not None:
            self.allowed.add(heart)
        self.life(heart).knock = 0

    def allow(self, heart: bytes, now: float) -> bool:
        life = self.life(heart)
        knock = life.knock
        self.welcome(heart)
        if life.watched or life.muted or not self.is_welcome(heart):
            return False
        if not self.is_open(knock) or knock <= life.newest:
            return False
        self.book(heart, knock, now)
        return True

    def mute(self, heart: bytes) -> None:
        self.life(heart).muted = True

    def unmute(self, heart: bytes) -> None:
        self.life(heart).muted = False

    def forget(self, heart: bytes) -> None:
        self.lives.pop(heart, None)
        if self.allowed is None:
            self.banned.add(heart)
        else:
            self.allowed.discard(heart)

    def condemn(self, heart: bytes) -> None:
        if self.life(heart).watched:
            self.bury(heart)

    def bury(self, heart: bytes) -> None:
        life = self.life(heart)
        life.watched, life.buried, life.deaf_until = False, True, self.pings
        life.since_beat.clear()

    # -- beats

    def beat(self, now: float) -> dict[str, object]:
        """Return what the beat has found: new, missed, failed and returned hearts, and whether it was too late."""
        stalled = self.due is not None and now - self.due > 0.5
        found: dict[str, object] = {"stalled": stalled}
        silent = sorted(heart for heart in self.hearts if not self.lives[heart].since_beat)
        for heart in self.hearts - set(silent):
            self.lives[heart].beats.append("heard")
        if not stalled:
            for heart in silent:
                self.lives[heart].beats.append("missed")
        found["missed"] = {} if stalled else {heart: self.lives[heart].missed_in_a_row for heart in silent}
        doomed = [] if stalled else [heart for heart in silent if self.lives[heart].missed_in_a_row >= self.misses]
        found["failed"] = [(heart, self.lives[heart].last_pong) for heart in doomed]
        arrived = sorted(heart for heart, life in self.lives.items() if life.since_beat and not life.watched)
        found["returned"] = [heart for heart in arrived if self.lives[heart].buried]
        found["new"] = [heart for heart in arrived if not self.lives[heart].buried]
        for heart in doomed:
            self.bury(heart)
        for heart in arrived:
            self.admit(heart)
        for life in self.lives.values():
            life.since_beat.clear()
        self.due = now + 1.0
        self.pings += 1
        self.beats.append(self.pings)
        return found
