"""What a monitor costs: CPU for each pong, with 100, 1,000 and 9,000 hearts, over ipc and TCP.

Our ``MonitorThread`` and ipyparallel's ``HeartMonitor`` take turns, each in a fresh process, with the same hearts in
other processes (see ``hearts_load.py``). So does a loop that only reads its socket: it says what no monitor can save.
Python is the thread that runs the monitor; total is the whole process, which has libzmq's threads as well. What the
kernel does for other processes is in neither.

Two more modes look at what it leads to:

- ``late``: 9,000 hearts at a period of 0.2 s. How many pings go out late, as somebody sees who hears them?
- ``busy``: 1,000 hearts at 100 ms beside a main thread that computes all the time. Beats skipped, false verdicts?

::

    python benchmarks/monitor_cost.py --json monitor_cost.json
    python benchmarks/monitor_cost.py --modes cost --hearts 1000 --transports ipc
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import zmq
from common import Row, interleave, median, parser, positive, report, say, settings
from hearts_load import Load
from leashes import leash

PATIENCE = 60.0
PEER, FLOOR = "ipyparallel", "bare"

#: Where the monitor of ours runs that is measured, by the name of its class in ``monitor_hosts.py``.
HOSTS = ("thread", "process")

#: Milliseconds between two beats, for so many hearts: about as many as one core bears with ipyparallel's.
PERIODS = {100: 100.0, 1000: 200.0, 9000: 1500.0}

#: The share of ipyparallel's CPU that ours is to take at most.
LIMIT_OF_PYTHON, LIMITS_OF_TOTAL = 0.1, {"ipc": 1 / 3, "tcp": 0.4}

#: Hearts and period of the other modes.
LATE, BUSY = (9000, 200.0), (1000, 100.0)

Run = dict[str, Any]


def main() -> None:
    options = arguments().parse_args()
    rows: list[Row] = []
    runs: dict[str, Any] = {}
    with leash():
        for transport in options.transports:
            if "cost" in options.modes:
                for hearts in options.hearts:
                    compare_cost(transport, hearts, options, rows, runs)
            for mode, (hearts, period), busy in (("late", LATE, False), ("busy", BUSY, True)):
                if mode in options.modes:
                    compare_beats(mode, transport, hearts, period, busy, options, rows, runs)
    report(__file__, rows, file=options.json, settings=settings(options), runs=runs)


def arguments() -> argparse.ArgumentParser:
    made = parser(__doc__)
    made.add_argument("--modes", nargs="+", choices=["cost", "late", "busy"], default=["cost", "late", "busy"])
    made.add_argument("--host", choices=HOSTS, help="where ours runs (default: thread for the cost, else process)")
    made.add_argument("--hearts", type=positive, nargs="+", default=[100, 1000, 9000], metavar="N")
    made.add_argument("--transports", nargs="+", choices=["ipc", "tcp"], default=["ipc", "tcp"])
    made.add_argument("--seconds", type=float, default=6.0, help="how long one run is looked at (default: %(default)s)")
    made.add_argument("--processes", type=positive, default=4, help="processes that have the hearts")
    made.add_argument("--spread", type=float, default=0.0, help="share of the period over which answers are spread")
    return made


def compare_cost(transport: str, hearts: int, options: Any, rows: list[Row], runs: dict[str, Any]) -> None:
    """Measure the CPU that each takes for a pong, and add a row for each part of it and each peer."""
    period = PERIODS.get(hearts, 200.0 if hearts < 5000 else 1500.0)
    host = options.host or "thread"
    takes = {name: partial(one_run, name, transport, hearts, period, options) for name in (host, PEER, FLOOR)}
    found = interleave(takes, options.rounds, lambda run: f"{run['python_us']:.1f} of {run['total_us']:.1f} µs a pong")
    runs[f"cost, {hearts} hearts, {transport}"] = found
    limits = {"python": LIMIT_OF_PYTHON, "total": LIMITS_OF_TOTAL[transport]}
    for part, limit in limits.items():
        ours, peer, floor = (median([run[f"{part}_us"] for run in found[name]]) for name in takes)
        what = f"{part.capitalize()} CPU a pong, {hearts} hearts, {transport}"
        rows.append(Row(what, "µs", ours, peer, PEER, limit_ratio=limit))
        rows.append(Row(what, "µs", ours, floor, FLOOR))


def compare_beats(
    mode: str,
    transport: str,
    hearts: int,
    period: float,
    busy: bool,
    options: Any,
    rows: list[Row],
    runs: dict[str, Any],
) -> None:
    """Count what goes wrong with the beats of ours in one long run, and add a row for each kind."""
    seconds = options.seconds * options.rounds
    run = one_run(options.host or "process", transport, hearts, period, options, seconds=seconds, busy=busy)
    say(f"{mode}, {transport}: {run}")
    runs[f"{mode}, {transport}"] = run
    beside = " beside a busy main thread" if busy else ""
    what = f"{hearts} hearts at {period / 1000:g} s{beside}, {transport}, {run['beats']} beats"
    kinds = ("late", "skipped", "false_verdicts")
    rows += [Row(f"{what}: {kind.replace('_', ' ')}", "", run[kind], limit=0) for kind in kinds]


# -- one run -------------------------------------------------------------------------------------------


def one_run(
    name: str, transport: str, hearts: int, period: float, options: Any, seconds: float = 0.0, busy: bool = False
) -> Run:
    """Run this monitor with so many hearts; look at it for some seconds, and at least three beats."""
    seconds = max(seconds or options.seconds, 3 * period / 1000)
    spread = options.spread * period / 1000
    with (
        addresses(transport) as (ping, pong),
        Host(name, ping, pong, period, busy) as host,
        Load(ping, pong, hearts=hearts, processes=options.processes, spread=spread) as load,
        Pings(ping) as pings,
    ):
        host.wait_for(hearts, PATIENCE + 3 * period / 1000)
        before, answers, seen = host.account(), load.answers(), pings.count()
        time.sleep(seconds)  # this is what is measured: what happens meanwhile
        after, answered = host.account(), load.answers() - answers
        gaps = pings.gaps(seen)
    return {**cost(before, after, answered, seconds), **judge_beats(gaps, period / 1000), "account": after}


def cost(before: Run, after: Run, answered: int, seconds: float) -> Run:
    """Return the CPU microseconds for each pong between two accounts."""
    if not answered:
        sys.exit("no ping was answered while the monitor was looked at")
    spent = {part: after[part] - before[part] for part in ("python", "process")}
    return {
        "pongs": answered,
        "python_us": spent["python"] / answered * 1e6,
        "total_us": spent["process"] / answered * 1e6,
        "share_of_a_core": spent["process"] / seconds,
        "false_verdicts": after.get("failed", 0) - before.get("failed", 0),
    }


def judge_beats(gaps: list[float], period: float) -> Run:
    """Count the pings that came half a period late or more, and those that were left out, by the gaps between them."""
    return {
        "beats": len(gaps),
        "late": sum(gap > 1.5 * period for gap in gaps),
        "skipped": sum(max(0, round(gap / period) - 1) for gap in gaps),
        "longest_gap": max(gaps, default=0.0),
    }


@contextmanager
def addresses(transport: str) -> Iterator[tuple[str, str]]:
    """Give two addresses to listen on."""
    with tempfile.TemporaryDirectory(prefix="m-") as folder:
        if transport == "ipc":
            yield f"ipc://{Path(folder) / 'ping'}", f"ipc://{Path(folder) / 'pong'}"
            return
        held = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        ports = [one.getsockname()[1] for one in held]
        for one in held:
            one.close()
        yield f"tcp://127.0.0.1:{ports[0]}", f"tcp://127.0.0.1:{ports[1]}"


class Host:
    """A process that runs one of the monitors, see ``monitor_hosts.py``."""

    def __init__(self, name: str, ping: str, pong: str, period: float, busy: bool) -> None:
        script = str(Path(__file__).with_name("monitor_hosts.py"))
        command = [sys.executable, script, name, ping, pong, f"--period={period:g}", *(["--busy"] if busy else [])]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Host:
        self._read()  # it listens
        return self

    def __exit__(self, *_exception: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE)
        self._process.stdout.close()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE)
        line = self._process.stdout.readline() if ready else ""
        if not ready:
            sys.exit(f"the monitor's process has said nothing for {PATIENCE:g} s")
        if not line:
            sys.exit(f"the monitor's process ended with code {self._process.wait()}: see above")
        return json.loads(line)

    def account(self) -> Run:
        """Return what it has come to so far."""
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        found: Run = self._read()
        return found

    def wait_for(self, hearts: int, timeout: float) -> None:
        """Return when so many hearts are known."""
        deadline = time.monotonic() + timeout
        while (known := self.account()["hearts"]) < hearts:
            if time.monotonic() > deadline:
                sys.exit(f"{known} of {hearts} hearts were known after {timeout:g} s")
            time.sleep(0.1)  # ipyparallel's tells nobody


class Pings:
    """Hears the pings that go out, and notes when."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._heard: list[float] = []
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Pings:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._ending.set()
        self._thread.join(PATIENCE)

    def _listen(self) -> None:
        with zmq.Context() as context, context.socket(zmq.SUB) as source:
            source.subscribe(b"")
            source.linger = 0
            source.connect(self._address)
            while not self._ending.is_set():
                if source.poll(100):
                    source.recv()
                    self._heard.append(time.monotonic())

    def count(self) -> int:
        """Return how many have been heard so far."""
        return len(self._heard)

    def gaps(self, since: int) -> list[float]:
        """Return the seconds between one ping and the next, from this one on."""
        heard = self._heard[since:]
        return [later - earlier for earlier, later in pairwise(heard)]


if __name__ == "__main__":
    main()
