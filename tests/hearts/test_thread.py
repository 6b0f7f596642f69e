from __future__ import annotations

import ctypes
import os
import signal
import socket as sockets
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import zmq
from waiting import MISSES, until

from pytest_ipcluster.hearts import thread as thread_module
from pytest_ipcluster.hearts.heart import Heart
from pytest_ipcluster.hearts.ledger import Beat, Pong
from pytest_ipcluster.hearts.thread import MonitorThread
from pytest_ipcluster.report.events import Event, EventLog

NAME = "ipcluster-heart-monitor"
A, B = b"heart-a", b"heart-b"

Start = Callable[..., MonitorThread]
StartHeart = Callable[[MonitorThread, bytes], Heart]
OTHERS: set[int | None] = set()
StartEngine = Callable[[MonitorThread, bytes], "subprocess.Popen[str]"]


@pytest.fixture(scope="module", autouse=True)
def others() -> set[int | None]:
    """Remember the monitor threads that are not of this file: that of the session's cluster, if there is one."""
    OTHERS.update(thread.ident for thread in threading.enumerate() if thread.name == NAME)
    return OTHERS


def monitor_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == NAME and thread.ident not in OTHERS]


def wait_for(log: EventLog, kind: str, heart: bytes | None = None, since: int = 0) -> Event:
    event = log.wait_for(lambda event: event.kind == kind and event.heart == heart, 30.0, since=since)
    assert event is not None, f"no {kind!r} of {heart!r} among {log.since()}"
    return event


def kinds(log: EventLog, heart: bytes, since: int = 0) -> list[str]:
    return [event.kind for event in log.since(since) if event.heart == heart]


def wait_for_answer(thread: MonitorThread, heart: bytes) -> None:
    """Wait until this heart has answered since the last beat: then it has missed none."""
    until(lambda: thread.call(lambda: heart in thread.monitor.responses))


def record_beats(thread: MonitorThread) -> list[tuple[float, Beat]]:
    """Keep every beat of a running monitor with the time it was judged at."""
    beats: list[tuple[float, Beat]] = []
    real = thread.monitor.ledger.beat

    def recording(now: float) -> Beat:
        beat = real(now)
        beats.append((now, beat))
        return beat

    thread.monitor.ledger.beat = recording
    return beats


# -- start and stop


def test_started_monitor_listens_on_the_addresses_it_tells(start_monitor: Start) -> None:
    thread = start_monitor()
    for url in (thread.ping_url, thread.pong_url):
        host, port = url.removeprefix("tcp://").split(":")
        assert host == "127.0.0.1"
        sockets.create_connection((host, int(port)), timeout=10).close()


def test_monitor_runs_on_a_named_daemon(start_monitor: Start) -> None:
    thread = start_monitor()
    current = thread.call(threading.current_thread)
    assert current.name == NAME
    assert current.daemon
    assert current is not threading.main_thread()


def test_monitor_listens_on_ipc_in_a_folder(start_monitor: Start, start_heart: StartHeart, folder: Path) -> None:
    thread = start_monitor(ping=f"ipc://{folder}/ping", pong=f"ipc://{folder}/pong")
    start_heart(thread, A)
    thread.wait_for_heart(A)
    thread.stop()
    assert list(folder.iterdir()) == []


def test_address_in_use_is_raised_by_start_and_leaves_no_thread(start_monitor: Start) -> None:
    taken = start_monitor(name="first").pong_url
    second = MonitorThread(pong=taken)
    with pytest.raises(zmq.ZMQError, match="in use"):
        second.start()
    assert monitor_threads() == []
    second.stop()


@pytest.mark.parametrize("address", ["nonsense", "ipc:///no/such/folder/ping", "tcp://127.0.0.1:http"])
def test_address_that_cannot_be_bound_is_raised_by_start(address: str) -> None:
    with pytest.raises(zmq.ZMQError):
        MonitorThread(ping=address).start()


def test_senseless_setting_is_raised_by_start() -> None:
    with pytest.raises(Exception, match="period"):
        MonitorThread(period=-1.0).start()
    assert monitor_threads() == []


