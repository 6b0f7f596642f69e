from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import zmq
from tornado.ioloop import IOLoop
from traitlets import TraitError
from traitlets.config import Config, LoggingConfigurable
from zmq.eventloop.zmqstream import ZMQStream

from pytest_ipcluster.hearts.ledger import Failure, Pong
from pytest_ipcluster.hearts.monitor import HandlerError, HeartMonitor
from pytest_ipcluster.report.events import EventLog

A, B = b"heart-a", b"heart-b"
LIMIT = 10_000  # milliseconds


class Desk:
    """A monitor whose beats and clock are the test's, and sockets that play hearts. One period is 0.1 s."""

    def __init__(self, **kwargs: object) -> None:
        self.now = 100.0
        self.context = zmq.Context()
        self.loop = IOLoop(make_current=False)
        self.pingstream = ZMQStream(self._bind(zmq.PUB, "inproc://ping"), self.loop)
        self.pongstream = ZMQStream(self._bind(zmq.ROUTER, "inproc://pong"), self.loop)
        self.events = EventLog()
        self.monitor = HeartMonitor(
            pingstream=self.pingstream,
            pongstream=self.pongstream,
            loop=self.loop,
            events=self.events,
            clock=lambda: self.now,
            **kwargs,
        )
        self.pings = self._connect(zmq.SUB, "inproc://ping")
        self.pings.subscribe(b"")
        self.voices: dict[bytes, zmq.Socket[bytes]] = {}
        self.monitor.start()
        self.ping = self.beat(after=0.0)

    def _bind(self, kind: int, address: str) -> zmq.Socket[bytes]:
        socket = self.context.socket(kind)
        socket.rcvhwm = 0
        socket.bind(address)
        return socket

    def _connect(self, kind: int, address: str, identity: bytes | None = None) -> zmq.Socket[bytes]:
        socket = self.context.socket(kind)
        socket.linger = socket.sndhwm = 0
        if identity:
            socket.identity = identity
        socket.connect(address)
        return socket

    def say(self, heart: bytes, *frames: bytes) -> None:
        """Send something to the ROUTER in the name of a heart."""
        if heart not in self.voices:
            self.voices[heart] = self._connect(zmq.DEALER, "inproc://pong", heart)
        self.voices[heart].send_multipart(frames)

    def beat(self, *hearts: bytes, after: float = 0.1) -> bytes:
        """Let these hearts answer the last ping, wait, beat; return the new ping."""
        for heart in hearts:
            self.say(heart, self.ping)
        self.now += after
        self.monitor.beat()
        assert self.pings.poll(LIMIT)
        self.ping = self.pings.recv()
        return self.ping

    def kinds(self, heart: bytes | None = None) -> list[str]:
        return [event.kind for event in self.events.since() if heart in (None, event.heart)]

    def close(self) -> None:
        self.monitor.stop()
        self.pingstream.close(linger=0)
        self.pongstream.close(linger=0)
        self.loop.close()
        self.context.destroy(linger=0)


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.close()


def failing(heart: bytes) -> None:
    raise ValueError(f"no luck with {heart!r}")


# -- the interface of old


def test_monitor_is_a_logging_configurable() -> None:
    assert issubclass(HeartMonitor, LoggingConfigurable)
    assert HeartMonitor().log is not None
    assert HeartMonitor.created is None


TRAITS_OF_OLD = {
    *("config", "hearts", "last_ping", "lifetime", "log", "loop", "on_probation", "period"),
    *("pingstream", "pongstream", "responses", "tic"),
}


@pytest.mark.parametrize("name", sorted(TRAITS_OF_OLD))
def test_every_trait_of_old_is_a_trait(name: str) -> None:
    assert name in HeartMonitor.class_trait_names()
    assert name in HeartMonitor.class_traits()
    assert HeartMonitor().has_trait(name)


def test_period_and_misses_can_be_configured() -> None:
    config = Config({"HeartMonitor": {"period": "250", "misses": "5"}})
    monitor = HeartMonitor(config=config)
    assert (monitor.period, monitor.misses) == (250.0, 5)
    assert (monitor.ledger.period, monitor.ledger.misses) == (0.25, 5)


