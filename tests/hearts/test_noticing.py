"""Deaths that are noticed because a connection broke, while the next beat is far away: only that sense can tell."""

from __future__ import annotations

import os
import select
import signal
import socket as sockets
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from waiting import MISSES, SOON, until

from pytest_ipcluster.cluster.processes import find, is_alive
from pytest_ipcluster.hearts.heart import Heart
from pytest_ipcluster.hearts.keys import MonitorKeys
from pytest_ipcluster.hearts.thread import MonitorThread
from pytest_ipcluster.report.events import Event

A, B = b"heart-a", b"heart-b"
#: Milliseconds between two beats, once the hearts are known; longer than any of these tests.
NEVER = 600_000.0

Processes = dict[bytes, "subprocess.Popen[str]"]


class Watch:
    """A monitor that knows the processes of some hearts, and stops beating when told."""

    def __init__(self, start_monitor: Callable[..., MonitorThread], **kwargs: object) -> None:
        self.processes: Processes = {}
        self.asked: list[bytes] = []
        self.failed: list[bytes] = []
        self.thread = start_monitor(gone=self.is_gone, **kwargs)
        self.monitor, self.events = self.thread.monitor, self.thread.events
        self.monitor.add_heart_failure_handler(self.failed.append)

    def is_gone(self, heart: bytes) -> bool | None:
        self.asked.append(heart)
        process = self.processes.get(heart)
        if process is None:
            return None
        found = find(process.pid)
        return found is None or not is_alive(found)

    def stop_beating(self) -> None:
        """Beat once more, and then not again in the lifetime of this test."""

        def slow_down() -> float:
            self.monitor.period = NEVER
            return self.monitor.lifetime

        before = self.thread.call(slow_down)
        until(lambda: self.thread.call(lambda: self.monitor.lifetime) != before)

    def wait_for_answer(self, heart: bytes) -> None:
        """Wait until this heart has answered since the last beat: a beat that is made by hand may come too soon."""
        until(lambda: self.thread.call(lambda: heart in self.monitor.responses))

    def last_pong(self, heart: bytes) -> float | None:
        return self.thread.call(self.monitor.ledger.last_pong, heart)

    def wait_for(self, kind: str, heart: bytes, since: int = 0) -> Event:
        event = self.events.wait_for(lambda event: event.kind == kind and event.heart == heart, SOON, since=since)
        assert event is not None, f"no {kind!r} of {heart!r} among {self.events.since()}"
        return event

    def kinds(self, heart: bytes, since: int = 0) -> list[str]:
        return [event.kind for event in self.events.since(since) if event.heart == heart]


@pytest.fixture(params=["ipc", "tcp"])
def addresses(request: pytest.FixtureRequest, folder: Path) -> dict[str, str]:
    return {name: f"ipc://{folder}/{name}" for name in ("ping", "pong")} if request.param == "ipc" else {}


@pytest.fixture
def watch(start_monitor: Callable[..., MonitorThread], addresses: dict[str, str]) -> Watch:
    return Watch(start_monitor, **addresses)


@pytest.fixture
def begin(start_engine: Callable[..., subprocess.Popen[str]]) -> Callable[..., subprocess.Popen[str]]:
    """Return a function that starts an engine whose heart and process the watch knows."""

    def begin(watch: Watch, heart: bytes) -> subprocess.Popen[str]:
        watch.processes[heart] = start_engine(watch.thread, heart)
        watch.thread.wait_for_heart(heart)
        return watch.processes[heart]

    return begin