def test_start_that_takes_too_long_says_what_it_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, real = threading.Event(), thread_module.bind

    def slow(*args: object) -> tuple[zmq.Socket[bytes], str]:
        go_on.wait(30)
        return real(*args)

    monkeypatch.setattr(thread_module, "bind", slow)
    thread = MonitorThread()
    with pytest.raises(TimeoutError, match=r"did not listen on tcp://127\.0\.0\.1:\* .* within 0.01 s"):
        thread.start(timeout=0.01)
    go_on.set()
    thread.stop()
    assert monitor_threads() == []


def test_monitor_cannot_be_started_twice(start_monitor: Start) -> None:
    thread = start_monitor()
    with pytest.raises(RuntimeError):
        thread.start()


def test_stop_may_be_called_twice_and_before_the_start() -> None:
    thread = MonitorThread()
    thread.stop()
    thread = MonitorThread()
    thread.start()
    thread.stop()
    thread.stop()
    assert monitor_threads() == []


def test_monitor_stopped_before_its_start_ends_at_once() -> None:
    thread = MonitorThread()
    thread.stop()
    thread.start()
    thread.stop()
    assert monitor_threads() == []


def test_waits_for_a_handler_that_hangs_say_so(start_monitor: Start) -> None:
    thread, go_on, entered = start_monitor(), threading.Event(), threading.Event()

    def hang(_heart: bytes) -> None:
        entered.set()
        go_on.wait(30)

    thread.monitor.add_new_heart_handler(hang)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(thread.call, thread.monitor.handle_new_heart, A)
        assert entered.wait(30)
        with pytest.raises(TimeoutError, match=r"gave no result of .*divmod.* within 0\.01 s"):
            thread.call(divmod, 7, 3, timeout=0.01)
        with pytest.raises(TimeoutError, match=r"still ran after 0\.01 s: a handler that hangs"):
            thread.stop(timeout=0.01)
        go_on.set()
    thread.stop()
    assert monitor_threads() == []


def test_handler_may_stop_the_monitor(start_monitor: Start) -> None:
    thread = start_monitor()
    thread.monitor.add_new_heart_handler(lambda _heart: thread.stop())
    thread.call(thread.monitor.handle_new_heart, A)
    thread.stop()
    assert monitor_threads() == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")
def test_stopped_monitor_leaves_no_thread_and_no_descriptor() -> None:
    def run_once() -> None:
        thread = MonitorThread(period=10)
        thread.start()
        heart = Heart(thread.ping_url, thread.pong_url, heart_id=A)
        heart.start()
        thread.wait_for_heart(A)
        thread.stop()
        heart.stop()

    run_once()
    before = sorted(os.listdir("/proc/self/fd"))
    threads = threading.enumerate()
    for _ in range(5):
        run_once()
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert threading.enumerate() == threads


def test_monitors_can_be_started_and_stopped_many_times_at_once() -> None:
    def run(_n: int) -> None:
        thread = MonitorThread(period=1)
        thread.start()
        thread.stop()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(40)))
    assert monitor_threads() == []


def test_there_is_no_monitor_before_the_start() -> None:
    with pytest.raises(RuntimeError, match=r"start\(\) it first"):
        _ = MonitorThread().monitor


# -- calls


def test_call_returns_the_result(start_monitor: Start) -> None:
    assert start_monitor().call(divmod, 7, 3) == (2, 1)


def test_call_raises_what_the_function_raises(start_monitor: Start) -> None:
    thread = start_monitor()
    with pytest.raises(ZeroDivisionError):
        thread.call(divmod, 7, 0)


def test_timeout_raised_by_the_function_is_passed_on_as_it_is(start_monitor: Start) -> None:
    def slow() -> None:
        raise TimeoutError("my own")

    with pytest.raises(TimeoutError, match="my own"):
        start_monitor().call(slow)


def test_call_from_the_monitors_own_thread_runs_at_once(start_monitor: Start) -> None:
    thread = start_monitor()
    assert thread.call(lambda: thread.call(divmod, 7, 3)) == (2, 1)


@pytest.mark.parametrize("started", [False, True])
def test_call_without_a_running_monitor_is_refused(started: bool) -> None:
    thread = MonitorThread()
    if started:
        thread.start()
        thread.stop()
    with pytest.raises(RuntimeError, match="does not run"):
        thread.call(divmod, 7, 3)


