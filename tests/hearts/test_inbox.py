from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import zmq

from pytest_ipcluster.hearts.connections import Connections
from pytest_ipcluster.hearts.inbox import Inbox
from pytest_ipcluster.hearts.ledger import Beat, Ledger, Pong

A, B, C = b"heart-a", b"heart-b", b"heart-c"
LIMIT = 10_000
END = b"that is all"


class Post:
    """An inbox with sockets that play hearts."""

    def __init__(self) -> None:
        self.context = zmq.Context()
        self.router = self.context.socket(zmq.ROUTER)
        self.router.linger = self.router.rcvhwm = 0
        self.address = f"tcp://127.0.0.1:{self.router.bind_to_random_port('tcp://127.0.0.1')}"
        self.ledger = Ledger(3, 1.0, make_token=lambda number: b"token-%d" % number)
        self.connections = Connections(self.router)
        self.bad = 0
        self.inbox = Inbox(self.router, self.ledger, self.connections, lambda: self.now, self.count_bad)
        self.now = 0.0
        self.voices: dict[bytes, zmq.Socket[bytes]] = {}
        self.ends, self._book, self._doubt = 0, self.ledger.pong, self.ledger.doubt
        self.ledger.pong, self.ledger.doubt = self.book, self.doubt
        self.ledger.beat(self.now)

    def book(self, heart: bytes, token: bytes, now: float) -> Pong:
        self.ends += token == END
        return self._book(heart, token, now)

    def doubt(self, heart: bytes, token: bytes) -> Pong:
        self.ends += token == END
        return self._doubt(heart, token)

    def count_bad(self) -> None:
        self.bad += 1

    def say(self, heart: bytes, *frames: bytes) -> None:
        if heart not in self.voices:
            voice = self.voices[heart] = self.context.socket(zmq.DEALER)
            voice.linger = voice.sndhwm = 0
            voice.identity = heart
            voice.connect(self.address)
        self.voices[heart].send_multipart(frames)

    def hear(self) -> None:
        """Let every voice say that it has said everything, and read until all of them were heard."""
        self.ends = 0
        for heart in self.voices:
            self.say(heart, END)
        while self.ends < len(self.voices):
            assert self.router.poll(LIMIT), "nothing more comes in"
            while not self.inbox.drain(LIMIT):
                pass

    def beat(self) -> Beat:
        self.now += 1.0
        self.inbox.next_round()
        return self.ledger.beat(self.now)

    def ledger_token(self, age: int) -> str:
        return f"token-{self.ledger._sequence - age}"

    def drain(self) -> None:
        """Read until nothing is left of what is said to have come in."""
        assert self.router.poll(LIMIT)
        while not self.inbox.drain(LIMIT):
            pass

    def hurry(self, *hearts: bytes) -> None:
        """Have these hearts watched and their connections known, and a ping out that nobody has answered."""
        for heart in hearts:
            self.say(heart, self.ledger.token)
        self.hear()
        self.beat()
        self.connections.read()
        self.connections.wanted.clear()
        self.inbox._wary = self.inbox._rounds = 0
        assert not self.inbox.is_close

    def close(self) -> None:
        for voice in self.voices.values():
            voice.close()
        self.connections.close()
        self.context.destroy(linger=0)


@pytest.fixture
def post() -> Iterator[Post]:
    post = Post()
    yield post
    post.close()


def test_answers_are_booked_whether_in_a_hurry_or_not(post: Post) -> None:
    post.hurry(A, B)
    assert post.ledger.hearts == {A, B}
    post.say(A, post.ledger.token)
    post.say(B, post.ledger.token)
    post.hear()
    assert post.ledger.responses == {A, B}
    assert post.ledger.expected == set()
    assert post.bad == 0


def test_answer_given_twice_in_a_hurry_counts_once(post: Post) -> None:
    post.hurry(A)
    tally = post.ledger.tally.copy()
    post.say(A, post.ledger.token)
    post.say(A, post.ledger.token)
    post.hear()
    assert post.ledger.tally - tally == {Pong.CURRENT: 1, Pong.STALE: 2}  # the end is stale, too