def assert_missed_all_and_suspected_once(kinds: list[str]) -> None:
    """A process may have starved for a beat before it dies, and take longer than one to close its connections."""
    assert kinds[-1] == "failed"
    assert kinds.count("suspected") == 1
    assert kinds.count("missed") == len(kinds) - 2 >= MISSES


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM], ids=lambda signum: signum.name)
def test_death_is_noticed_before_the_next_beat_and_told_once(watch: Watch, begin, signum: int) -> None:
    engine, other = begin(watch, A), begin(watch, B)
    watch.stop_beating()
    mark = len(watch.events)
    engine.send_signal(signum)
    event = watch.wait_for("failed", A, since=mark)
    assert event.detail.startswith("its connection broke and its process is gone, last pong ")
    assert other.poll() is None
    watch.wait_for_answer(B)
    watch.thread.call(watch.monitor.beat)
    assert watch.failed == [A]
    assert watch.kinds(A, mark) == ["failed"] or watch.kinds(A, mark) == ["suspected", "failed"]
    assert watch.kinds(B, mark) == []


def test_verdict_by_a_broken_connection_is_a_failure_like_any_other(watch: Watch, begin) -> None:
    engine = begin(watch, A)
    watch.stop_beating()
    watch.wait_for_answer(A)
    watch.thread.call(watch.monitor.beat)  # one at which nothing is missed: the last may have been late
    engine.kill()
    verdict_at = watch.wait_for("failed", A).time
    failure = watch.monitor.failure_of(A)
    assert failure.verdict_at == verdict_at
    assert failure.last_pong <= failure.verdict_at
    assert failure.misses == 0
    assert A in watch.monitor.ledger.tombstones


def test_many_deaths_at_once_are_each_told_once(watch: Watch, begin) -> None:
    hearts = [b"heart-%d" % number for number in range(8)]
    engines = [begin(watch, heart) for heart in hearts]
    watch.stop_beating()
    for engine in engines:
        engine.kill()
    for heart in hearts:
        watch.wait_for("failed", heart)
    assert sorted(watch.failed) == hearts


def test_process_that_takes_its_time_to_end_is_noticed_too(watch: Watch, begin) -> None:
    engine, answers = begin(watch, A), iter([False] * 4)
    real = watch.monitor._gone
    watch.monitor._gone = lambda heart: next(answers, None) is None and real(heart)
    watch.stop_beating()
    mark = len(watch.events)
    engine.kill()
    watch.wait_for("failed", A, since=mark)
    assert next(answers, None) is None
    assert watch.kinds(A, mark) == ["suspected", "failed"]
    assert watch.failed == [A]


def test_killed_while_paused_is_noticed(watch: Watch, begin) -> None:
    engine = begin(watch, A)
    watch.stop_beating()
    engine.send_signal(signal.SIGSTOP)
    engine.kill()
    watch.wait_for("failed", A)


def test_death_after_the_verdict_by_missed_beats_is_no_second_one(watch: Watch, begin) -> None:
    engine = begin(watch, A)
    engine.send_signal(signal.SIGSTOP)
    watch.wait_for("failed", A)
    begin(watch, B)
    watch.stop_beating()
    engine.kill()
    engine.wait()
    watch.processes[B].kill()
    watch.wait_for("failed", B)  # whose connection broke later
    assert watch.failed == [A, B]


def test_heart_of_a_new_process_under_an_old_id_is_watched_like_any_other(watch: Watch, begin) -> None:
    begin(watch, A).kill()
    watch.wait_for("failed", A)
    mark = len(watch.events)
    engine = begin(watch, A)
    watch.stop_beating()
    engine.kill()
    watch.wait_for("failed", A, since=mark)
    assert watch.failed == [A, A]


def test_forgotten_heart_dies_without_a_word(watch: Watch, begin) -> None:
    engine, other = begin(watch, A), begin(watch, B)
    watch.stop_beating()
    watch.thread.call(watch.monitor.forget, A)
    mark = len(watch.events)
    engine.kill()
    engine.wait()
    other.kill()
    watch.wait_for("failed", B)
    assert watch.kinds(A, mark) == []
    assert A not in watch.asked


