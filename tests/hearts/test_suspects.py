from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

import pytest

from pytest_ipcluster.hearts.suspects import Suspects

A = b"heart-a"


class Inquiry:
    """Suspects whose looks, verdicts and clock are the test's."""

    def __init__(self) -> None:
        self.now = 0.0
        self.answers: dict[bytes, Iterator[bool | None]] = {}
        self.looks: list[tuple[float, bytes]] = []
        self.condemned: list[bytes] = []
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.suspects = Suspects(self.look, self.condemned.append, self.later)

    def look(self, heart: bytes) -> bool | None:
        self.looks.append((self.now, heart))
        return next(self.answers[heart])

    def later(self, seconds: float, function: Callable[[], None]) -> None:
        self.timers.append((self.now + seconds, function))

    def suspect(self, heart: bytes, answers: Iterable[bool | None]) -> None:
        self.answers[heart] = iter(answers)
        self.suspects.add(heart)

    def step(self) -> None:
        """Let one thing happen that was put off."""
        first = min(self.timers, key=lambda timer: timer[0])
        self.timers.remove(first)
        self.now = first[0]
        first[1]()

    def go_on(self) -> None:
        while self.timers:
            self.step()


@pytest.fixture
def inquiry() -> Inquiry:
    return Inquiry()


def forever(answer: bool | None) -> Iterator[bool | None]:
    while True:
        yield answer


def test_heart_whose_process_is_gone_is_condemned_at_once_and_once(inquiry: Inquiry) -> None:
    inquiry.suspect(A, forever(True))
    assert inquiry.condemned == [A]
    inquiry.go_on()
    assert inquiry.condemned == [A]


def test_process_that_is_still_ending_is_looked_at_again(inquiry: Inquiry) -> None:
    inquiry.suspect(A, [False, False, False, True])
    assert inquiry.condemned == []
    inquiry.go_on()
    assert inquiry.condemned == [A]
    assert len(inquiry.looks) == 4


def test_looks_become_rarer_and_end(inquiry: Inquiry) -> None:
    inquiry.suspect(A, forever(False))
    inquiry.go_on()
    times = [when for when, _ in inquiry.looks]
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert pauses == sorted(pauses)
    assert pauses[0] == pytest.approx(0.001)
    assert 0.1 < times[-1] < 1.0
    assert inquiry.condemned == []


def test_heart_that_nobody_can_tell_about_is_let_go(inquiry: Inquiry) -> None:
    inquiry.suspect(A, forever(None))
    inquiry.go_on()
    assert len(inquiry.looks) == 1
    assert inquiry.condemned == []


def test_many_suspects_leave_time_for_other_things(inquiry: Inquiry) -> None:
    hearts = [b"heart-%d" % number for number in range(200)]
    inquiry.suspects._working = True  # as if the first of them was being looked at
    for heart in hearts:
        inquiry.suspect(heart, forever(True))
    inquiry.suspects._work()
    assert 0 < len(inquiry.looks) < 100
    inquiry.go_on()
    assert inquiry.condemned == hearts


def test_heart_suspected_by_a_handler_of_a_verdict_is_looked_at_too(inquiry: Inquiry) -> None:
    def condemn(heart: bytes) -> None:
        inquiry.condemned.append(heart)
        if heart == A:
            inquiry.suspect(b"heart-b", forever(True))

    inquiry.suspects._condemn = condemn
    inquiry.suspect(A, forever(True))
    inquiry.go_on()
    assert inquiry.condemned == [A, b"heart-b"]


def test_verdict_that_raises_keeps_nobody_from_being_looked_at(inquiry: Inquiry) -> None:
    def condemn(heart: bytes) -> None:
        if heart == A:
            raise KeyboardInterrupt
        inquiry.condemned.append(heart)

    inquiry.suspects._condemn = condemn
    with pytest.raises(KeyboardInterrupt):
        inquiry.suspect(A, forever(True))
    inquiry.suspect(b"heart-b", forever(True))
    assert inquiry.condemned == [b"heart-b"]


def test_heart_that_is_suspected_over_and_over_is_looked_at_once_at_a_time(inquiry: Inquiry) -> None:
    inquiry.suspects._working = True  # as if another was being looked at
    for _ in range(1000):
        inquiry.suspect(A, forever(False))
    inquiry.suspects._work()
    assert len(inquiry.looks) == 1
    inquiry.go_on()
    assert len(inquiry.looks) < 20


def test_heart_that_is_suspected_again_is_looked_at_for_the_whole_time_again(inquiry: Inquiry) -> None:
    inquiry.suspect(A, forever(False))
    for _ in range(5):
        inquiry.step()
    again = inquiry.now
    inquiry.suspect(A, forever(False))
    inquiry.go_on()
    times = [when for when, _ in inquiry.looks if when >= again][1:]
    assert times[0] - again == 0
    assert times[-1] - again > 0.1
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert pauses == sorted(pauses)
    assert inquiry.suspects._suspicions == {}