def test_call_that_the_end_overtakes_is_told(start_monitor: Start) -> None:
    thread, go_on, entered = start_monitor(), threading.Event(), threading.Event()

    def end() -> None:
        thread._loop.stop()
        entered.set()
        go_on.wait(30)

    with ThreadPoolExecutor(2) as pool:
        pool.submit(thread.call, end)
        assert entered.wait(30)
        overtaken = pool.submit(thread.call, divmod, 7, 3)
        until(lambda: thread._calls or overtaken.done())
        go_on.set()
        with pytest.raises(RuntimeError, match="ended before it could run"):
            overtaken.result(30)


# -- hearts


def test_waiting_for_a_heart_ends_when_it_is_watched(start_monitor: Start, start_heart: StartHeart) -> None:
    thread = start_monitor()
    start_heart(thread, A)
    thread.wait_for_heart(A)
    assert A in thread.monitor.hearts
    thread.wait_for_heart(A, timeout=0)


def test_waiting_in_vain_tells_which_hearts_there_are(start_monitor: Start, start_heart: StartHeart) -> None:
    thread = start_monitor()
    start_heart(thread, A)
    thread.wait_for_heart(A)
    with pytest.raises(TimeoutError, match=r"no heart b'heart-b' within 0.01 s; hearts that beat: b'heart-a'"):
        thread.wait_for_heart(B, timeout=0.01)


def test_handlers_run_on_the_monitors_thread(start_monitor: Start, start_heart: StartHeart) -> None:
    thread, names = start_monitor(), []
    thread.monitor.add_new_heart_handler(lambda _heart: names.append(threading.current_thread().name))
    start_heart(thread, A)
    wait_for(thread.events, "new heart", A)
    assert names == [NAME]


def test_hundred_hearts_are_all_found_once(start_monitor: Start, start_heart: StartHeart) -> None:
    # More misses than usual: it is the finding that is tested, and a hundred threads start here at the same time.
    thread = start_monitor(misses=5 * MISSES)
    hearts = [b"heart-%d" % n for n in range(100)]
    for heart in hearts:
        start_heart(thread, heart)
    for heart in hearts:
        wait_for(thread.events, "new heart", heart)  # it is watched some moments before that is told
    assert sorted(event.heart for event in thread.events.since() if event.kind == "new heart") == sorted(hearts)


def test_killed_process_is_failed_once_within_one_more_beat_than_misses(
    start_monitor: Start, start_engine: StartEngine
) -> None:
    thread, failed = start_monitor(), []
    thread.monitor.add_heart_failure_handler(failed.append)
    engine = start_engine(thread, A)
    thread.wait_for_heart(A)
    beats = record_beats(thread)
    wait_for_answer(thread, A)
    mark = len(thread.events)
    before = time.monotonic()
    engine.kill()
    engine.wait()
    died = time.monotonic()  # by then the verdict may be there
    wait_for(thread.events, "failed", A, since=mark)
    thread.stop()
    judged = [(now, beat) for now, beat in beats if now > before]
    (verdict,) = [index for index, (_, beat) in enumerate(judged) if beat.failed]
    assert sum(now > died and not beat.stalled for now, beat in judged[: verdict + 1]) <= thread.monitor.misses + 1
    assert failed == [A]
    told = kinds(thread.events, A, mark)
    assert told[-1] == "failed"
    assert told.count("suspected") == 1  # it may be long in closing its connection
    assert told.count("missed") == len(told) - 2 >= MISSES  # it may have starved for a beat before


def test_paused_process_is_failed_once_then_returned_once(start_monitor: Start, start_engine: StartEngine) -> None:
    thread, told = start_monitor(), []
    thread.monitor.add_heart_failure_handler(lambda _heart: told.append("failed"))
    thread.monitor.add_heart_return_handler(lambda _heart: told.append("returned"))
    engine = start_engine(thread, A)
    thread.wait_for_heart(A)
    engine.send_signal(signal.SIGSTOP)
    wait_for(thread.events, "failed", A)
    paused = len(thread.events)
    engine.send_signal(signal.SIGCONT)
    wait_for(thread.events, "returned", A, since=paused)
    assert told == ["failed", "returned"]
    assert "new heart" not in kinds(thread.events, A, paused)