def test_limit_stops_a_drain(post: Post) -> None:
    post.hurry(A)
    for _ in range(10):
        post.say(A, b"nonsense")
    seen = 0
    while seen < 10:
        assert post.router.poll(LIMIT)
        before = post.ledger.tally[Pong.STALE]
        post.inbox.drain(3)
        assert post.ledger.tally[Pong.STALE] - before <= 3
        seen += post.ledger.tally[Pong.STALE] - before


EXTRAS = [(b"x",), (b"",), (b"x", b"y"), (B,), (C, b"x", b"y"), (b"x",) * 5, (b"token-2",)]


@pytest.mark.parametrize("extra", EXTRAS, ids=repr)
@pytest.mark.parametrize("hurry", [True, False])
def test_frames_too_many_lose_nobody_elses_pong(post: Post, extra: tuple[bytes, ...], hurry: bool) -> None:
    post.hurry(A, B)
    if not hurry:
        post.connections.wanted.add(-1)
    for _ in range(20):
        post.say(A, post.ledger.token, *extra)
        post.say(A, post.ledger.token)
        post.say(B, b"older")
        post.say(B, post.ledger.token)
        post.hear()
        assert post.ledger.responses >= {A, B}
        assert post.beat().missed == {}
    assert post.ledger.hearts == {A, B}
    if not hurry:
        assert post.bad == 20


def test_frames_too_many_at_the_end_of_what_came_in_are_counted(post: Post) -> None:
    post.hurry(A)
    post.say(A, post.ledger.token, b"x")
    assert post.router.poll(LIMIT)
    assert post.inbox.drain(LIMIT)
    assert post.bad == 1
    assert post.ledger.responses == {A}


def test_limit_in_the_middle_of_a_message_puts_nothing_out_of_step(post: Post) -> None:
    post.hurry(A, B)
    post.say(A, post.ledger.token, b"x", b"y", b"z")
    assert post.router.poll(LIMIT)
    assert not post.inbox.drain(1)
    assert post.bad == 1
    post.say(B, post.ledger.token)
    post.hear()
    assert post.ledger.responses == {A, B}
    assert post.bad == 1


@pytest.mark.parametrize("hurry", [True, False])
def test_endless_message_is_thrown_away_piece_by_piece(post: Post, hurry: bool) -> None:
    post.hurry(A, B)
    if not hurry:
        post.connections.wanted.add(-1)
    post.say(A, *[b"x"] * 5000)
    assert post.router.poll(LIMIT)
    drains = 1
    while not post.inbox.drain(LIMIT):
        drains += 1
    assert drains > 1
    post.say(B, post.ledger.token)
    post.hear()
    assert post.bad == 1
    assert B in post.ledger.responses


class Script:
    """A ROUTER that says what was written for it, in that order."""

    def __init__(self) -> None:
        self.frames: deque[tuple[bytes, bool]] = deque()
        self.more = False

    def say(self, *frames: bytes) -> None:
        self.frames += [(frame, number < len(frames)) for number, frame in enumerate(frames, 1)]

    def recv(self, _flags: int, copy: bool = True) -> object:
        if not self.frames:
            raise zmq.Again
        data, self.more = self.frames.popleft()
        return data if copy else SimpleNamespace(bytes=data, more=self.more)

    def getsockopt(self, option: int) -> int:
        assert option == zmq.RCVMORE
        return int(self.more)


STRANGER = b"stranger"
FORGED = [(B, b"token"), (B, b"token", b"x"), (b"token", B), (b"token", B, b"token"), (b"x", B, b"token"), (B,)]


