"""Does the monitor ever bury the living? A million heartbeats on a machine that has more to do than it can.

Hearts that never die beat at the monitor's defaults, while eight processes burn CPU. This process, the monitor's own,
is stalled for a second again and again: in turn by SIGSTOP and SIGCONT from a child, and by a call that holds the
interpreter lock. Every verdict is a false one. A burner of nice 0 has as much right to the CPU as everybody else;
``--nice`` makes them humbler.

::

    python benchmarks/false_verdicts.py --json false_verdicts.json
    python benchmarks/false_verdicts.py --beats 100000 --nice 10
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from common import Row, parser, positive, report, say, settings
from hearts_load import Load, allow_descriptors
from leashes import leash

from pytest_ipcluster.hearts.thread import MonitorThread

PATIENCE = 60.0

#: A burner ends with its input, or after so many seconds.
_BURNER = """
import os, select, sys, time
os.nice({nice})
end = time.monotonic() + {seconds}
while time.monotonic() < end and not select.select([0], [], [], 0)[0]:
    sum(number * number for number in range(100_000))
"""

_STOPPER = """
import os, signal, time
parent = os.getppid()
os.kill(parent, signal.SIGSTOP)
try:
    time.sleep({seconds})
finally:
    os.kill(parent, signal.SIGCONT)
"""


def main() -> None:
    options = arguments().parse_args()
    allow_descriptors(2 * options.hearts + 200)
    with leash():
        found = [beat(transport, options) for transport in options.transports]
    rows = [Row(told(run), "", run["failed"], limit=0) for run in found]
    report(__file__, rows, file=options.json, settings=settings(options), runs=found)


def told(run: dict[str, Any]) -> str:
    return f"false verdicts in {run['beats']} heartbeats, {run['stalls']} own stalls, {run['transport']}"


def arguments() -> argparse.ArgumentParser:
    made = parser(__doc__, rounds=None)
    made.add_argument("--beats", type=positive, default=1_000_000, help="heartbeats to count (default: %(default)s)")
    made.add_argument("--hearts", type=positive, default=500, help="hearts at once (default: %(default)s)")
    made.add_argument("--transports", nargs="+", choices=["ipc", "tcp"], default=["ipc"])
    made.add_argument("--burners", type=int, default=8, help="processes that compute (default: %(default)s)")
    made.add_argument("--nice", type=int, default=0, help="how nice they are (default: %(default)s)")
    made.add_argument("--stall", type=float, default=1.0, help="seconds of an own stall (default: %(default)s)")
    made.add_argument("--stall-every", type=float, default=15.0, help="seconds between two (default: %(default)s)")
    made.add_argument("--minutes", type=float, default=20.0, help="limit for everything (default: %(default)s)")
    return made


def beat(transport: str, options: argparse.Namespace) -> dict[str, Any]:
    """Have all hearts beat until there are enough; return what the monitor made of it."""
    failed: list[bytes] = []
    with ExitStack() as stack:
        thread = stack.enter_context(monitor(transport))
        thread.monitor.add_heart_failure_handler(failed.append)
        load = Load(thread.ping_url, thread.pong_url, hearts=options.hearts, seconds=options.minutes * 60)
        stack.enter_context(load)
        wait_until(lambda: len(thread.monitor.hearts) == options.hearts)
        stack.enter_context(burners(options.burners, options.nice, options.minutes * 60))
        stalls = run_and_stall(thread, options)
        return {
            "transport": transport,
            "beats": beats(thread),
            "failed": len(failed),
            "missed": sum(event.kind == "missed" for event in thread.events.since()),
            "stalls": stalls,
            "own_late_beats": sum(event.kind == "stalled" for event in thread.events.since()),
            "load": os.getloadavg()[0],
        }


@contextmanager
def monitor(transport: str) -> Iterator[MonitorThread]:
    """Run a monitor at its defaults."""
    with tempfile.TemporaryDirectory(prefix="f-") as folder:
        urls: dict[str, Any] = {name: f"ipc://{Path(folder) / name}" for name in ("ping", "pong")}
        thread = MonitorThread(**(urls if transport == "ipc" else {}))
        thread.start()
        try:
            yield thread
        finally:
            thread.stop()


def beats(thread: MonitorThread) -> int:
    """Return how many heartbeats were heard so far."""
    return sum(thread.monitor.ledger.tally.values())


@contextmanager
def burners(number: int, nice: int, seconds: float) -> Iterator[None]:
    """Have so many processes compute."""
    code = _BURNER.format(nice=nice, seconds=seconds)
    made = [subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) for _ in range(number)]
    try:
        yield
    finally:
        for one in made:
            assert one.stdin is not None
            one.stdin.close()
        for one in made:
            one.wait(PATIENCE)


def run_and_stall(thread: MonitorThread, options: argparse.Namespace) -> int:
    """Stall this process every so often until enough beats were heard; return how often."""
    end = time.monotonic() + options.minutes * 60
    kinds = itertools.cycle([stop_this_process, hold_the_lock])
    stalls = 0
    while beats(thread) < options.beats:
        if time.monotonic() > end:
            sys.exit(f"only {beats(thread)} of {options.beats} heartbeats within {options.minutes:g} minutes")
        time.sleep(options.stall_every)  # nothing is waited for: time is to pass
        next(kinds)(options.stall)
        stalls += 1
        say(f"{beats(thread)} heartbeats, {stalls} stalls")
    return stalls


def stop_this_process(seconds: float) -> None:
    """Have a child stop this process, all threads of it, and let it go on later."""
    subprocess.run([sys.executable, "-c", _STOPPER.format(seconds=seconds)], check=True)


def hold_the_lock(seconds: float) -> None:
    """Sleep without giving up the interpreter lock, as an extension module can."""
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not reached():
        if time.monotonic() > deadline:
            sys.exit(f"not all hearts were heard within {PATIENCE:g} s")
        time.sleep(0.05)  # thousands of events would have to be looked through


if __name__ == "__main__":
    main()