def test_paused_process_that_is_killed_after_its_return_is_failed_a_second_time(
    start_monitor: Start, start_engine: StartEngine
) -> None:
    thread = start_monitor()
    engine = start_engine(thread, A)
    thread.wait_for_heart(A)
    engine.send_signal(signal.SIGSTOP)
    wait_for(thread.events, "failed", A)
    first, mark = thread.monitor.failure_of(A), len(thread.events)
    engine.send_signal(signal.SIGCONT)
    wait_for(thread.events, "returned", A, since=mark)
    mark = len(thread.events)
    engine.kill()
    wait_for(thread.events, "failed", A, since=mark)
    assert thread.monitor.failure_of(A) != first


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="calls usleep(3) with the interpreter locked")
def test_stall_of_our_own_process_fails_nobody(start_monitor: Start, start_engine: StartEngine) -> None:
    thread = start_monitor()
    start_engine(thread, A)
    thread.wait_for_heart(A)
    mark = len(thread.events)
    # Not a wait for something: these are the stall, twenty periods long, in which no Python thread can run.
    for _ in range(3):
        thread.call(ctypes.PyDLL(None).usleep, 990_000)
        stalled = wait_for(thread.events, "stalled", since=mark)
        mark = thread.events.since().index(stalled) + 1
    assert "failed" not in kinds(thread.events, A)


def test_death_of_a_heart_that_was_connected_long_before_it_answered_is_noticed_by_its_connection(
    start_monitor: Start,
) -> None:
    """One lost packet holds up a connection, to the pings for instance, by a second or more."""
    thread = start_monitor(gone=lambda _heart: True, misses=1_000_000)
    beats = record_beats(thread)
    with zmq.Context() as context, context.socket(zmq.SUB) as ear, context.socket(zmq.DEALER) as voice:
        voice.linger, voice.identity = 0, A
        voice.connect(thread.pong_url)
        until(lambda: thread.call(lambda: thread.monitor._connections.wanted))
        connected = len(beats)
        until(lambda: len(beats) > connected + 20)
        ear.subscribe(b"")
        ear.connect(thread.ping_url)
        voice.send(ear.recv())
        thread.wait_for_heart(A)
    assert wait_for(thread.events, "failed", A).detail.startswith("its connection broke and its process is gone")


def test_flood_of_strangers_hides_no_death(start_monitor: Start, start_engine: StartEngine) -> None:
    thread = start_monitor()
    engine = start_engine(thread, A)
    thread.wait_for_heart(A)
    enough = threading.Event()

    def shout() -> None:
        with zmq.Context() as context, context.socket(zmq.DEALER) as voice:
            voice.linger = 0
            voice.connect(thread.pong_url)
            while not enough.is_set():
                voice.send_multipart([b"token", b"more"])
                voice.send(b"made up")

    shouting = threading.Thread(target=shout)
    shouting.start()
    try:
        until(lambda: thread.monitor.bad_messages and thread.monitor.ledger.tally[Pong.STALE])
        engine.kill()
        wait_for(thread.events, "failed", A)
    finally:
        enough.set()
        shouting.join()


def test_message_that_is_too_long_never_arrives(start_monitor: Start, start_heart: StartHeart) -> None:
    thread = start_monitor(allowed=[A])
    with zmq.Context() as context, context.socket(zmq.DEALER) as voice:
        voice.linger = 0
        events = voice.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        voice.connect(thread.pong_url)
        voice.send(b"x" * 1_000_000)
        assert events.poll(30_000), "the monitor kept the connection"
        voice.disable_monitor()
        events.close(linger=0)
    start_heart(thread, A)
    thread.wait_for_heart(A)
    assert thread.call(lambda: thread.monitor.bad_messages + thread.monitor.ledger.tally[Pong.STRANGER]) == 0


def test_hearts_that_are_not_accepted_are_not_watched(start_monitor: Start, start_heart: StartHeart) -> None:
    thread = start_monitor(accept={A}.__contains__)
    start_heart(thread, B)
    start_heart(thread, A)
    thread.wait_for_heart(A)
    assert thread.monitor.hearts == {A}