def test_help_tells_what_can_be_configured() -> None:
    assert "c.HeartMonitor.period = 100.0" in HeartMonitor.class_config_section()
    assert "milliseconds" in HeartMonitor.class_get_help()
    assert "Current: 7.0" in HeartMonitor.class_get_help(HeartMonitor(period=7))
    assert "in a row" in HeartMonitor.class_get_trait_help(HeartMonitor.misses)


def test_help_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    HeartMonitor.class_print_help()
    assert "HeartMonitor.period" in capsys.readouterr().out


def test_update_config_changes_the_running_settings() -> None:
    monitor = HeartMonitor()
    monitor.update_config(Config({"HeartMonitor": {"period": 20}}))
    assert monitor.period == 20.0
    assert monitor.ledger.period == 0.02


def test_traits_can_be_asked_about() -> None:
    monitor = HeartMonitor()
    assert monitor.trait_metadata("period", "config") is True
    assert monitor.trait_metadata("hearts", "config") is None
    assert set(monitor.trait_names(config=True)) == {"period", "misses"}
    assert set(monitor.traits(config=True)) == {"period", "misses"}


def test_on_trait_change_still_works() -> None:
    monitor, seen = HeartMonitor(), []

    def changed(name: str, old: float, new: float) -> None:
        seen.append((name, old, new))

    with pytest.deprecated_call():
        monitor.on_trait_change(changed, "period")
    monitor.period = 5
    with pytest.deprecated_call():
        monitor.on_trait_change(changed, "period", remove=True)
    monitor.period = 6
    assert seen == [("period", 100.0, 5.0)]


@pytest.mark.parametrize("settings", [{"period": 0}, {"period": -1}, {"period": "soon"}, {"misses": 0}])
def test_senseless_setting_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(TraitError):
        HeartMonitor(**settings)


@pytest.mark.parametrize("name", ["hearts", "responses", "on_probation"])
def test_sets_are_the_ledgers_own_python_sets(name: str) -> None:
    monitor = HeartMonitor()
    assert type(getattr(monitor, name)) is set
    assert getattr(monitor, name) is getattr(monitor.ledger, name)


# -- beats


def test_beat_sends_one_fresh_ping(desk: Desk) -> None:
    pings = {desk.beat() for _ in range(5)}
    assert len(pings) == 5
    assert not desk.pings.poll(0)


def test_lifetime_last_ping_and_tic_follow_the_beats(desk: Desk) -> None:
    start = desk.monitor.tic
    desk.beat(after=0.1)
    desk.beat(after=0.25)
    assert desk.monitor.last_ping == pytest.approx(0.1)
    assert desk.monitor.lifetime == pytest.approx(0.35)
    assert desk.monitor.tic == pytest.approx(start + 0.35)


def test_beat_hears_what_has_come_in_before_it_judges(desk: Desk) -> None:
    desk.beat(*(b"heart-%d" % n for n in range(50)))
    assert len(desk.monitor.hearts) == 50


def test_late_pong_is_heard_before_the_verdict(desk: Desk) -> None:
    desk.beat(A)
    desk.beat()
    desk.beat()
    desk.beat(A)
    assert desk.kinds(A) == ["new heart", "missed", "missed"]


def test_heart_that_falls_silent_is_on_probation_then_failed(desk: Desk) -> None:
    desk.beat(A)
    desk.beat()
    assert desk.monitor.on_probation == {A}
    desk.beat()
    desk.beat()
    assert desk.monitor.on_probation == desk.monitor.hearts == set()
    assert desk.kinds(A) == ["new heart", "missed", "missed", "missed", "failed"]


def test_misses_of_two_is_the_rule_of_old() -> None:
    desk = Desk(misses=2)
    desk.beat(A)
    desk.beat()
    assert desk.monitor.on_probation == {A}
    desk.beat()
    assert desk.monitor.hearts == set()
    desk.close()


def test_events_tell_how_many_misses_and_how_long_ago_the_last_pong_was(desk: Desk) -> None:
    desk.beat(A)
    for _ in range(3):
        desk.beat()
    details = [event.detail for event in desk.events.since() if event.heart == A]
    assert details == ["", "1 of 3", "2 of 3", "3 of 3", "last pong 0.300 s ago"]


