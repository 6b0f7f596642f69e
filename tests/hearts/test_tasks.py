"""What an engine tells of its task, and how it dies when it is told to."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pytest_ipcluster.cluster.engines import Engine
from pytest_ipcluster.hearts.crash import CRASH, EXIT_CODE, WAYS, obey, order_file
from pytest_ipcluster.hearts.farewell import farewell_file, say_farewell
from pytest_ipcluster.hearts.tasks import task_file, tell_tasks

MESSAGE = {"header": {"msg_id": "5d1c30f5-4dd8ab3c_17_3"}}


def reader(folder: Path) -> Engine:
    return Engine(0, "ident", "here", None, None, None, folder)


@pytest.fixture
def kernel(tmp_path):
    """A kernel whose tasks note what can be read of them while they run."""
    seen: list[str] = []

    def plain(*_: object) -> None:
        seen.append(reader(tmp_path).task)

    async def coroutine(*_: object) -> None:
        seen.append(reader(tmp_path).task)
        await asyncio.sleep(0)
        seen.append(reader(tmp_path).task)

    async def fails(*_: object) -> None:
        raise LookupError("the task")

    handlers = {"apply_request": coroutine, "execute_request": plain, "kernel_info_request": fails}
    return SimpleNamespace(shell_handlers=handlers, seen=seen)


def handle(kernel: SimpleNamespace, kind: str) -> None:
    asyncio.run(kernel.shell_handlers[kind]("stream", [b"client"], MESSAGE))


@pytest.mark.parametrize(("kind", "times"), [("apply_request", 2), ("execute_request", 1)])
def test_a_task_can_be_read_as_long_as_it_runs(kernel, tmp_path, kind, times):
    tell_tasks(kernel, task_file(tmp_path, "ident"))
    handle(kernel, kind)
    assert kernel.seen == [MESSAGE["header"]["msg_id"]] * times
    assert reader(tmp_path).task == ""


def test_a_task_that_raises_is_over(kernel, tmp_path):
    kernel.shell_handlers["apply_request"] = kernel.shell_handlers["kernel_info_request"]
    tell_tasks(kernel, task_file(tmp_path, "ident"))
    with pytest.raises(LookupError, match="the task"):
        handle(kernel, "apply_request")
    assert reader(tmp_path).task == ""


def test_other_messages_are_left_alone(kernel, tmp_path):
    before = kernel.shell_handlers["kernel_info_request"]
    tell_tasks(kernel, task_file(tmp_path, "ident"))
    assert kernel.shell_handlers["kernel_info_request"] is before


def test_before_an_engine_tells_there_is_no_task(tmp_path):
    assert reader(tmp_path).task == ""


def test_only_the_owner_can_read_it(kernel, tmp_path):
    tell_tasks(kernel, task_file(tmp_path, "ident"))
    assert task_file(tmp_path, "ident").stat().st_mode & 0o777 == 0o600


def test_an_engine_that_is_asked_to_shut_down_says_so_first(tmp_path):
    seen = []

    async def shutdown_request(*_: object) -> None:
        seen.append(reader(tmp_path).has_left)

    kernel = SimpleNamespace(shell_handlers={}, control_handlers={"shutdown_request": shutdown_request})
    say_farewell(kernel, farewell_file(tmp_path, "ident"))
    assert not reader(tmp_path).has_left
    asyncio.run(kernel.control_handlers["shutdown_request"]("stream", [b"client"], MESSAGE))
    assert seen == [True]


DOOMED = """
import pathlib, sys, time
from pytest_ipcluster.hearts.crash import obey
obey(pathlib.Path(sys.argv[1]))
print("ready", flush=True)
for _ in range(6000):
    time.sleep(0.01)  # in pieces: a signal that comes just before it does not wake it
"""


@pytest.mark.skipif(CRASH is None, reason="this system has no real-time signals")
def test_an_order_is_obeyed_once(tmp_path, monkeypatch):
    obeyed = []

    def die_slowly():
        obeyed.append("oom")
        os.kill(os.getpid(), CRASH)

    monkeypatch.setitem(WAYS, "oom", die_slowly)
    file = order_file(tmp_path, "ident")
    file.write_text("oom")
    before = signal.getsignal(CRASH)
    try:
        obey(file)
        os.kill(os.getpid(), CRASH)
    finally:
        signal.signal(CRASH, before)
    assert obeyed == ["oom"]


CODES = {"exit": EXIT_CODE, "segfault": -signal.SIGSEGV, "abort": -signal.SIGABRT, "oom": -signal.SIGKILL}


@pytest.mark.skipif(CRASH is None, reason="this system has no real-time signals")
@pytest.mark.parametrize("how", sorted(WAYS))
def test_a_process_dies_as_it_is_told(tmp_path, how):
    file = order_file(tmp_path, "ident")
    command = [sys.executable, "-X", "faulthandler", "-c", DOOMED, str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as process:
        process.stdout.readline()
        file.write_text(how)
        os.kill(process.pid, CRASH)
        _, complaints = process.communicate(timeout=60)
    assert process.returncode == CODES[how]
    assert list(tmp_path.glob("core*")) == []
    assert (b"Fatal Python error" in complaints) is (how == "abort")
