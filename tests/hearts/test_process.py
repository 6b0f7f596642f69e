"""The monitor in a process of its own: what the thread does, and no more of it than a test can see."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
import zmq
from waiting import MISSES, until

from pytest_ipcluster.hearts.heart import Heart
from pytest_ipcluster.hearts.process import MonitorProcess
from pytest_ipcluster.hearts.verdicts import Pong
from pytest_ipcluster.report.events import Event

A, B = b"heart-a", b"heart-b"
NAME = "ipcluster-heart-monitor"
SOON = 30.0

StartHeart = Callable[[MonitorProcess, bytes], Heart]
StartEngine = Callable[[MonitorProcess, bytes], "subprocess.Popen[str]"]
Start = Callable[..., MonitorProcess]


@pytest.fixture
def start(ending: ExitStack) -> Start:
    def start(**kwargs: object) -> MonitorProcess:
        monitor = MonitorProcess(**{"period": 50.0, "misses": MISSES, **kwargs})
        ending.callback(monitor.stop)
        monitor.start()
        return monitor

    return start


def wait_for(monitor: MonitorProcess, kind: str, heart: bytes | None = None, since: int = 0) -> Event:
    log = monitor.events
    event = log.wait_for(lambda event: event.kind == kind and event.heart == heart, SOON, since=since)
    assert event is not None, f"no {kind!r} of {heart!r} among {log.since()}"
    return event


def beats_from_now(monitor: MonitorProcess, count: int) -> None:
    """Wait for so many beats."""
    for _ in range(count):
        next_beat(monitor, monitor.monitor.tic)


def next_beat(monitor: MonitorProcess, before: float) -> None:
    """Wait until the last beat is another one than that of this time."""
    until(lambda: monitor.monitor.tic != before)


def kinds(monitor: MonitorProcess, since: int = 0, heart: bytes = A) -> list[str]:
    return [event.kind for event in monitor.events.since(since) if event.heart == heart]


# -- the process


def test_the_monitor_is_another_process_and_its_handlers_are_called_here(start: Start, start_heart: StartHeart) -> None:
    monitor, told = start(), []
    monitor.monitor.add_new_heart_handler(lambda heart: told.append((heart, threading.current_thread().name)))
    assert monitor.process is not None
    assert monitor.process.pid != os.getpid()
    start_heart(monitor, A)
    wait_for(monitor, "new heart", A)
    assert told == [(A, NAME)]
    assert monitor.monitor.hearts == {A}


def test_nothing_of_it_is_left(start: Start, folder: Path) -> None:
    monitor = start(ping=f"ipc://{folder}/ping", pong=f"ipc://{folder}/pong")
    assert {path.name for path in folder.iterdir()} == {"ping", "pong"}
    monitor.stop()
    monitor.stop()
    assert monitor.process is not None
    assert monitor.process.returncode == 0
    assert list(folder.iterdir()) == []


def test_a_killed_process_leaves_no_socket_files(start: Start, folder: Path) -> None:
    monitor = start(ping=f"ipc://{folder}/ping", pong=f"ipc://{folder}/pong")
    monitor.process.kill()
    wait_for(monitor, "monitor lost")
    monitor.stop()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("address", ["nonsense", "ipc:///no/such/folder/ping"])
def test_an_address_that_cannot_be_bound_is_raised_by_start(address: str) -> None:
    monitor = MonitorProcess(ping=address)
    with pytest.raises(zmq.ZMQError):
        monitor.start()
    assert monitor.process.returncode == 0


def test_hearts_are_allowed_and_muted_there_as_here(start: Start, start_engine: StartEngine) -> None:
    monitor = start(allowed=[A])
    start_engine(monitor, B)
    start_engine(monitor, A)
    monitor.wait_for_heart(A)
    while not monitor.monitor.ledger.tally[Pong.STRANGER]:
        beats_from_now(monitor, 1)
    assert {event.heart for event in monitor.events.since() if event.kind != "stalled"} == {A}
    monitor.call(monitor.monitor.allow, B)
    monitor.wait_for_heart(B)
    mark = len(monitor.events)
    monitor.call(monitor.monitor.mute, B)
    wait_for(monitor, "failed", B, since=mark)
    assert monitor.monitor.failure_of(B).misses == MISSES
    while not monitor.monitor.ledger.tally[Pong.MUTED]:
        beats_from_now(monitor, 1)
    monitor.call(monitor.monitor.unmute, B)
    wait_for(monitor, "returned", B, since=mark)
    # It may have missed a beat before it was muted.
    assert [kind for kind in kinds(monitor, mark, B) if kind != "missed"] == ["muted", "failed", "unmuted", "returned"]


def test_muted_heart_whose_process_dies_is_failed_by_its_broken_connection(
    start: Start, start_engine: StartEngine
) -> None:
    engines = {}
    monitor = start(gone=lambda heart: engines[heart].poll() is not None, misses=1_000_000)
    engines[A] = start_engine(monitor, A)
    monitor.wait_for_heart(A)
    monitor.call(monitor.monitor.mute, A)
    engines[A].kill()
    assert wait_for(monitor, "failed", A).detail.startswith("its connection broke and its process is gone")


def test_it_can_ask_nobody_whom_to_accept() -> None:
    with pytest.raises(TypeError, match="accept"):
        MonitorProcess(accept=bool)


def test_it_beats_there_and_not_here(start: Start) -> None:
    monitor = start()
    with pytest.raises(RuntimeError, match="a process of its own"):
        monitor.call(monitor.monitor.beat)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_signals_that_are_meant_for_pytest_do_not_end_it(start: Start, signum: int) -> None:
    monitor = start()
    os.kill(monitor.process.pid, signum)
    beats_from_now(monitor, 3)
    assert monitor.process.poll() is None


def test_it_ends_when_the_one_who_has_started_it_is_killed() -> None:
    program = """