def test_stalled_beat_is_told_and_fails_nobody(desk: Desk) -> None:
    desk.beat(A)
    desk.beat(after=30.0)
    assert desk.kinds() == ["new heart", "stalled"]
    assert "29.900 s late" in desk.events.since()[-1].detail
    assert desk.monitor.hearts == {A}


def test_handler_that_takes_long_does_not_make_the_next_beat_late(desk: Desk) -> None:
    def dawdle(_heart: bytes) -> None:
        desk.now += 5.0

    desk.monitor.add_new_heart_handler(dawdle)
    desk.beat(A)
    desk.beat(A)
    assert "stalled" not in desk.kinds()


def test_returned_heart_is_told_as_returned_and_calls_the_handlers_for_new_hearts(desk: Desk) -> None:
    calls: list[tuple[str, bytes]] = []
    desk.monitor.add_new_heart_handler(lambda heart: calls.append(("new", heart)))
    desk.monitor.add_heart_return_handler(lambda heart: calls.append(("back", heart)))
    desk.beat(A)
    for _ in range(5):
        desk.beat()
    desk.beat(A)
    assert calls == [("new", A), ("back", A), ("new", A)]
    assert desk.kinds(A)[-2:] == ["failed", "returned"]
    assert desk.kinds(A).count("new heart") == 1


def test_verdict_can_be_looked_up_also_after_the_return(desk: Desk) -> None:
    assert desk.monitor.failure_of(A) is None
    desk.beat(A)
    for _ in range(3):
        desk.beat()
    failure = desk.monitor.failure_of(A)
    assert failure == Failure(A, last_pong=pytest.approx(100.1), verdict_at=desk.now, misses=3)
    desk.beat(A)
    assert A in desk.monitor.hearts
    assert desk.monitor.failure_of(A) is failure


def test_second_death_is_a_second_verdict(desk: Desk) -> None:
    failed: list[bytes] = []
    desk.monitor.add_heart_failure_handler(failed.append)
    desk.beat(A)
    for _ in range(5):
        desk.beat()
    first = desk.monitor.failure_of(A)
    desk.beat(A)
    for _ in range(5):
        desk.beat()
    assert failed == [A, A]
    assert desk.monitor.failure_of(A) != first


def test_forgotten_heart_fails_without_a_word(desk: Desk) -> None:
    desk.beat(A, B)
    desk.monitor.forget(A)
    for _ in range(5):
        desk.beat(A, B)
    assert desk.kinds(A) == ["new heart", "forgotten"]


def test_strangers_are_counted_and_not_watched() -> None:
    desk = Desk(accept={A}.__contains__)
    desk.beat(A, B)
    assert desk.monitor.hearts == {A}
    assert desk.monitor.ledger.tally[Pong.STRANGER] == 1
    desk.close()


def test_monitor_without_a_time_line_works_as_well(desk: Desk) -> None:
    desk.monitor.events = None
    desk.beat(A)
    assert desk.monitor.hearts == {A}


# -- pongs


@pytest.mark.parametrize(
    "msg",
    [None, 7, b"heart", "heart", [], [A], [A, b"x", b"y"], ["heart", "token"], [A, None], {A: b"x"}, [[A], [b"x"]]],
)
def test_what_is_no_pong_is_counted_and_ignored(desk: Desk, msg: object) -> None:
    desk.monitor.handle_pong(msg)
    assert desk.monitor.bad_messages == 1
    assert not desk.monitor.ledger.tally


def test_messages_of_another_form_on_the_wire_are_counted(desk: Desk) -> None:
    desk.say(A, b"one", b"two")
    desk.say(A, b"", b"", b"")
    desk.beat(B)
    assert desk.monitor.bad_messages == 2
    assert desk.monitor.hearts == {B}


def test_handle_pong_books_by_hand(desk: Desk) -> None:
    desk.monitor.handle_pong([A, desk.ping])
    assert desk.monitor.responses == {A}
    desk.beat()
    assert desk.monitor.hearts == {A}


