"""For the tests of this folder: engines that are processes with a heart and nothing else, and a whole cluster."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from catalogue import Bench, connected, new_cluster
from waiting import MISSES

from pytest_ipcluster import BackgroundCluster, Deadman
from pytest_ipcluster.cluster.autopsy import ended_with
from pytest_ipcluster.cluster.engines import Engine
from pytest_ipcluster.cluster.processes import send_signal
from pytest_ipcluster.faults.injector import FaultInjector
from pytest_ipcluster.hearts.thread import MonitorThread
from pytest_ipcluster.report.events import EventLog

HEART = """
import sys, threading
from pytest_ipcluster.hearts.heart import Heart
Heart(sys.argv[1], sys.argv[2], heart_id=sys.argv[3]).start()
threading.Event().wait(120)
"""


@dataclass
class HeartsOnly:
    """What an injector needs of a cluster."""

    engines: tuple[Engine, ...] = ()
    strangers: set[psutil.Process] = field(default_factory=set)

    dropped: list[str] = field(default_factory=list)
    controller: psutil.Process | None = None
    lanes: None = None

    def how_ended(self, process: psutil.Process, patience: float) -> int | None:
        return ended_with(process, Path("no logs"), Path("no output"), patience)

    def owns(self, process: psutil.Process) -> bool:
        return process not in self.strangers

    @property
    def slots(self) -> HeartsOnly:
        return self

    def zombies(self, engines: Iterable[Engine]) -> list[Engine]:  # noqa: ARG002 - there is no hub here
        return []

    def wait_dropped(self, ident: str) -> None:
        self.dropped.append(ident)


@pytest.fixture
def log() -> EventLog:
    return EventLog()


@pytest.fixture
def hearts(log) -> Iterator[MonitorThread]:
    thread = MonitorThread(period=50, misses=MISSES, events=log)
    thread.start()
    yield thread
    thread.stop()


@pytest.fixture
def cluster(hearts) -> Iterator[HeartsOnly]:
    children = []
    for slot in range(3):
        command = [sys.executable, "-c", HEART, hearts.ping_url, hearts.pong_url, f"heart-{slot}"]
        children.append(subprocess.Popen(command))
    engines = tuple(
        Engine(slot, f"heart-{slot}", "here", psutil.Process(child.pid), None, None)
        for slot, child in enumerate(children)
    )
    for engine in engines:
        hearts.wait_for_heart(engine.heart, 30)
    yield HeartsOnly(engines)
    for engine, child in zip(engines, children, strict=True):
        send_signal(engine.process, 9)
        child.wait()


@pytest.fixture
def injector(cluster, hearts, log) -> Iterator[FaultInjector]:
    injector = FaultInjector(cluster, hearts, log)
    yield injector
    injector.close()


# -- a real cluster, a client of it, and a deadman beside them ----------------------------------------


@pytest.fixture(scope="module")
def running() -> Iterator[BackgroundCluster]:
    with new_cluster() as cluster:
        yield cluster


@pytest.fixture
def bench(running) -> Iterator[Bench]:
    with connected(running) as bench:
        yield bench


@pytest.fixture
def deadman(running, bench) -> Iterator[Deadman]:
    with Deadman(running, bench.client) as deadman:
        yield deadman