def test_heart_that_stops_in_a_living_process_is_failed_by_its_missed_beats(
    watch: Watch, start_heart: Callable[..., Heart], begin
) -> None:
    heart = start_heart(watch.thread, A)
    watch.thread.wait_for_heart(A)
    watch.processes[A] = begin(watch, B)  # any process that lives
    watch.wait_for_answer(A)
    mark = len(watch.events)
    heart.stop()
    watch.wait_for("failed", A, since=mark)
    assert_missed_all_and_suspected_once(watch.kinds(A, mark))


def test_nobody_is_failed_by_a_broken_connection_alone(
    watch: Watch, start_engine: Callable[..., subprocess.Popen[str]]
) -> None:
    engine = start_engine(watch.thread, A)  # a process that nobody knows
    watch.thread.wait_for_heart(A)
    watch.wait_for_answer(A)
    mark = len(watch.events)
    engine.kill()
    watch.wait_for("failed", A, since=mark)
    assert_missed_all_and_suspected_once(watch.kinds(A, mark))


def test_question_that_raises_is_told_and_missed_beats_decide(watch: Watch, begin) -> None:
    engine = begin(watch, A)
    watch.monitor._gone = lambda _heart: 1 / 0
    watch.wait_for_answer(A)
    mark = len(watch.events)
    engine.kill()
    watch.wait_for("failed", A, since=mark)
    assert_missed_all_and_suspected_once(watch.kinds(A, mark))
    with pytest.raises(ZeroDivisionError):
        watch.monitor.raise_handler_errors()


def test_handlers_of_a_death_noticed_at_once_run_in_order_on_the_monitors_thread(watch: Watch, begin) -> None:
    engine, told = begin(watch, A), []
    for number in range(3):
        watch.monitor.add_heart_failure_handler(
            lambda _heart, number=number: told.append((number, threading.current_thread().name))
        )
    watch.stop_beating()
    engine.kill()
    watch.wait_for("failed", A)
    assert told == [(number, "ipcluster-heart-monitor") for number in range(3)]


# -- networks


class Proxy:
    """A way to a TCP address that can be cut; what connects afterwards comes through again.

    Its target learns of a cut when who was cut off comes again. What it asks then is not answered into the old
    connection, where the answer would be lost.
    """

    def __init__(self, target: str) -> None:
        host, port = target.removeprefix("tcp://").split(":")
        self._target = (host, int(port))
        self._listener = sockets.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._lanes: dict[sockets.socket, sockets.socket] = {}
        self._near: set[sockets.socket] = set()
        self._severed: list[sockets.socket] = []
        self._changing = threading.Lock()
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            with self._changing:
                ends = list(self._lanes)
            ready, _, _ = select.select([self._listener, self._stop, *ends], [], [], 0.01)
            if self._stop in ready:
                return
            with self._changing:
                self._serve(ready)

    def _serve(self, ready: list[object]) -> None:
        for end in ready:
            if end is self._listener:
                self._connect(self._listener.accept()[0])
            elif end in self._lanes:
                data = end.recv(65536)
                if data:
                    self._lanes[end].sendall(data)
                else:
                    self._close(end)

    def _connect(self, near: sockets.socket) -> None:
        while self._severed:
            self._severed.pop().close()
        far = sockets.create_connection(self._target)
        self._lanes.update({near: far, far: near})
        self._near.add(near)

    def _close(self, end: sockets.socket) -> None:
        other = self._part(end)
        end.close()
        other.close()

    def _part(self, end: sockets.socket) -> sockets.socket:
        """Let nothing pass between this end and the other any more, and return that."""
        other = self._lanes.pop(end)
        del self._lanes[other]
        self._near -= {end, other}
        return other

    def cut(self) -> None:
        with self._changing:
            assert self._near, "nobody has come this way"
            for near in list(self._near):
                near.shutdown(sockets.SHUT_RDWR)  # it is closed where nobody selects among what is open
                self._severed += [near, self._part(near)]

    def close(self) -> None:
        os.write(self._stopped, b"x")
        self._thread.join()
        with self._changing:
            while self._lanes:
                self._close(next(iter(self._lanes)))
            for end in self._severed:
                end.close()
        self._listener.close()
        os.close(self._stop)
        os.close(self._stopped)