def test_nothing_is_logged_per_message(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    for n in range(100):
        desk.say(A, b"junk %d" % n)
        desk.say(A, b"more", b"junk")
    desk.beat(A)
    assert caplog.records == []


def test_flood_of_junk_does_not_keep_a_beat_from_happening(desk: Desk) -> None:
    for _ in range(3000):
        desk.say(A, b"junk")
    before = desk.ping
    assert desk.beat() != before
    assert 0 < desk.monitor.ledger.tally[Pong.STALE] < 3000


# -- handlers


def test_handlers_are_called_in_order_of_registration(desk: Desk) -> None:
    calls: list[int] = []
    for n in range(5):
        desk.monitor.add_new_heart_handler(lambda _heart, n=n: calls.append(n))
    desk.beat(A)
    assert calls == [0, 1, 2, 3, 4]


def test_handler_added_twice_is_called_once(desk: Desk) -> None:
    calls: list[bytes] = []
    desk.monitor.add_new_heart_handler(calls.append)
    desk.monitor.add_new_heart_handler(calls.append)
    desk.beat(A)
    assert calls == [A]


def test_removed_handler_is_not_called(desk: Desk) -> None:
    calls: list[bytes] = []
    monitor = desk.monitor
    for add, remove in [
        (monitor.add_new_heart_handler, monitor.remove_new_heart_handler),
        (monitor.add_heart_failure_handler, monitor.remove_heart_failure_handler),
        (monitor.add_heart_return_handler, monitor.remove_heart_return_handler),
    ]:
        add(calls.append)
        remove(calls.append)
        remove(calls.append)
    desk.beat(A)
    for _ in range(5):
        desk.beat()
    desk.beat(A)
    assert calls == []


def test_handler_may_remove_itself_and_add_others_while_it_runs(desk: Desk) -> None:
    calls: list[str] = []

    def once(_heart: bytes) -> None:
        calls.append("once")
        desk.monitor.remove_new_heart_handler(once)
        desk.monitor.add_new_heart_handler(lambda _heart: calls.append("later"))

    desk.monitor.add_new_heart_handler(once)
    desk.beat(A)
    assert calls == ["once"]
    desk.beat(A, B)
    assert calls == ["once", "later"]


def test_handler_that_raises_does_not_silence_the_next(desk: Desk) -> None:
    calls: list[bytes] = []
    desk.monitor.add_new_heart_handler(failing)
    desk.monitor.add_new_heart_handler(calls.append)
    desk.beat(A)
    assert calls == [A]
    assert desk.monitor.hearts == {A}


def test_what_a_handler_raised_can_be_taken_once(desk: Desk) -> None:
    desk.monitor.add_new_heart_handler(failing)
    desk.beat(A)
    (error,) = desk.monitor.take_handler_errors()
    assert (error.handler, error.heart, str(error.exception)) == (failing, A, "no luck with b'heart-a'")
    assert error.exception.__traceback__ is not None
    assert desk.monitor.take_handler_errors() == []


def test_test_outcome_raised_by_a_handler_is_kept_like_any_exception(desk: Desk) -> None:
    desk.monitor.add_new_heart_handler(lambda _heart: pytest.fail("as expected"))
    desk.beat(A)
    assert [str(error.exception) for error in desk.monitor.take_handler_errors()] == ["as expected"]


def test_errors_of_all_handlers_come_in_the_order_they_happened(desk: Desk) -> None:
    desk.monitor.add_new_heart_handler(failing)
    desk.monitor.add_heart_failure_handler(failing)
    desk.beat(A)
    for _ in range(3):
        desk.beat(B)
    assert [type(error) for error in desk.monitor.take_handler_errors()] == [HandlerError] * 3


def test_event_is_written_when_the_handlers_are_done(desk: Desk) -> None:
    seen: list[list[str]] = []
    desk.monitor.add_new_heart_handler(lambda heart: seen.append(desk.kinds(heart)))
    desk.beat(A)
    assert seen == [[]]
    assert desk.kinds(A) == ["new heart"]


def test_handlers_can_be_changed_from_other_threads_while_hearts_come_and_go(desk: Desk) -> None:
    enough = threading.Event()
    calls: list[bytes] = []

    def change() -> None:
        while not enough.is_set():
            desk.monitor.add_new_heart_handler(calls.append)
            desk.monitor.remove_new_heart_handler(calls.append)

    threads = [threading.Thread(target=change) for _ in range(3)]
    for thread in threads:
        thread.start()
    for n in range(200):
        desk.beat(b"heart-%d" % n)
    enough.set()
    for thread in threads:
        thread.join()
    assert desk.monitor.take_handler_errors() == []
    assert len(calls) == len(set(calls))


# -- verdicts by hand


def test_failing_a_heart_by_hand_tells_the_handlers_once(desk: Desk) -> None:
    failed: list[bytes] = []
    desk.monitor.add_heart_failure_handler(failed.append)
    desk.beat(A)
    desk.monitor.handle_heart_failure(A)
    desk.monitor.handle_heart_failure(A)
    for _ in range(5):
        desk.beat()
    assert failed == [A]
    assert desk.kinds(A) == ["new heart", "failed"]


def test_failing_an_unknown_heart_by_hand_does_nothing(desk: Desk) -> None:
    failed: list[bytes] = []
    desk.monitor.add_heart_failure_handler(failed.append)
    desk.monitor.handle_heart_failure(A)
    assert failed == []


def test_new_heart_by_hand_is_watched_and_fails_when_it_never_answers(desk: Desk) -> None:
    told: list[bytes] = []
    desk.monitor.add_new_heart_handler(told.append)
    desk.monitor.handle_new_heart(A)
    assert desk.monitor.hearts == {A}
    for _ in range(3):
        desk.beat()
    assert told == [A]
    assert desk.events.since()[-1].detail == "it never answered"


# -- the loop


def test_monitor_beats_by_itself_and_stops_when_told(desk: Desk) -> None:
    beats = 0
    real = desk.monitor.beat

    def counting() -> None:
        nonlocal beats
        beats += 1
        real()
        desk.now += 0.1
        if beats == 3:
            desk.monitor.stop()
            desk.loop.stop()

    desk.monitor.beat = counting
    desk.loop.start()
    assert beats == 3
    desk.loop.add_callback(desk.loop.stop)
    desk.loop.start()
    assert beats == 3


def test_beat_that_raises_is_followed_by_the_next(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    beats = 0

    def bad() -> None:
        nonlocal beats
        beats += 1
        if beats == 2:
            desk.loop.stop()
        raise ValueError("a bad beat")

    desk.monitor.beat = bad
    desk.monitor.period = 0.01
    desk.loop.start()
    assert beats == 2
    assert "a bad beat" in caplog.text


def test_start_and_stop_may_be_called_twice(desk: Desk) -> None:
    desk.monitor.start()
    desk.monitor.stop()
    desk.monitor.stop()
    assert not desk.pongstream.receiving()


def test_stop_after_the_streams_were_closed_is_no_error(desk: Desk) -> None:
    desk.pongstream.close(linger=0)
    desk.monitor.stop()


def test_loop_is_the_current_one_by_default() -> None:
    found: list[bool] = []
    loop = IOLoop(make_current=False)

    def look() -> None:
        found.append(HeartMonitor().loop is IOLoop.current())
        loop.stop()

    loop.add_callback(look)
    loop.start()
    loop.close()
    assert found == [True]


# -- who is heard


def test_muted_heart_fails_and_returns_when_it_is_heard_again(desk: Desk) -> None:
    desk.say(A, desk.ping)
    desk.beat()
    desk.monitor.mute(A)
    for _ in range(3):
        desk.say(A, desk.ping)
        desk.beat()
    assert desk.monitor.failure_of(A) is not None
    desk.monitor.unmute(A)
    desk.say(A, desk.ping)
    desk.beat()
    assert desk.monitor.hearts == {A}
    told = [event.kind for event in desk.events.since() if event.heart == A]
    assert told == ["new heart", "muted", "missed", "missed", "missed", "failed", "unmuted", "returned"]


def test_heart_is_watched_when_it_is_allowed_and_not_before() -> None:
    desk = Desk(allowed=[])
    try:
        desk.say(A, desk.ping)
        desk.beat()
        assert desk.monitor.hearts == set()
        desk.monitor.allow(A)
        assert desk.monitor.hearts == {A}
    finally:
        desk.close()
