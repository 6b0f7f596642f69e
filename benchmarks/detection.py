"""How soon a fault is known: from the signal until the failure handler of the monitor runs.

Processes with nothing but a heart in them are killed with SIGKILL, one after the other, at random moments of the beat:
at periods of 100 ms and 3 s, over ipc and over TCP. Others are paused with SIGSTOP, at the monitor's defaults.
With ``--engines`` the engines of real clusters are killed as well.

::

    python benchmarks/detection.py --json detection.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from common import Row, median, parser, percentile, positive, report, say, settings
from leashes import leash
from nursery import Nursery

from pytest_ipcluster.cluster.processes import is_alive, send_signal
from pytest_ipcluster.hearts.thread import MonitorThread

#: Seconds for a heart to be known, and for a verdict, beyond what the period asks for.
PATIENCE = 30.0

#: What is to be reached, in milliseconds.
LIMITS = {"median": 10.0, "99 %": 50.0}
LIMIT_OF_PAUSE = 500.0

Clock = dict[bytes, float]


def main() -> None:
    options = arguments().parse_args()
    runs: dict[str, list[float]] = {}
    with leash():
        for period in options.periods:
            for transport in ("ipc", "tcp"):
                found = measure(transport, period, options.kills, options.alive, signal.SIGKILL)
                runs[f"SIGKILL to handler, {period:g} ms, {transport}"] = found
        for transport in ("ipc", "tcp"):
            pauses = min(options.kills, options.pauses)
            runs[f"SIGSTOP to handler, defaults, {transport}"] = measure(
                transport, None, pauses, options.alive, signal.SIGSTOP
            )
        if options.engines:
            runs["SIGKILL of an engine to handler, defaults"] = engines(options.engines)
    report(__file__, judge(runs), file=options.json, settings=settings(options), runs=runs)


def arguments() -> argparse.ArgumentParser:
    made = parser(__doc__, rounds=None)
    made.add_argument("--kills", type=positive, default=200, help="kills of each kind (default: %(default)s)")
    made.add_argument("--pauses", type=positive, default=40, help="pauses over each transport (default: %(default)s)")
    made.add_argument("--alive", type=positive, default=40, help="hearts that beat at once (default: %(default)s)")
    made.add_argument("--periods", type=float, nargs="+", default=[100.0, 3000.0], metavar="MS")
    made.add_argument("--engines", type=int, default=0, metavar="N", help="also kill N engines of a real cluster")
    return made


def judge(runs: dict[str, list[float]]) -> list[Row]:
    """Return a row for the median and for the 99th percentile of each kind of fault, in milliseconds."""
    rows = []
    for what, seconds in runs.items():
        shares = {"median": median(seconds) * 1000, "99 %": percentile(seconds, 0.99) * 1000}
        if what.startswith("SIGSTOP"):
            rows += [
                Row(f"{what}, {share}", "ms", ms, limit=LIMIT_OF_PAUSE, minor=share == "median")
                for share, ms in shares.items()
            ]
        else:
            rows += [Row(f"{what}, {share}", "ms", ms, limit=LIMITS[share]) for share, ms in shares.items()]
    return rows


# -- bare hearts ---------------------------------------------------------------------------------------


def measure(transport: str, period: float | None, faults: int, alive: int, signum: int) -> list[float]:
    """Do this to so many hearts, in batches; return the seconds from each fault to its handler."""
    what = f"{signal.Signals(signum).name}, {transport}, {'default' if period is None else f'{period:g} ms'}"
    latencies: list[float] = []
    with watching(transport, period) as (watch, nursery):
        numbers = itertools.count(1)
        while len(latencies) < faults:
            batch = [b"heart-%d" % next(numbers) for _ in range(min(alive, faults - len(latencies)))]
            latencies += watch.hurt(batch, nursery, signum)
            say(f"{what}: {len(latencies)} of {faults}, median {median(latencies) * 1000:.1f} ms")
    return latencies


@contextmanager
def watching(transport: str, period: float | None) -> Iterator[tuple[Watch, Nursery]]:
    """Run a monitor, and what makes hearts for it. Without a period, everything is at the monitor's defaults."""
    with tempfile.TemporaryDirectory(prefix="d-") as folder, ExitStack() as stack:
        watch = Watch()
        traits: dict[str, Any] = {} if period is None else {"period": period}
        if transport == "ipc":
            traits |= {name: f"ipc://{Path(folder) / name}" for name in ("ping", "pong")}
        thread = MonitorThread(**traits, gone=watch.gone)
        stack.callback(thread.stop)
        thread.start()
        watch.attach(thread)
        yield watch, stack.enter_context(Nursery(thread.ping_url, thread.pong_url))


