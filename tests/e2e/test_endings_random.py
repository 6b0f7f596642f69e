"""Whenever pytest is killed, during the start, a test, a repair or the stop, nothing of its cluster is left."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from endings import row
from inner import LIMIT, Run

#: Every moment follows from this number; a test that fails says which to give to see the same moments again.
SEED = os.environ.get("PYTEST_IPCLUSTER_ENDINGS_SEED") or str(random.SystemRandom().randrange(10**6))

MOMENTS = 25
TABLE = f"SIGKILL of pytest at {MOMENTS} random moments, PYTEST_IPCLUSTER_ENDINGS_SEED={SEED}"

#: What the run says when a phase begins, and how many moments are chosen in each phase.
PHASES = {"start": 10, "test": 8, "stop": 7}
assert sum(PHASES.values()) == MOMENTS

#: Three tests, the second of which has its engine repaired.
TESTS = """
from moments import *

def test_first(up): pass
def test_kill(heart_failure): heart_failure.kill(0).wait()
def test_last(ipcluster_client, stopping): pass
"""


@dataclass(frozen=True, slots=True)
class Durations:
    """The seconds that each phase of an undisturbed run takes."""

    start: float
    test: float
    stop: float


@pytest.fixture(scope="module")
def durations(tmp_path_factory: pytest.TempPathFactory) -> Durations:
    with Run(tmp_path_factory.mktemp("undisturbed"), {"test_it": TESTS}) as run:
        times = [time.monotonic()]
        run.up()
        times.append(time.monotonic())
        run.hear("stopping")
        times.append(time.monotonic())
        run.hear("torn down")
        times.append(time.monotonic())
        assert run.end() == 0, run.output()
    return Durations(*(after - before for before, after in pairwise(times)))


def moments() -> Iterator[tuple[str, float]]:
    """Yield a phase and how far into it, as a part of its duration, for every moment."""
    chance = random.Random(SEED)
    for phase, times in PHASES.items():
        for _ in range(times):
            yield phase, chance.random()


@pytest.mark.parametrize("number", range(MOMENTS))
def test_nothing_is_left(number: int, durations: Durations, tmp_path: Path, record_property):
    phase, part = list(moments())[number]
    delay = part * getattr(durations, phase)
    with Run(tmp_path, {"test_it": TESTS}) as run:
        if phase != "start":
            run.up()
        if phase == "stop":
            run.hear("stopping")
        time.sleep(delay)  # the moment is chosen by chance: it has no event
        run.look()
        run.process.send_signal(signal.SIGKILL)
        code, left = run.end(), run.settle()
        record_property(TABLE, row(f"{delay:.3f} s into the {phase}, {_reached(run)}", code, left))
        # A test and a stop that are quicker than the measured ones may be over already, and the run with them.
        assert code == -signal.SIGKILL or (phase != "start" and code == 0), run.output()
    assert (left.processes, left.folders) == ((), ()), f"left {LIMIT:g} s after pytest; {TABLE}"


def _reached(run: Run) -> str:
    """Say how far the run had come."""
    return f"last said {run.told[-1]!r}" if run.told else "nothing said"