@pytest.fixture
def by_proxy(start_monitor, start_engine, ending, folder: Path) -> Iterator[tuple[Watch, Proxy]]:
    """A monitor, and a heart whose pongs take a way that can be cut. More misses than it takes to connect again.

    With keys, as the plugin has them wherever there is a network.
    """
    keys = MonitorKeys.generate()
    keys.hearts.write(folder / "keys")
    watch = Watch(start_monitor, misses=100, keys=keys)
    proxy = Proxy(watch.thread.pong_url)
    ending.callback(proxy.close)
    real, watch.thread.pong_url = watch.thread.pong_url, proxy.address
    watch.processes[A] = start_engine(watch.thread, A, key_file=folder / "keys")
    watch.thread.pong_url = real
    watch.thread.wait_for_heart(A)
    return watch, proxy


def test_connection_that_is_cut_and_comes_back_is_no_death(by_proxy: tuple[Watch, Proxy]) -> None:
    watch, proxy = by_proxy
    proxy.cut()
    watch.wait_for("suspected", A)
    heard = watch.last_pong(A)
    until(lambda: watch.last_pong(A) != heard)
    assert watch.failed == []
    assert "failed" not in watch.kinds(A)


def test_suspect_is_asked_out_of_turn_and_its_answer_is_heard(by_proxy: tuple[Watch, Proxy]) -> None:
    watch, proxy = by_proxy
    watch.stop_beating()
    watch.wait_for_answer(A)
    heard = watch.last_pong(A)
    proxy.cut()
    watch.wait_for("suspected", A)
    until(lambda: watch.last_pong(A) != heard)
    assert watch.failed == []


def test_death_after_a_connection_came_back_is_noticed_at_once(by_proxy: tuple[Watch, Proxy]) -> None:
    watch, proxy = by_proxy
    watch.stop_beating()
    watch.wait_for_answer(A)
    heard = watch.last_pong(A)
    proxy.cut()
    until(lambda: watch.last_pong(A) != heard)
    watch.processes[A].kill()
    watch.wait_for("failed", A)
    assert watch.failed == [A]


# -- a heart that comes back before the monitor knows that it was gone


@pytest.fixture
def twice(request: pytest.FixtureRequest, start_monitor, start_engine, folder: Path) -> Watch:
    """A monitor that has failed a heart whose connection stands, and the same heart by a connection of its own."""
    addresses = {name: f"ipc://{folder}/{name}" for name in ("ping", "pong")} if request.param == "ipc" else {}
    key_file, keys = None, None
    if request.param == "keys":
        key_file, keys = folder / "keys", MonitorKeys.generate()
        keys.hearts.write(key_file)
    watch = Watch(start_monitor, keys=keys, **addresses)
    first = start_engine(watch.thread, A, key_file=key_file)
    watch.thread.wait_for_heart(A)
    first.send_signal(signal.SIGSTOP)
    watch.wait_for("failed", A)
    start_engine(watch.thread, A, key_file=key_file)
    return watch


@pytest.mark.parametrize("twice", ["ipc", "keys"], indirect=True)
def test_newer_connection_of_a_heart_counts_where_strangers_are_kept_out(twice: Watch) -> None:
    twice.wait_for("returned", A)


@pytest.mark.parametrize("twice", ["neither"], indirect=True)
def test_older_connection_of_a_heart_counts_where_anybody_may_connect(twice: Watch, start_engine) -> None:
    start_engine(twice.thread, B)
    twice.thread.wait_for_heart(B)
    began = twice.thread.call(lambda: twice.monitor.lifetime)
    until(lambda: twice.thread.call(lambda: twice.monitor.lifetime) > began + 1)  # twenty beats
    assert "returned" not in twice.kinds(A)
