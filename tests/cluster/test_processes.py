"""A process is a pid plus its start time; ours are found by descent and by mark, and end when told to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace

import psutil
import pytest
from waiting import until

from pytest_ipcluster.cluster import processes, warden
from pytest_ipcluster.cluster.processes import MARK

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
# A process that ignores SIGTERM and has a child in a session of its own.
FAMILY = [
    sys.executable,
    "-c",
    "import signal, subprocess, sys, time;"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    f"subprocess.Popen({SLEEP!r}, start_new_session=True).stdout;"
    "time.sleep(60)",
]


@pytest.fixture
def start() -> Iterator[object]:
    started: list[subprocess.Popen[bytes]] = []

    def start(command: list[str] = SLEEP, mark: str = "") -> psutil.Process:
        environment = {**os.environ, MARK: mark} if mark else None
        child = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        started.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        return psutil.Process(child.pid)

    yield start
    for child in started:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


def test_a_pid_that_nobody_has_is_found_as_none():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert processes.find(child.pid) is None


def test_a_zombie_is_not_alive(start):
    process = start()
    os.kill(process.pid, signal.SIGKILL)
    processes.wait_gone([process], 10)
    assert psutil.pid_exists(process.pid)  # nobody has reaped it
    assert not processes.is_alive(process)


@pytest.mark.parametrize("is_alive", [processes.is_alive, warden._lives])
def test_a_process_that_its_parent_is_just_reaping_is_not_alive(start, monkeypatch, is_alive):
    process = start()
    assert is_alive(process)
    monkeypatch.setattr(process, "status", lambda: psutil.STATUS_DEAD)  # for microseconds, so not to be had on purpose
    assert not is_alive(process)


def test_a_stopped_process_is_alive_and_paused(start):
    process = start()
    processes.send_signal(process, signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)
    assert processes.is_alive(process)
    assert processes.is_paused(process)


@pytest.mark.parametrize("who", ["init", "ourselves"])
def test_signals_to_init_and_to_ourselves_are_refused(who):
    pid = 1 if who == "init" else os.getpid()
    with pytest.raises(ValueError, match=f"refusing .* pid {pid}"):
        processes.send_signal(psutil.Process(pid), signal.SIGCONT)


def test_a_signal_to_an_ended_process_is_reported_as_not_sent(start):
    process = start()
    processes.send_signal(process, signal.SIGKILL)
    os.waitpid(process.pid, 0)
    assert processes.send_signal(process, signal.SIGTERM) is False


def test_waiting_returns_those_that_are_still_alive(start):
    ended, alive = start(), start()
    processes.send_signal(ended, signal.SIGKILL)
    assert processes.wait_gone([ended], 30) == set()
    assert processes.wait_gone([ended, alive], 0.2) == {alive}


def test_waiting_works_where_the_kernel_has_no_pidfd(start, monkeypatch):
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    process = start()
    processes.send_signal(process, signal.SIGKILL)
    assert processes.wait_gone([process], 10) == set()


def test_a_mark_is_compared_whole(start):
    exact, longer = start(mark="ab"), start(mark="abc")
    found = processes.marked("ab")
    assert exact in found
    assert longer not in found


def test_a_mark_that_we_carry_ourselves_does_not_make_us_a_target():
    mark = f"own {os.getpid()}"
    code = "import sys; from pytest_ipcluster.cluster.processes import marked; print(len(marked(sys.argv[1])))"
    ran = subprocess.run(
        [sys.executable, "-c", code, mark], env={**os.environ, MARK: mark}, capture_output=True, check=True
    )
    assert ran.stdout == b"0\n"


def test_a_whole_family_is_killed_however_its_members_were_started(start):
    parent = start(FAMILY, mark=f"family {os.getpid()}")
    child = next(iter(processes.descendants(parent)))
    left = processes.kill_until_gone(lambda: processes.marked(f"family {os.getpid()}"), 10)
    assert left == set()
    assert not processes.is_alive(parent)
    assert not processes.is_alive(child)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux shows a process before its environment")
@pytest.mark.parametrize("environment", [processes.environment, warden._environment], ids=["ours", "the warden's"])
def test_a_process_that_is_just_being_started_shows_its_environment(environment):
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # parent and child take turns, so that the parent often looks too early
    try:
        for _ in range(100):
            child = subprocess.Popen(SLEEP, stdout=subprocess.DEVNULL, env={**os.environ, MARK: "early"})
            found = environment(psutil.Process(child.pid))
            child.kill()
            child.wait()
            assert found.get(MARK) == "early"
    finally:
        os.sched_setaffinity(0, cores)


@pytest.mark.parametrize("environment", [processes.environment, warden._environment], ids=["ours", "the warden's"])
def test_a_process_without_an_environment_is_not_waited_for(environment, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waits"))
    with subprocess.Popen(["sleep", "60"], env={}) as child:
        while not psutil.Process(child.pid).cmdline():
            continue
        assert environment(psutil.Process(child.pid)) == {}
        child.kill()


def test_a_process_that_has_ended_shows_nothing(start):
    process = start(mark="gone")
    processes.send_signal(process, signal.SIGKILL)
    processes.wait_gone([process], 10)
    assert processes.environment(process) == {}


def test_an_orphan_is_found_by_its_mark(start):
    parent = start(FAMILY, mark=f"orphan {os.getpid()}")
    child = next(iter(processes.descendants(parent)))
    processes.send_signal(parent, signal.SIGKILL)
    os.waitpid(parent.pid, 0)
    assert processes.marked(f"orphan {os.getpid()}") == {child}
    processes.kill_until_gone(lambda: processes.marked(f"orphan {os.getpid()}"), 10)
    assert not processes.is_alive(child)


@pytest.mark.parametrize("system", ["linux", "another"])
def test_pulse_tells_whether_a_process_runs_is_paused_or_dead(start, monkeypatch, system):
    if system != "linux":
        monkeypatch.setattr(sys, "platform", system)
    process = start()
    pulse = processes.Pulse(process)
    assert pulse.state() == "running"
    process.suspend()
    until(lambda: pulse.state() == "paused")
    process.resume()
    until(lambda: pulse.state() == "running")
    process.kill()
    until(lambda: pulse.state() == "dead")  # nobody has reaped it


def test_pulse_of_a_process_whose_pid_somebody_else_has_now_is_dead(start, monkeypatch):
    process = start()
    pulse = processes.Pulse(process)
    letter, begun = processes._stat(f"/proc/{process.pid}/stat")
    monkeypatch.setattr(processes, "_stat", lambda _: (letter, str(int(begun) + 1)))
    assert pulse.state() == "dead"


@pytest.mark.parametrize("threads", [[], ["no-such-thread"]], ids=["no lists of threads", "no lists of children"])
def test_children_are_found_where_the_kernel_has_no_lists_of_them(start, monkeypatch, threads):
    child = start()
    monkeypatch.setattr(processes, "os", SimpleNamespace(**{**vars(os), "listdir": lambda _path: threads}))
    assert child in processes.children(psutil.Process())


def test_children_of_a_process_that_has_ended_are_none(start):
    ended = start()
    processes.send_signal(ended, signal.SIGKILL)
    os.waitpid(ended.pid, 0)
    assert processes.children(ended) == []