from pytest_ipcluster.hearts.process import MonitorProcess
from pytest_ipcluster.hearts.verdicts import Pong
monitor = MonitorProcess()
monitor.start()
print(monitor.process.pid, flush=True)
monitor.wait_for_heart(b"never", 600)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as owner:
        watcher = psutil.Process(int(owner.stdout.readline()))
        owner.kill()
        watcher.wait(SOON)


def test_its_unasked_end_fails_the_test_and_nobody_is_watched(start: Start, start_heart: StartHeart) -> None:
    monitor = start()
    start_heart(monitor, A)
    monitor.wait_for_heart(A)
    monitor.process.kill()
    wait_for(monitor, "monitor lost")
    assert monitor.monitor.hearts == set()
    with pytest.raises(ChildProcessError, match="the process of the heart monitor has ended"):
        monitor.monitor.raise_handler_errors()


# -- verdicts


def test_a_silent_heart_is_failed_once_and_may_come_back(start: Start, start_engine: StartEngine) -> None:
    monitor, told = start(), []
    for kind in ("new_heart", "heart_failure", "heart_return"):
        getattr(monitor.monitor, f"add_{kind}_handler")(lambda _heart, kind=kind: told.append(kind))
    engine = start_engine(monitor, A)
    monitor.wait_for_heart(A)
    engine.send_signal(signal.SIGSTOP)
    failed = wait_for(monitor, "failed", A)
    assert "last pong" in failed.detail
    assert monitor.monitor.hearts == monitor.monitor.on_probation == set()
    assert monitor.monitor.failure_of(A).misses == MISSES
    missed = [event.detail for event in monitor.events.since() if event.kind == "missed"]
    assert missed[-MISSES:] == [f"{number} of {MISSES}" for number in range(1, MISSES + 1)]
    engine.send_signal(signal.SIGCONT)
    wait_for(monitor, "returned", A)
    assert told == ["new_heart", "heart_failure", "heart_return", "new_heart"]
    assert monitor.monitor.hearts == {A}


def test_a_killed_heart_is_noticed_between_two_beats(start: Start, start_engine: StartEngine) -> None:
    engines = {}
    monitor = start(gone=lambda heart: engines[heart].poll() is not None)
    engines[A] = start_engine(monitor, A)
    monitor.wait_for_heart(A)
    beats_from_now(monitor, 2)
    before = monitor.monitor.tic
    monitor.call(setattr, monitor.monitor, "period", 600_000.0)
    next_beat(monitor, before)
    engines[A].kill()
    failed = wait_for(monitor, "failed", A)
    assert failed.detail.startswith("its connection broke and its process is gone, last pong ")
    assert monitor.monitor.failure_of(A).last_pong is not None


