"""What tasks leave behind in an engine's process and no code can undo."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
from waiting import SOON, until

from pytest_ipcluster import Heart
from pytest_ipcluster.cluster import remains as remains_module
from pytest_ipcluster.cluster.remains import Remains


@pytest.fixture
def remains():
    return Remains()


@pytest.fixture
def over():
    """An event that ends the threads of a test."""
    over = threading.Event()
    yield over
    over.set()


def test_nothing_is_nothing(remains):
    assert remains.complaints() == []


def test_a_thread_that_was_there_before_is_no_remainder(over):
    threading.Thread(target=over.wait, daemon=True).start()
    assert Remains().complaints() == []


def test_a_thread_that_runs_is_told_by_its_name(remains, over):
    threading.Thread(target=over.wait, name="noisy", daemon=True).start()
    assert remains.complaints() == ["a thread that a test started still runs there: 'noisy'"]


def test_a_thread_below_threading_is_told(remains, over):
    import _thread

    started = threading.Event()
    _thread.start_new_thread(lambda: (started.set(), over.wait()), ())
    assert started.wait(10)
    assert remains.complaints() == ["a thread that a test started still runs there: '(no name)'"]


def test_a_thread_that_is_just_ending_gets_the_time_though_the_machine_stands_still(remains, over, monkeypatch):
    class Ending(threading.Thread):
        times = 0

        def join(self, timeout: float | None = None) -> None:
            self.times += 1
            if self.times == 3:
                over.set()
                timeout = SOON
            super().join(timeout)

    monkeypatch.setattr(remains_module, "time", SimpleNamespace(monotonic=count(step=3600.0).__next__))
    Ending(target=over.wait).start()
    assert remains.complaints() == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists the children of each thread")
def test_a_thread_that_ends_while_the_children_are_read_does_no_harm(over, monkeypatch):
    ending = threading.Thread(target=over.wait)
    ending.start()
    remains = Remains()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    before = os.listdir

    def listed_and_gone(folder):
        names = before(folder)
        over.set()
        until(lambda: not Path(f"/proc/self/task/{ending.native_id}").exists())
        return names

    monkeypatch.setattr(os, "listdir", listed_and_gone)
    try:
        assert remains.complaints() == [f"a process that a test started there still runs: pid {child.pid}"]
        assert over.is_set()
    finally:
        child.communicate(b"\n", timeout=10)


def test_a_heart_that_was_stopped_is_told():
    heart = Heart("inproc://ping", "inproc://pong", heart_id="engine")
    heart.start()
    remains = Remains()
    assert remains.complaints() == []
    heart.stop()
    assert remains.complaints() == ["a test stopped its heart"]


def test_a_pool_may_wait_for_work_but_not_work(remains, over):
    started = threading.Event()
    with ThreadPoolExecutor(2, thread_name_prefix="pool") as pool:
        assert pool.submit(os.getpid).result(10) == os.getpid()
        idle = remains.complaints()
        pool.submit(lambda: (started.set(), over.wait()))
        assert started.wait(10)
        working = remains.complaints()
        over.set()
    assert idle == []
    assert len(working) == 1
    assert "pool" in working[0]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process's children")
class TestProcesses:
    @pytest.fixture
    def child(self):
        with subprocess.Popen(["sleep", "600"]) as child:
            yield child
            child.kill()

    def test_a_process_that_runs_is_told_by_its_pid(self, remains, child):
        assert remains.complaints() == [f"a process that a test started there still runs: pid {child.pid}"]

    def test_a_process_that_was_there_before_is_no_remainder(self, child):  # noqa: ARG002
        assert Remains().complaints() == []

    def test_a_process_that_has_ended_is_no_remainder(self, remains, child):
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert remains.complaints() == []


def spoiled(code: str) -> list[str]:
    """Spoil the standard files of a process of its own, and return its complaints."""
    script = f"""
import io, os, sys
from pytest_ipcluster.cluster.remains import Remains
tell = os.fdopen(os.dup(1), "w")
remains = Remains()
{code}
tell.write("\\n".join(remains.complaints()))
tell.flush()
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("os.close(1)", "a test closed or redirected its file descriptor 1"),
        ("os.dup2(os.open(os.devnull, os.O_WRONLY), 2)", "a test closed or redirected its file descriptor 2"),
        ("sys.stdout = io.StringIO(); sys.stdout.close()", "a test closed its stdout"),
    ],
)
def test_standard_files_that_were_closed_or_bent_are_told(code, complaint):
    assert spoiled(code) == [complaint]