class Watch:
    """Hurts hearts, and notes when the monitor's handlers learn of it."""

    def __init__(self) -> None:
        self._hurt_at: Clock = {}
        self._failed_at: Clock = {}
        self._known: set[bytes] = set()
        self._processes: dict[bytes, psutil.Process] = {}
        self._changed = threading.Condition()
        self._patience = PATIENCE
        self._period = 0.0

    def gone(self, heart: bytes) -> bool | None:
        """Tell whether the process of this heart is gone; None when it isn't known."""
        process = self._processes.get(heart)
        return None if process is None else not is_alive(process)

    def attach(self, thread: MonitorThread) -> None:
        self._period = thread.monitor.period / 1000
        self._patience = PATIENCE + (thread.monitor.misses + 2) * self._period
        thread.monitor.add_new_heart_handler(self._note_new)
        thread.monitor.add_heart_failure_handler(self._note_failure)

    def _note_new(self, heart: bytes) -> None:
        with self._changed:
            self._known.add(heart)
            self._changed.notify_all()

    def _note_failure(self, heart: bytes) -> None:
        at = time.monotonic()
        with self._changed:
            self._failed_at[heart] = at
            self._changed.notify_all()

    def hurt(self, batch: list[bytes], nursery: Nursery, signum: int) -> list[float]:
        """Start these hearts, hurt one after the other, and return the seconds until the handler knew of each."""
        pids = nursery.bear(batch)
        self._processes |= {heart: psutil.Process(pid) for heart, pid in zip(batch, pids, strict=True)}
        self._until(lambda: self._known.issuperset(batch), "not all hearts were heard")
        for heart in batch:
            # Somewhere in the beat; one that is noticed at once is waited for, the others are not.
            time.sleep(random.uniform(0, min(self._period, 0.1)))
            self._hurt_at[heart] = time.monotonic()
            self._processes[heart].send_signal(signum)
            with self._changed:
                self._changed.wait_for(partial(self._failed_at.__contains__, heart), 0.1)
        self._until(lambda: self._failed_at.keys() >= set(batch), "not all faults were noticed")
        for heart in batch:
            send_signal(self._processes[heart], signal.SIGKILL)
        return [self._failed_at[heart] - self._hurt_at[heart] for heart in batch]

    def _until(self, reached: Callable[[], bool], otherwise: str) -> None:
        with self._changed:
            if not self._changed.wait_for(reached, self._patience):
                sys.exit(f"{otherwise} within {self._patience:g} s")


# -- engines of a real cluster -------------------------------------------------------------------------


def engines(kills: int) -> list[float]:
    """Kill engines of a cluster as a test does, at the defaults; return the seconds until the handler knew."""
    return run_pytest(_ENGINES.format(kills=kills))


_ENGINES = """
import json, os, time
from pathlib import Path
import pytest

@pytest.mark.parametrize("number", range({kills}))
def test_one_dies(number, ipcluster, heart_monitor, heart_failure):
    slot, failed = number % len(ipcluster.engines), []
    heart_monitor.add_heart_failure_handler(lambda heart: failed.append(time.monotonic()))
    with heart_failure.expect(slot=slot):
        killed = time.monotonic()
        heart_failure.kill(slot)
    with Path(os.environ["DETECTION_RESULTS"]).open("a") as results:
        results.write(json.dumps(failed[0] - killed) + "\\n")
"""


def run_pytest(code: str) -> list[float]:
    """Run pytest on this code, and return the numbers it wrote, a line each."""
    with tempfile.TemporaryDirectory(prefix="d-") as folder:
        results = Path(folder) / "results"
        (Path(folder) / "test_it.py").write_text(code)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={folder}"]
        done = subprocess.run(
            [*command, "-c", os.devnull, "test_it.py"],
            cwd=folder,
            env={**os.environ, "DETECTION_RESULTS": str(results)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"pytest ended with code {done.returncode}:\n{done.stdout}{done.stderr}")
        return [float(json.loads(line)) for line in results.read_text().splitlines()]


if __name__ == "__main__":
    main()