@pytest.mark.parametrize("speaker", [STRANGER, A])
@pytest.mark.parametrize("forged", FORGED, ids=repr)
def test_nobody_can_speak_for_a_silent_heart(forged: tuple[bytes, ...], speaker: bytes) -> None:
    """Three frames that begin with the stranger's own id look like a pong of the heart in the second."""
    script, ledger = Script(), Ledger(3, 1.0, make_token=lambda number: b"token-%d" % number, allowed=[A, B, C])
    inbox = Inbox(script, ledger, SimpleNamespace(wanted=set()), lambda: 0.0, list)
    now, failed = 0.0, []
    for heart in (A, B, C):
        ledger.admit(heart)
    ledger.beat(now)
    while not failed:
        token = ledger.token
        script.say(A, token)
        script.say(speaker, *(token if frame == b"token" else frame for frame in forged))
        script.say(C, token)
        while not inbox.drain(LIMIT):
            pass
        now += 1.0
        inbox.next_round()
        failed = [failure.heart for failure in ledger.beat(now).failed]
    assert failed == [B]
    # A stranger can only put the verdict off by one beat; a heart that is watched by one round in eight.
    assert now <= (8 if speaker == A else 1) + ledger.misses


@pytest.mark.parametrize("form", ["{token} {B} {token}", "{token} {B} old", "{token} x", "{token} {B}"])
def test_watched_heart_that_speaks_for_a_silent_one_cannot_hide_its_death(post: Post, form: str) -> None:
    post.hurry(A, B)
    rounds = 0
    failed: list[bytes] = []
    while not failed:
        frames = form.replace("old", post.ledger_token(1)).format(B=B.decode(), token=post.ledger.token.decode())
        post.say(A, *frames.encode().split())
        post.say(A, post.ledger.token)
        post.say(A, b"x")
        post.hear()
        failed = [failure.heart for failure in post.beat().failed]
        rounds += 1
    assert failed == [B]
    assert rounds <= 8 + post.ledger.misses  # in every eighth round all is looked at closely
    assert A in post.ledger.hearts


def test_whose_message_cannot_be_told_has_neither_answered_nor_missed(post: Post) -> None:
    post.hurry(A, B)
    before = post.ledger.last_pong(B)
    post.now += 0.5
    post.inbox._book(B, post.ledger.token, in_a_hurry=True)
    assert post.ledger.last_pong(B) == before
    assert post.inbox.is_close


def test_all_is_looked_at_closely_now_and_then_and_while_a_heart_is_on_probation(post: Post) -> None:
    post.hurry(A, B)
    closely = []
    for _ in range(16):
        for heart in (A, B):
            post.say(heart, post.ledger.token)
            post.drain()
        post.beat()
        closely.append(post.inbox.is_close)
    assert closely == [number % 8 == 6 for number in range(16)]
    post.say(A, post.ledger.token)
    post.drain()
    assert post.beat().missed == {B: 1}
    assert post.inbox.is_close


@pytest.mark.parametrize("seed", range(10))
def test_books_are_those_of_one_who_takes_every_message_by_itself(post: Post, seed: int) -> None:
    rng = random.Random(seed)
    plain = Ledger(3, 1.0, make_token=lambda number: b"token-%d" % number)
    plain.beat(0.0)
    post.hurry(A, B)
    for heart in (A, B):
        plain.pong(heart, plain.token, 0.0)
        plain.pong(heart, END, 0.0)
    plain.beat(post.now)
    for _ in range(30):
        for _ in range(rng.randrange(6)):
            heart, age = rng.choice([A, B, C]), rng.choice([0, 0, 0, 1, 2, 9])
            token = b"token-%d" % (post.ledger._sequence - age)
            post.say(heart, token)
            post.hear()
            plain.pong(heart, token, post.now)
            for voice in post.voices:
                plain.pong(voice, END, post.now)
        assert post.ledger.responses == plain.responses
        assert {h: post.ledger.last_pong(h) for h in (A, B, C)} == {h: plain.last_pong(h) for h in (A, B, C)}
        assert post.beat() == plain.beat(post.now)
        assert post.ledger.tally == plain.tally
