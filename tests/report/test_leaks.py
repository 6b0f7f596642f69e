"""What is left of threads, sockets and descriptors, told by the difference of two moments."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import zmq
from waiting import until

from pytest_ipcluster.report import leaks
from pytest_ipcluster.report.leaks import (
    Leak,
    Snapshot,
    leaks_in,
    log_files,
    open_pools,
    pipes_of,
    process_leak,
    settled,
    take_snapshot,
)

SOON = 10.0
NOTHING = Snapshot(frozenset(), Counter())


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def left_since(before: Snapshot) -> list[str]:
    return [str(leak) for leak in leaks_in(take_snapshot() - before)]


def running_thread(stack: ExitStack, name: str) -> tuple[threading.Thread, Callable[[], None]]:
    """Start a thread; return it with what ends it."""
    over = threading.Event()
    thread = threading.Thread(target=over.wait, name=name, daemon=True)
    thread.start()

    def end() -> None:
        over.set()
        thread.join(SOON)

    stack.callback(end)
    return thread, end


def unix_pair(stack: ExitStack, path: Path) -> tuple[socket.socket, socket.socket]:
    """Return the server's and the client's end of a connection at this path."""
    listener = stack.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(str(path))
    listener.listen()
    client = stack.enter_context(socket.socket(socket.AF_UNIX))
    client.connect(str(path))
    return stack.enter_context(listener.accept()[0]), client


class TestThreads:
    def test_one_that_runs_is_told_with_its_name_and_ident(self, stack):
        before = take_snapshot()
        thread, _ = running_thread(stack, "pump")
        assert left_since(before) == [f"thread 'pump' (ident {thread.ident})"]

    def test_one_of_somebodys_own_kind_is_told_with_it(self, stack):
        before = take_snapshot()
        timer = threading.Timer(600, print)
        stack.callback(timer.join, SOON)
        stack.callback(timer.cancel)
        timer.start()
        assert left_since(before) == [f"thread {timer.name!r} (ident {timer.ident}, threading.Timer)"]

    def test_one_that_has_ended_is_not_left(self, stack):
        before = take_snapshot()
        _, end = running_thread(stack, "pump")
        end()
        assert left_since(before) == []

    def test_one_that_was_there_before_is_not_left(self, stack):
        running_thread(stack, "pump")
        assert left_since(take_snapshot()) == []

    @pytest.mark.parametrize("name", ["pytest_timeout test_it.py::test_it", "tqdm_monitor", "Dummy-7"])
    def test_one_that_ends_when_its_owner_sees_fit_is_not_left(self, stack, name):
        before = take_snapshot()
        running_thread(stack, name)
        assert left_since(before) == []


class TestDescriptors:
    def test_a_socket_is_told_with_both_addresses(self, stack):
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        before = take_snapshot()
        client = stack.enter_context(socket.create_connection(listener.getsockname()))
        near, far = ("{}:{}".format(*end) for end in (client.getsockname(), client.getpeername()))
        assert left_since(before) == [f"socket {near} -> {far}"]

    def test_a_unix_socket_is_told_with_its_path(self, stack, tmp_path):
        before = take_snapshot()
        unix_pair(stack, tmp_path / "s")
        assert f"socket {tmp_path / 's'}" in left_since(before)

    def test_a_socket_without_an_address_is_told(self, stack):
        before = take_snapshot()
        stack.enter_context(socket.socket())
        assert left_since(before) == ["socket without an address"]

    def test_a_file_is_told_with_its_path(self, stack, tmp_path):
        before = take_snapshot()
        stack.enter_context((tmp_path / "log").open("w"))
        assert left_since(before) == [f"descriptor {tmp_path / 'log'}"]

    def test_nameless_ones_are_counted(self, stack):
        before = take_snapshot()
        for _ in range(3):
            stack.callback(os.close, os.eventfd(0))
        assert left_since(before) == ["descriptor anon_inode:[eventfd], 3 of them"]

    def test_another_file_under_the_same_number_is_left(self, stack, tmp_path):
        first = (tmp_path / "first").open("w")
        number, before = first.fileno(), take_snapshot()
        first.close()
        second = stack.enter_context((tmp_path / "second").open("w"))
        assert second.fileno() == number
        assert left_since(before) == [f"descriptor {tmp_path / 'second'}"]

    def test_where_the_system_does_not_tell_them_apart_they_are_counted_and_it_is_said(self, stack, monkeypatch):
        monkeypatch.setattr(leaks, "_FDS", "/nonexistent/{}")
        before = take_snapshot()
        stack.enter_context(socket.socket())
        assert left_since(before) == ["descriptor of a kind that this system does not tell"]

    def test_where_they_cannot_even_be_counted_none_is_left(self, stack, monkeypatch):
        monkeypatch.setattr(leaks, "_FDS", "/nonexistent/{}")
        monkeypatch.delattr(psutil.Process, "num_fds")
        before = take_snapshot()
        stack.enter_context(socket.socket())
        assert left_since(before) == []


class TestInnocents:
    def test_sockets_at_an_address_are_left_out_and_no_others(self, stack, tmp_path):
        before = take_snapshot()
        unix_pair(stack, tmp_path / "s")
        found = (take_snapshot() - before).without({str(tmp_path / "s")})
        assert [str(leak) for leak in leaks_in(found)] == ["socket without an address"]

    def test_files_are_left_out_by_their_path(self, stack, tmp_path):
        before = take_snapshot()
        stack.enter_context((tmp_path / "one").open("w"))
        stack.enter_context((tmp_path / "two").open("w"))
        found = (take_snapshot() - before).without({str(tmp_path / "one")})
        assert [str(leak) for leak in leaks_in(found)] == [f"descriptor {tmp_path / 'two'}"]

    def test_a_file_of_logging_is_known(self, stack, tmp_path):
        handler = logging.FileHandler(tmp_path / "log")
        stack.callback(handler.close)
        logger = logging.getLogger("tests.leaks")
        logger.addHandler(handler)
        stack.callback(logger.removeHandler, handler)
        assert str((tmp_path / "log").resolve()) in log_files()

    def test_the_pipes_to_another_process_are_known_by_what_it_has_open(self, stack):
        before = take_snapshot()
        child = stack.enter_context(
            subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        )
        stack.callback(child.kill)
        found = take_snapshot() - before
        assert found.descriptors
        assert found.without(pipes_of(child.pid)).descriptors == Counter()

    def test_nothing_is_known_of_the_pipes_of_a_process_that_is_gone(self):
        child = subprocess.Popen([sys.executable, "-c", ""])
        child.wait()
        assert pipes_of(child.pid) == set()

    def test_what_pyzmq_opens_once_and_for_all_is_open_after_open_pools(self):
        open_pools()
        before = take_snapshot()
        with zmq.Context.instance().socket(zmq.PAIR) as near, zmq.Context.instance().socket(zmq.PAIR) as far:
            near.bind("inproc://test-pools")
            far.connect("inproc://test-pools")
            near.send(bytes(2 * zmq.COPY_THRESHOLD), copy=False)
            far.recv()
        assert settled(lambda: take_snapshot() - before) == NOTHING

    def test_they_can_be_opened_again_at_once(self):
        for _ in range(200):
            open_pools()


class TestSettling:
    def test_what_ends_meanwhile_is_not_left(self, stack):
        before = take_snapshot()
        _, end = running_thread(stack, "pump")
        looks: list[Snapshot] = []

        def look() -> Snapshot:
            if looks:
                end()
            looks.append(take_snapshot() - before)
            return looks[-1]

        assert settled(look, SOON) == NOTHING
        assert [len(found.threads) for found in looks] == [1, 0]

    def test_what_stays_is_left_when_patience_ends(self, stack):
        before = take_snapshot()
        thread, _ = running_thread(stack, "pump")
        assert settled(lambda: take_snapshot() - before, 0.0).threads == {thread}

    def test_machine_that_stands_still_takes_no_patience_away(self, monkeypatch):
        looks, hours = [], count(step=3600.0)
        left = Snapshot(frozenset(), Counter(["socket:[1]"]))
        monkeypatch.setattr(leaks, "time", SimpleNamespace(monotonic=hours.__next__, sleep=lambda _seconds: None))
        assert settled(lambda: looks.append(1) or (left if len(looks) < 5 else NOTHING)) == NOTHING
        assert settled(lambda: left) == left

    def test_nothing_is_nothing_at_once(self):
        looks = []
        assert settled(lambda: looks.append(1) or NOTHING, SOON) == NOTHING
        assert len(looks) == 1

    def test_what_only_waits_for_the_collector_is_not_left(self):
        before = take_snapshot()
        owner = _Owner()
        assert (take_snapshot() - before).descriptors
        del owner
        assert settled(lambda: take_snapshot() - before, SOON) == NOTHING


class _Owner:
    """Closes its descriptor when it is collected, which takes the collector since it refers to itself."""

    def __init__(self) -> None:
        self.itself = self
        self.descriptor = os.eventfd(0)

    def __del__(self) -> None:
        os.close(self.descriptor)


class TestArithmetic:
    def test_sums_and_differences_count(self):
        two, three = (Snapshot(frozenset(), Counter({"anon_inode:[eventfd]": n})) for n in (2, 3))
        assert (three - two).descriptors == Counter({"anon_inode:[eventfd]": 1})
        assert (two - three) == NOTHING
        assert (two + three).descriptors == Counter({"anon_inode:[eventfd]": 5})
        assert (two & three) == two

    def test_threads_are_sets(self, stack):
        one, other = (Snapshot(frozenset({running_thread(stack, name)[0]}), Counter()) for name in "ab")
        assert (one + other) - one == other
        assert one & other == NOTHING

    def test_an_empty_one_is_false(self, stack):
        assert not NOTHING
        assert Snapshot(frozenset({running_thread(stack, "a")[0]}), Counter())
        assert Snapshot(frozenset(), Counter(["file"]))


class TestProcesses:
    @pytest.fixture
    def sleeper(self, stack) -> psutil.Process:
        command = [sys.executable, "-c", "import time; time.sleep(600)  # the sleeper"]
        child = stack.enter_context(subprocess.Popen(command))
        stack.callback(child.kill)
        process = psutil.Process(child.pid)
        until(process.cmdline)  # on a busy machine Popen returns a moment before the command line is there
        return process

    def test_one_is_told_with_pid_command_parent_and_age(self, sleeper):
        leak = process_leak(sleeper, {os.getpid(): "engine 1"})
        assert leak.kind == "process"
        assert leak.what.startswith(f"pid {sleeper.pid}: {sys.executable} -c import time; time.sleep(600)")
        assert f"(its parent: pid {os.getpid()} (engine 1); its age: " in leak.what

    def test_one_that_has_ended_is_told_by_its_pid(self, sleeper):
        sleeper.kill()
        sleeper.wait(SOON)
        assert process_leak(sleeper, {}).what.startswith(f"pid {sleeper.pid} (")


def test_a_leak_is_told_with_its_kind():
    assert str(Leak("folder", "/tmp/ipcluster-x")) == "folder /tmp/ipcluster-x"
