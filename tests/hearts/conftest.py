"""Monitors, hearts and processes with a heart in them, all of which end with the test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from waiting import MISSES

from pytest_ipcluster.hearts.heart import Heart
from pytest_ipcluster.hearts.thread import MonitorThread

ENGINE = """
import sys
from pathlib import Path
from {module} import Heart
ping, pong, ident, *key_file = sys.argv[1:]
keys = {{}}
if key_file:
    from pytest_ipcluster.hearts.keys import HeartKeys
    keys["keys"] = HeartKeys.read(Path(*key_file))
heart = Heart(ping, pong, heart_id=ident.encode(), **keys)
heart.start()
print("beating", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def ending() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose name is short enough for ipc addresses."""
    with tempfile.TemporaryDirectory(prefix="hearts") as name:
        yield Path(name)


@pytest.fixture
def start_monitor(ending: ExitStack) -> Callable[..., MonitorThread]:
    """Return a function that starts a MonitorThread with the given arguments."""

    def start(**kwargs: object) -> MonitorThread:
        thread = MonitorThread(**{"period": 50.0, "misses": MISSES, **kwargs})
        ending.callback(thread.stop)
        thread.start()
        return thread

    return start


@pytest.fixture
def start_heart(ending: ExitStack) -> Callable[[MonitorThread, bytes], Heart]:
    """Return a function that starts a heart in this process, for the given monitor."""

    def start(thread: MonitorThread, ident: bytes) -> Heart:
        heart = Heart(thread.ping_url, thread.pong_url, heart_id=ident)
        ending.callback(heart.stop)
        heart.start()
        return heart

    return start


@pytest.fixture
def start_engine(ending: ExitStack) -> Callable[..., subprocess.Popen[str]]:
    """Return a function that starts a process with nothing but a heart in it, for the given monitor."""

    def start(
        thread: MonitorThread,
        ident: bytes,
        module: str = "pytest_ipcluster.hearts.heart",
        key_file: Path | None = None,
    ) -> subprocess.Popen[str]:
        arguments = [thread.ping_url, thread.pong_url, ident.decode(), *map(str, filter(None, [key_file]))]
        command = [sys.executable, "-c", ENGINE.format(module=module), *arguments]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        ending.enter_context(process)
        ending.callback(_end, process)
        assert process.stdout.readline() == "beating\n"
        return process

    return start


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
        process.wait()