def test_a_verdict_from_here_is_one_there(start: Start, start_heart: StartHeart) -> None:
    monitor, failed = start(), []
    monitor.monitor.add_heart_failure_handler(failed.append)
    start_heart(monitor, A)
    monitor.wait_for_heart(A)
    mark = len(monitor.events)
    monitor.call(monitor.monitor.handle_heart_failure, A)
    assert failed == [A]
    wait_for(monitor, "returned", A, since=mark)  # it answers pings from after its failure
    assert failed == [A]


def test_a_forgotten_heart_is_not_heard_of_until_it_is_admitted(start: Start, start_heart: StartHeart) -> None:
    monitor = start()
    start_heart(monitor, A)
    monitor.wait_for_heart(A)
    mark = len(monitor.events)
    monitor.call(monitor.monitor.forget, A)
    beats_from_now(monitor, 5)
    assert [kind for kind in kinds(monitor, mark) if kind != "missed"] == ["forgotten"]
    assert monitor.monitor.hearts == set()
    monitor.call(monitor.monitor.handle_new_heart, A)
    beats_from_now(monitor, 5)
    assert monitor.monitor.hearts == {A}
    assert "failed" not in {event.kind for event in monitor.events.since(mark)}


def test_settings_hold_there_as_well(start: Start, start_engine: StartEngine) -> None:
    monitor = start()
    engine = start_engine(monitor, A)
    monitor.wait_for_heart(A)
    monitor.call(setattr, monitor.monitor, "misses", 5)
    beats_from_now(monitor, 2)
    engine.send_signal(signal.SIGSTOP)
    wait_for(monitor, "failed", A)
    assert monitor.monitor.failure_of(A).misses == 5


PING_COUNTER = """
import mmap, sys, zmq
pings = zmq.Context().socket(zmq.SUB)
pings.subscribe(b"")
pings.connect(sys.argv[1])
with open(sys.argv[2], "r+b") as file, mmap.mmap(file.fileno(), 1) as count:
    while pings.poll(60_000):
        pings.recv()
        count[0] = (count[0] + 1) % 256
"""


@pytest.fixture
def count_pings(ending: ExitStack, tmp_path: Path) -> Callable[[MonitorProcess], mmap.mmap]:
    """Return a function that has another process count pings, modulo 256, in a byte of memory that is shared.

    To look at it lets no other thread run.
    """

    def count(monitor: MonitorProcess) -> mmap.mmap:
        path = tmp_path / "count"
        path.write_bytes(b"\0")
        with path.open("r+b") as file:
            number = ending.enter_context(mmap.mmap(file.fileno(), 1))
        counter = ending.enter_context(
            subprocess.Popen([sys.executable, "-c", PING_COUNTER, monitor.ping_url, str(path)])
        )
        ending.callback(counter.kill)
        until(lambda: number[0])
        return number

    return count


def compute_until(reached: Callable[[], bool]) -> None:
    """Keep the interpreter from all other threads until something is so, for not too long."""
    deadline = time.monotonic() + SOON
    before = sys.getswitchinterval()
    sys.setswitchinterval(2 * SOON)
    try:
        while not reached() and time.monotonic() < deadline:
            pass
    finally:
        sys.setswitchinterval(before)


def test_it_beats_while_a_thread_here_keeps_the_interpreter(
    start: Start, start_heart: StartHeart, count_pings: Callable[[MonitorProcess], mmap.mmap]
) -> None:
    monitor = start()
    for number in range(8):
        start_heart(monitor, b"%d" % number)
        monitor.wait_for_heart(b"%d" % number)
    pings = count_pings(monitor)
    before = pings[0]
    compute_until(lambda: (pings[0] - before) % 256 >= 20)
    assert (pings[0] - before) % 256 >= 20  # a thread would have sent one or two
    beats_from_now(monitor, 1)
    assert not [event for event in monitor.events.since() if event.kind == "failed"]
