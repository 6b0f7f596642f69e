"""A monitor in a process of its own, for ``monitor_cost.py``: ours, ipyparallel's as that runs it, or none.

Prints a line when it listens, then for each line on its input what it has come to, as JSON: CPU seconds of the thread
that runs the monitor and of the whole process, hearts, and what it counted. Ends with its input.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from hearts_load import allow_descriptors

#: Two connections for each of 9,000 hearts, and some more.
_DESCRIPTORS = 18_500

#: Seconds in which more pongs may come, before any is read.
_REST = 0.005

#: Seconds for the monitor to listen.
_PATIENCE = 30.0


class Ours:
    """A MonitorThread; with ``busy``, beside a main thread that computes all the time."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._failed: list[bytes] = []
        before = set(threading.enumerate())
        self.thread = self.kind(options.ping, options.pong, period=options.period)
        self.thread.start()
        self.thread.monitor.add_heart_failure_handler(self._failed.append)
        (self.python,) = set(threading.enumerate()) - before
        self._busy = options.busy
        self.listens = threading.Event()
        self.listens.set()

    @property
    def kind(self) -> Any:
        from pytest_ipcluster.hearts.thread import MonitorThread

        return MonitorThread

    def account(self) -> dict[str, Any]:
        monitor = self.thread.monitor
        return {
            "hearts": len(monitor.hearts),
            "failed": len(self._failed),
            "stalled": sum(event.kind == "stalled" for event in self.thread.events.since()),
            "pongs": {kind.value: count for kind, count in monitor.ledger.tally.items()},
        }

    def run(self) -> None:
        while self._busy:
            sum(number * number for number in range(10_000))
        threading.Event().wait()


class Apart(Ours):
    """A MonitorProcess. Its pongs are counted over there; its CPU time is that of both processes."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        import psutil

        assert isinstance(self.thread, self.kind)
        self._watcher = psutil.Process(self.thread.process.pid)

    @property
    def kind(self) -> Any:
        from pytest_ipcluster.hearts.process import MonitorProcess

        return MonitorProcess

    def account(self) -> dict[str, Any]:
        used = self._watcher.cpu_times()
        return {**super().account(), "process": time.process_time() + used.user + used.system}


class Theirs:
    """ipyparallel's HeartMonitor on its own loop in the main thread, by the function that its controller calls.

    It logs errors only: otherwise it would write a line for each late pong, and that would be charged to it.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        import zmq
        from ipyparallel.controller import heartmonitor

        monitors = self._monitors = list[Any]()
        listens = self.listens = threading.Event()

        class Kept(heartmonitor.HeartMonitor):  # type: ignore[misc]
            def start(self) -> None:
                super().start()
                monitors.append(self)
                listens.set()

        heartmonitor.HeartMonitor = Kept
        self._start = heartmonitor.start_heartmonitor
        self._options = options
        self.python = threading.main_thread()
        # What the hub would do: the monitor waits for somebody who listens to it.
        self._context = zmq.Context()
        hub = self._context.socket(zmq.SUB)
        hub.subscribe(b"")
        hub.bind("tcp://127.0.0.1:*")
        self._hub = hub.getsockopt_string(zmq.LAST_ENDPOINT)
        threading.Thread(target=_hear_all, args=(hub,), daemon=True).start()

    def account(self) -> dict[str, Any]:
        return {"hearts": len(self._monitors[0].hearts) if self._monitors else 0}

    def run(self) -> None:
        self._start(
            self._options.ping, self._options.pong, self._hub, logging.ERROR, period=round(self._options.period)
        )


class Bare:
    """No monitor: pings go out, and what comes in is read by two bare calls a pong, and thrown away.

    This is what pyzmq and libzmq take, so no monitor that has its pongs from a ROUTER can be cheaper.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        import zmq

        self._context = zmq.Context()
        self._pings, self._pongs = self._context.socket(zmq.PUB), self._context.socket(zmq.ROUTER)
        self._pings.bind(options.ping)
        self._pongs.bind(options.pong)
        self._period = options.period / 1000
        self._hearts: set[bytes] = set()
        self.python = threading.Thread(target=self._beat, daemon=True)
        self.python.start()
        self.listens = threading.Event()
        self.listens.set()

    def account(self) -> dict[str, Any]:
        return {"hearts": len(self._hearts)}

    def run(self) -> None:
        threading.Event().wait()

    def _beat(self) -> None:
        due = time.monotonic()
        while True:
            self._pings.send(b"ping")
            due += self._period
            while (left := due - time.monotonic()) > 0:
                if self._pongs.poll(1000 * left):
                    time.sleep(min(_REST, left))  # more pongs may come meanwhile: one wake-up for all
                    self._read()

    def _read(self) -> None:
        import zmq

        receive, again, add = self._pongs.recv, int(zmq.NOBLOCK), self._hearts.add
        with suppress(zmq.Again):
            while True:
                add(receive(again))
                receive(again)


def _hear_all(source: Any) -> None:
    while True:
        source.recv_multipart()


HOSTS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "thread": Ours,
    "process": Apart,
    "ipyparallel": Theirs,
    "bare": Bare,
}


def main() -> None:
    options = arguments().parse_args()
    allow_descriptors(_DESCRIPTORS)
    host = HOSTS[options.host](options)
    threading.Thread(target=answer, args=(host,), daemon=True).start()
    host.run()


def arguments() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("host", choices=sorted(HOSTS))
    made.add_argument("ping")
    made.add_argument("pong")
    made.add_argument("--period", type=float, default=100.0, help="milliseconds")
    made.add_argument("--busy", action="store_true", help="compute all the time in the main thread")
    return made


def answer(host: Any) -> None:
    """Answer each line with an account, once it listens; end the process when there are no more."""
    if not host.listens.wait(_PATIENCE):
        os._exit(1)
    print("{}", flush=True)
    clock = time.pthread_getcpuclockid(host.python.ident)
    for _ in sys.stdin:
        account = {"python": time.clock_gettime(clock), "process": time.process_time(), **host.account()}
        print(json.dumps(account), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
