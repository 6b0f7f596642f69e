"""A sleeper wakes when what it watches happens, and not before."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import psutil
import pytest

from pytest_ipcluster.cluster.wakeup import Wakeup

LONG = 30.0


def sleeps_until(wakeup: Wakeup, event) -> bool:
    """Tell whether the sleeper woke up because of the event, long before its time was up."""
    timer = threading.Timer(0.05, event)
    timer.start()
    begun = time.monotonic()
    while not event.happened and time.monotonic() - begun < LONG:
        wakeup.wait(LONG)
    timer.join()
    return time.monotonic() - begun < LONG


class Event:
    def __init__(self, action) -> None:
        self.happened = False
        self._action = action

    def __call__(self) -> None:
        self.happened = True
        self._action()


def test_the_end_of_a_process_wakes():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with Wakeup() as wakeup:
        assert wakeup.watch_process(psutil.Process(child.pid))
        assert sleeps_until(wakeup, Event(child.kill))
    child.communicate()


def test_watching_an_ended_process_says_so():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = psutil.Process(child.pid)
    child.communicate(b"\n")
    with Wakeup() as wakeup:
        assert not wakeup.watch_process(process)


def test_a_line_in_an_open_file_wakes(tmp_path):
    with (tmp_path / "log").open("w") as log, Wakeup() as wakeup:
        wakeup.watch_file(tmp_path / "log")
        assert sleeps_until(wakeup, Event(lambda: print("a line", file=log, flush=True)))


def test_a_new_file_wakes(tmp_path):
    with Wakeup() as wakeup:
        wakeup.watch_folder(tmp_path)
        assert sleeps_until(wakeup, Event((tmp_path / "new").touch))


def test_a_file_that_is_written_again_wakes(tmp_path):
    (tmp_path / "old").write_text("before")
    with Wakeup() as wakeup:
        wakeup.watch_folder(tmp_path)
        assert sleeps_until(wakeup, Event(lambda: (tmp_path / "old").write_text("after")))


def test_a_readable_descriptor_wakes():
    reader, writer = os.pipe()
    with Wakeup() as wakeup:
        wakeup.watch_fd(reader)
        wakeup.watch_fd(reader)
        assert sleeps_until(wakeup, Event(lambda: os.write(writer, b"x")))
    os.close(reader)
    os.close(writer)


def test_time_is_up_when_nothing_happens(tmp_path):
    with Wakeup() as wakeup:
        wakeup.watch_folder(tmp_path)
        begun = time.monotonic()
        wakeup.wait(0.05)
        assert time.monotonic() - begun >= 0.045


@pytest.mark.parametrize("timeout", [0.0, -1.0])
def test_no_time_is_no_sleep(timeout):
    with Wakeup() as wakeup:
        wakeup.wait(timeout)


def test_a_system_without_help_from_the_kernel_is_looked_at_in_turns(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    monkeypatch.setattr(sys, "platform", "elsewhere")
    with Wakeup() as wakeup:
        wakeup.watch_folder(tmp_path)
        assert wakeup.watch_process(psutil.Process())
        assert sleeps_until(wakeup, Event((tmp_path / "new").touch))


def test_all_descriptors_are_closed_in_the_end(tmp_path):
    before = psutil.Process().num_fds()
    wakeup = Wakeup()
    wakeup.watch_folder(tmp_path)
    wakeup.watch_process(psutil.Process())
    wakeup.close()
    wakeup.close()
    assert psutil.Process().num_fds() == before


def test_a_descriptor_that_is_ignored_wakes_nobody_and_can_be_watched_again():
    reading, writing = os.pipe()
    os.write(writing, b"x")
    with Wakeup() as wakeup:
        wakeup.watch_fd(reading)
        wakeup.ignore_fd(reading)
        begun = time.monotonic()
        wakeup.wait(0.05)
        assert time.monotonic() - begun >= 0.05
        wakeup.watch_fd(reading)
        wakeup.wait(LONG)
        assert time.monotonic() - begun < LONG
    os.close(reading)
    os.close(writing)