def test_hearts_that_are_not_allowed_are_counted_and_not_told_of(start_monitor: Start, start_heart: StartHeart) -> None:
    thread = start_monitor(allowed=[A])
    start_heart(thread, B)
    start_heart(thread, A)
    thread.wait_for_heart(A)
    until(lambda: thread.monitor.ledger.tally[Pong.STRANGER])
    assert thread.monitor.hearts == {A}
    assert {event.heart for event in thread.events.since() if event.kind != "stalled"} == {A}


def test_heart_that_is_allowed_later_is_watched_at_once_if_it_has_answered(
    start_monitor: Start, start_heart: StartHeart
) -> None:
    thread = start_monitor(allowed=[])
    start_heart(thread, A)
    until(lambda: thread.monitor.ledger.tally[Pong.STRANGER])
    thread.call(setattr, thread.monitor, "period", 600_000.0)  # no beat is needed for it
    thread.call(thread.monitor.allow, A)
    assert kinds(thread.events, A) == ["new heart"]


def test_allowed_heart_that_was_failed_returns_and_is_not_new(start_monitor: Start, start_heart: StartHeart) -> None:
    thread = start_monitor(allowed=[A])
    start_heart(thread, A)
    thread.wait_for_heart(A)
    mark = len(thread.events)
    thread.call(thread.monitor.handle_heart_failure, A)
    wait_for(thread.events, "returned", A, since=mark)
    assert "new heart" not in kinds(thread.events, A, mark)


# -- the gate


def test_muted_heart_is_failed_though_its_process_lives_and_returns(
    start_monitor: Start, start_engine: StartEngine
) -> None:
    engines: dict[bytes, subprocess.Popen[str]] = {}
    thread, told = start_monitor(gone=lambda heart: engines[heart].poll() is not None), []
    for kind in ("heart_failure", "heart_return"):
        getattr(thread.monitor, f"add_{kind}_handler")(lambda heart, kind=kind: told.append((kind, heart)))

    def mute_if_it_has_answered() -> bool:
        if answered := A in thread.monitor.responses:
            thread.monitor.mute(A)
        return answered

    for heart in (A, B):
        engines[heart] = start_engine(thread, heart)
        thread.wait_for_heart(heart)
    mark = len(thread.events)
    until(lambda: thread.call(mute_if_it_has_answered))
    wait_for(thread.events, "failed", A, since=mark)
    happened = kinds(thread.events, A, mark)
    assert happened[happened.index("muted") :] == ["muted", *["missed"] * MISSES, "failed"]
    until(lambda: thread.monitor.ledger.tally[Pong.MUTED])
    assert engines[A].poll() is None
    mark = len(thread.events)
    thread.call(thread.monitor.unmute, A)
    wait_for(thread.events, "returned", A, since=mark)
    assert kinds(thread.events, A, mark) == ["unmuted", "returned"]
    assert told == [("heart_failure", A), ("heart_return", A)]
    assert thread.monitor.hearts == {A, B}


def test_muted_heart_whose_process_dies_is_failed_by_its_broken_connection(
    start_monitor: Start, start_engine: StartEngine
) -> None:
    engines: dict[bytes, subprocess.Popen[str]] = {}
    thread = start_monitor(gone=lambda heart: engines[heart].poll() is not None)
    engines[A] = start_engine(thread, A)
    thread.wait_for_heart(A)
    thread.call(setattr, thread.monitor, "misses", 1_000_000)
    thread.call(thread.monitor.mute, A)
    engines[A].kill()
    assert wait_for(thread.events, "failed", A).detail.startswith("its connection broke and its process is gone")


def test_monitor_has_few_sockets_and_a_subscription_may_be_short_only(start_monitor: Start) -> None:
    thread = start_monitor()
    context = thread.monitor.pongstream.socket.context
    assert context.get(zmq.MAX_SOCKETS) < 100
    for stream, longest in ((thread.monitor.pingstream, 64), (thread.monitor.pongstream, 256)):
        socket = stream.socket
        assert thread.call(socket.getsockopt, zmq.MAXMSGSIZE) == longest
        assert 0 < thread.call(socket.getsockopt, zmq.SNDHWM) <= 100
        assert 0 < thread.call(socket.getsockopt, zmq.RCVHWM) <= 100
        assert 0 < thread.call(socket.getsockopt, zmq.HANDSHAKE_IVL) <= 2000
