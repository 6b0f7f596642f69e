"""What any process on the same machine can send to the monitor's sockets, and that it changes no verdict."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from pytest_ipcluster.hearts.process import MonitorProcess
from pytest_ipcluster.hearts.verdicts import Beat
from pytest_ipcluster.report.events import Event

if sys.platform == "win32":
    pytest.skip("a monitor in a process of its own needs a posix system", allow_module_level=True)

import resource

from attacker import ATTACKS, Attacker
from waiting import MISSES, until

A, B, C = b"heart-a", b"heart-b", b"heart-c"
SOON = 60.0
PERIOD = 0.2
#: Periods by which a verdict may be later on a machine that has much else to do.
MARGIN = 15
MEGABYTE = 2**20
#: What libzmq itself needs for every connection that stands open, and gives back with it.
CONNECTION = 0.032 * MEGABYTE
OPEN = {"forged_hearts": 800}

StartEngine = Callable[[MonitorProcess, bytes], "subprocess.Popen[str]"]


class Fortress:
    """A monitor in a process of its own, with two hearts, and whatever can be seen of it."""

    def __init__(self, monitor: MonitorProcess, start_engine: StartEngine) -> None:
        self.monitor = monitor
        self.start_engine = start_engine
        self.beats: list[tuple[float, Beat]] = []
        self.process = psutil.Process(monitor.process.pid)
        adopt = monitor.monitor.ledger.adopt

        def recording(beat: Beat) -> Beat:
            self.beats.append((monitor.monitor.tic, beat))
            return adopt(beat)

        monitor.monitor.ledger.adopt = recording
        self.engines = {heart: start_engine(monitor, heart) for heart in (A, B)}
        for heart in self.engines:
            monitor.wait_for_heart(heart, SOON)
        self.wait_for_beats(5)
        self.memory = self.process.memory_info().rss

    def wait_for_beats(self, count: int) -> None:
        goal, arrived, deadline = len(self.beats) + count, threading.Event(), time.monotonic() + SOON
        while len(self.beats) < goal:
            assert time.monotonic() < deadline, "no more beats"
            arrived.wait(PERIOD / 10)

    def wait_for(self, kind: str, heart: bytes) -> Event:
        log = self.monitor.events
        event = log.wait_for(lambda event: event.kind == kind and event.heart == heart, SOON)
        assert event is not None, f"no {kind!r} of {heart!r}: {log.since()}"
        return event

    def kill(self, heart: bytes) -> tuple[float, float]:
        """Return two moments between which it died: the verdict may well be there before the second."""
        before = time.monotonic()
        self.engines[heart].kill()
        self.engines[heart].wait()
        return before, time.monotonic()

    def growth(self) -> int:
        """Return by how many bytes the monitor's process is larger than before the attack."""
        return self.process.memory_info().rss - self.memory


@pytest.fixture
def start(ending: ExitStack, start_engine: StartEngine) -> Callable[..., Fortress]:
    def start(**kwargs: object) -> Fortress:
        monitor = MonitorProcess(period=1000 * PERIOD, misses=MISSES, allowed=[A, B, C], **kwargs)
        ending.callback(monitor.stop)
        monitor.start()
        return Fortress(monitor, start_engine)

    return start


