"""Our heart with ipyparallel's monitor, and the other way round."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import zmq
from waiting import MISSES

from pytest_ipcluster.hearts.heart import Heart
from pytest_ipcluster.hearts.thread import MonitorThread

THEIR_MONITOR = """
import sys
from ipyparallel.controller.heartmonitor import start_heartmonitor
ping, pong, notices = sys.argv[1:]
start_heartmonitor(ping, pong, notices, period=50, max_heartmonitor_misses=3)
"""

HEART = b"5d1c30f5-4dd8ab3c1cf7b6a8a6f4a3a1"


def test_their_heart_is_watched_by_our_monitor(
    start_monitor: Callable[..., MonitorThread], start_engine: Callable[..., subprocess.Popen[str]]
) -> None:
    thread = start_monitor()
    engine = start_engine(thread, HEART, module="ipyparallel.controller.heartmonitor")
    thread.wait_for_heart(HEART)
    engine.send_signal(signal.SIGSTOP)
    failed = thread.events.wait_for(lambda event: event.kind == "failed", 30)
    assert (failed.heart, thread.monitor.failure_of(HEART).misses) == (HEART, MISSES)
    engine.send_signal(signal.SIGCONT)
    assert thread.events.wait_for(lambda event: event.kind == "returned", 30).heart == HEART


def test_our_heart_is_watched_by_their_monitor(ending: ExitStack, folder: Path) -> None:
    ping, pong, notices = (f"ipc://{folder}/{name}" for name in ("ping", "pong", "notices"))
    hub = ending.enter_context(zmq.Context()).socket(zmq.SUB)
    ending.callback(hub.close, linger=0)
    hub.subscribe(b"")
    # Their monitor begins when somebody has subscribed to its notices.
    hub.bind(notices)
    start_their_monitor(ending, ping, pong, notices)
    heart = Heart(ping, pong, heart_id=HEART)
    ending.callback(heart.stop)
    heart.start()
    assert_told(hub, b"new_heart")
    heart.stop()
    assert_told(hub, b"stopped_heart")


def start_their_monitor(ending: ExitStack, *urls: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen([sys.executable, "-c", THEIR_MONITOR, *urls], env=environment, stderr=subprocess.DEVNULL)
    ending.enter_context(process)
    ending.callback(process.kill)


def assert_told(hub: zmq.Socket[bytes], kind: bytes) -> None:
    assert hub.poll(30_000), f"their monitor did not tell {kind!r}"
    message = b" ".join(hub.recv_multipart())
    assert kind in message
    assert HEART in message