@contextmanager
def attack(fortress: Fortress, name: str, *identities: bytes) -> Iterator[Callable[[], None]]:
    """Attack for as long as the block runs; what is given waits until the attack has been carried out once."""
    urls = [fortress.monitor.ping_url, fortress.monitor.pong_url]
    command = [
        sys.executable,
        str(Path(__file__).with_name("attacker.py")),
        name,
        *urls,
        *map(bytes.decode, identities),
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def wait() -> None:
            assert process.stdout.readline() == "ready\n"

        try:
            yield wait
        finally:
            process.kill()


def check(fortress: Fortress, death: tuple[float, float], told: str, connections: int = 0) -> None:
    """The death is told once and in time, nobody else is failed, and little was written and kept."""
    verdict = fortress.wait_for("failed", A)
    before, died = death
    judged = [(tic, beat) for tic, beat in fortress.beats if tic > before]
    (number,) = [index for index, (_, beat) in enumerate(judged) if beat.failed]
    assert sum(tic > died and not beat.stalled for tic, beat in judged[: number + 1]) <= MISSES + 2
    assert verdict.time - died <= (MISSES + 2 + MARGIN) * PERIOD
    events = fortress.monitor.events.since()
    assert [event.heart for event in events if event.kind == "failed"] == [A]
    assert [event.heart for event in events if event.kind == "returned"] == []
    assert {event.heart for event in events} <= {A, B, C, None}
    assert fortress.monitor.monitor.hearts == {B, C}
    assert sum(event.kind != "stalled" for event in events) < 150  # a full machine may stall us at each beat
    assert len(told) < 1000, told
    assert fortress.growth() <= 10 * MEGABYTE + connections * CONNECTION


def sleeps(pid: int) -> bool:
    """Tell whether all threads of a process wait for something, and so have dealt with all that has come in.

    The main thread is asked last: others wake it.
    """
    threads = sorted(Path(f"/proc/{pid}/task").iterdir(), key=lambda thread: -int(thread.name))
    return all((thread / "stat").read_text().rpartition(") ")[2].startswith("S") for thread in threads)


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_changes_no_verdict(
    name: str, start: Callable[..., Fortress], capfd: pytest.CaptureFixture[str]
) -> None:
    fortress = start()
    if name == "idle_connections":  # those are for a monitor that may not open many files
        resource.prlimit(fortress.process.pid, resource.RLIMIT_NOFILE, (200, 200))
    if name == "false_lengths":
        most = fortress.process.memory_info().vms + 1024 * MEGABYTE
        resource.prlimit(fortress.process.pid, resource.RLIMIT_AS, (most, most))
    with attack(fortress, name) as carried_out:
        if name == "many_megabytes":  # what comes while it can't listen has to stay outside
            os.kill(fortress.process.pid, signal.SIGSTOP)
            carried_out()
            os.kill(fortress.process.pid, signal.SIGCONT)
        else:
            carried_out()
        fortress.wait_for_beats(3)
        death = fortress.kill(A)
        fortress.wait_for("failed", A)
        fortress.engines[C] = fortress.start_engine(fortress.monitor, C)
        fortress.monitor.wait_for_heart(C, SOON)
        fortress.wait_for_beats(3)
        check(fortress, death, "".join(capfd.readouterr()), OPEN.get(name, 0))


def test_listeners_that_come_and_go_between_two_pings_leave_nothing(ending: ExitStack) -> None:
    monitor = MonitorProcess(period=600_000)
    ending.callback(monitor.stop)
    monitor.start()
    process, attacker = psutil.Process(monitor.process.pid), Attacker(monitor.ping_url, monitor.pong_url)
    ending.callback(attacker.context.destroy, linger=0)
    before = process.memory_info().rss
    for _ in range(30):
        for _ in range(50):
            attacker.introduced(attacker.ping, b"SUB").close()
        until(lambda: sleeps(process.pid))  # a full machine may leave it no turn, and then it can let go of nobody
    assert process.memory_info().rss - before <= 10 * MEGABYTE


def test_dead_heart_whose_name_is_taken_does_not_come_back_silently(start: Callable[..., Fortress]) -> None:
    fortress: Fortress
    fortress = start(gone=lambda heart: fortress.engines[heart].poll() is not None)
    mark = len(fortress.monitor.events)
    with attack(fortress, "dead_identity", A) as carried_out:  # the name is taken, which helps nobody
        carried_out()
        fortress.wait_for_beats(3)
        fortress.kill(A)
        fortress.wait_for("failed", A)
    with attack(fortress, "dead_identity", A):
        fortress.wait_for("returned", A)
    told = [event.kind for event in fortress.monitor.events.since(mark) if event.heart == A]
    assert told.index("failed") < told.index("returned")
    assert "new heart" not in told


def test_million_hostile_frames_change_no_verdict(
    start: Callable[..., Fortress], capfd: pytest.CaptureFixture[str]
) -> None:
    fortress = start()
    ledger = fortress.monitor.monitor.ledger
    with attack(fortress, "flood"), attack(fortress, "names_of_others"), attack(fortress, "random_frames"):
        deadline = time.monotonic() + 2 * SOON
        while sum(ledger.tally.values()) + fortress.monitor.monitor.bad_messages < 1_000_000:
            assert time.monotonic() < deadline, ledger.tally
            fortress.wait_for_beats(1)
        assert fortress.monitor.monitor.hearts == {A, B}
        death = fortress.kill(A)
        fortress.wait_for("failed", A)
        fortress.engines[C] = fortress.start_engine(fortress.monitor, C)
        fortress.monitor.wait_for_heart(C, SOON)
        check(fortress, death, "".join(capfd.readouterr()))
