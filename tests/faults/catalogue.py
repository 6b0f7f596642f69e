"""What hangs on plain ipyparallel: pairs of a fault and a call, and the way to try one out, with us or without.

A scenario is one fault on one cluster, with all its calls at once: those that wait already when it comes, and those
that are made after it. The control run without us is ``benchmarks/hang_catalogue.py``.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq
from ipyparallel.serialize import serialize_object
from traitlets.config import Config

from pytest_ipcluster import BackgroundCluster, EngineSetup
from pytest_ipcluster.cluster.processes import send_signal, wait_gone

#: Seconds for what must come.
SOON = 30.0

#: What a task that was held says when it is let go.
HELD = "let go"

ENGINE, SCHEDULER, CONTROLLER = "EngineLost", "SchedulerLost", "ControllerLost"


# -- what runs on engines ------------------------------------------------------------------------------


def hold(folder: str) -> str:
    """Tell that it runs, and go on until it is let go; when the folder is gone, nobody waits any more."""
    go = os.path.join(folder, "go")
    with suppress(FileNotFoundError):
        tempfile.mkstemp(dir=folder, prefix="runs-")
    while os.path.isdir(folder) and not os.path.exists(go):
        time.sleep(0.01)
    return HELD


def poison() -> None:
    """Kill the engine that it runs on."""
    os.kill(os.getpid(), signal.SIGKILL)


# -- calls ---------------------------------------------------------------------------------------------


@dataclass
class Bench:
    """A client, and a folder in which held tasks say that they run, and learn that they may end."""

    client: Any
    folder: Path

    def wait_until_held(self) -> None:
        deadline = time.monotonic() + SOON
        while not list(self.folder.glob("runs-*")):
            assert time.monotonic() < deadline, "no task has begun"
            time.sleep(0.005)  # a file of another process's announces itself by no event

    def let_go(self) -> None:
        (self.folder / "go").touch()


Waiter = Callable[[], Any]


def _output(bench: Bench) -> Any:
    return bench.client[0].execute("print('said')", block=False)


def _shown(bench: Bench) -> Any:
    result = _output(bench)
    result.get()
    return result.display_outputs()


#: Every call: it is made, and returns what waits for the answer. Those that are blocking wait in there only.
CALLS: dict[str, Callable[[Bench], Waiter]] = {
    "apply": lambda b: b.client[0].apply_async(hold, str(b.folder)).get,
    "apply on all": lambda b: b.client[:].apply_async(hold, str(b.folder)).get,
    "broadcast": lambda b: b.client.broadcast_view().apply_async(hold, str(b.folder)).get,
    "coalescing": lambda b: b.client.broadcast_view(is_coalescing=True).apply_async(hold, str(b.folder)).get,
    "balanced": lambda b: b.client.load_balanced_view().apply_async(hold, str(b.folder)).get,
    "poison": lambda b: b.client.load_balanced_view(retries=5).apply_async(poison).get,
    "abs": lambda b: lambda: b.client[0].apply_sync(abs, -1),
    "push": lambda b: lambda: b.client[0].push({"a": 1}, block=True),
    "pull": lambda b: lambda: b.client[0].pull("__name__", block=True),
    "execute": lambda b: lambda: b.client[0].execute("1", block=True).get(),
    "map": lambda b: lambda: b.client[:].map_sync(abs, range(4)),
    "broadcast abs": lambda b: lambda: b.client.broadcast_view().apply_sync(abs, -1),
    "coalescing abs": lambda b: lambda: b.client.broadcast_view(is_coalescing=True).apply_sync(abs, -1),
    "balanced abs": lambda b: lambda: b.client.load_balanced_view().apply_sync(abs, -1),
    "balanced map": lambda b: lambda: b.client.load_balanced_view().map_sync(abs, range(4)),
    "executor": lambda b: lambda: b.client.executor().submit(abs, -1).result(),
    "clear": lambda b: lambda: b.client.clear(targets=0, block=True),
    "abort": lambda b: lambda: b.client.abort("nothing", targets=0, block=True),
    "send_signal": lambda b: lambda: b.client.send_signal(0, targets=0, block=True),
    "shutdown": lambda b: lambda: b.client.shutdown(targets=0, block=True),
    "queue_status": lambda b: lambda: type(b.client.queue_status()).__name__,
    "hub_history": lambda b: lambda: type(b.client.hub_history()).__name__,
    "db_query": lambda b: lambda: b.client.db_query({"msg_id": "nothing"}),
    "purge": lambda b: lambda: b.client.purge_hub_results("all"),
    "wait_for_engines": lambda b: lambda: b.client.wait_for_engines(99, interactive=False),
    "wait_for_output": lambda b: _output(b).wait_for_output,
    "display_outputs": lambda b: lambda: _shown(b),
    "execute and print": lambda b: lambda: b.client[0].execute("print('said')", silent=False, block=True).get() and 1,
}


@dataclass
class Outcome:
    """How a call ended, ``seconds`` after it waited for the fault, at ``since``; None of both when it did not."""

    told: str = "never"
    error: BaseException | None = None
    seconds: float | None = None
    since: float | None = None


class Waiting(threading.Thread):
    """Waits for one answer; on a daemon thread, since it may be for ever."""

    def __init__(self, make: Callable[[], Waiter]) -> None:
        super().__init__(daemon=True)
        self.outcome = Outcome()
        self._make = make
        self.since = time.monotonic()
        self.start()

    def run(self) -> None:
        try:
            told, error = repr(self._make()()), None
        except Exception as raised:  # whatever it is, it is the outcome
            told, error = getattr(raised, "ename", None) or type(raised).__name__, raised
            told = _names(raised) or told
        self.outcome = Outcome(told, error, max(0.0, time.monotonic() - self.since), self.since)


def _names(error: Any) -> str:
    """Return what a CompositeError is made of."""
    return ", ".join(sorted({one[0] for one in error.elist})) if hasattr(error, "elist") else ""


# -- faults --------------------------------------------------------------------------------------------

PARTS = ("controller", "scheduler", "relay", "monitor")
EVERYTHING = ("everything of the controller",)


def victims(cluster: BackgroundCluster, *roles: str, slot: int | None = None) -> list[Any]:
    """Return the processes in these roles, in this order; EVERYTHING is the hub and its children."""
    found = cluster.roll_call().members
    if roles == EVERYTHING:
        return [one.process for one in found if any(part in one.role for part in PARTS)]
    return [one.process for role in roles for one in found if one.role == role and slot in (None, one.slot)]


@dataclass(frozen=True)
class Fault:
    """Who is hurt and how; what it takes to have the cluster as new: a word of :meth:`Scenario.heal`."""

    name: str
    roles: tuple[str, ...]
    slot: int | None = None
    stop: bool = False
    heal: str = "restart"

    def strike(self, cluster: BackgroundCluster) -> None:
        """Hurt them, and wait until that has had its effect: until then calls may be answered."""
        hurt = victims(cluster, *self.roles, slot=self.slot)
        assert hurt, self
        engines = [one for one in cluster.engines if self.roles == ("engine",) and self.slot in (None, one.slot)]
        for process in hurt:
            send_signal(process, signal.SIGSTOP if self.stop else signal.SIGKILL)
            if self.roles == EVERYTHING:  # the hub is the first of them, and the biggest: it takes longest to go
                assert wait_gone([process], SOON) == set()
        if not self.stop:
            assert wait_gone(hurt, SOON) == set()
            for engine in engines:
                cluster.slots.wait_dropped(engine.ident, SOON)

    def resume(self, cluster: BackgroundCluster) -> None:
        for process in victims(cluster, *self.roles, slot=self.slot):
            send_signal(process, signal.SIGCONT)


def _kill(name: str, *roles: str, slot: int | None = None, heal: str = "restart") -> Fault:
    return Fault(f"kill {name}", roles, slot, heal=heal)


def _stop(name: str, *roles: str, slot: int | None = None) -> Fault:
    return Fault(f"stop {name}", roles, slot, stop=True, heal="resume" if slot is None else "replace")


@dataclass(frozen=True)
class Row:
    """A call, made ``before`` the fault or after it, and what comes of it: a name of ours, or what plain has too."""

    fault: Fault
    call: str
    expected: str
    before: bool = False
    hangs: bool = True

    def __str__(self) -> str:
        return f"{self.fault.name}: {self.call}{' before' * self.before}"


def _rows(fault: Fault, expected: str, before: str = "", after: str = "", **same: str) -> list[Row]:
    """``before`` and ``after`` hang; ``same``, after it as well, do not, and have these results."""
    rows = [Row(fault, call, expected, before=True) for call in filter(None, before.split(", "))]
    rows += [Row(fault, call, expected) for call in filter(None, after.split(", "))]
    return rows + [Row(fault, _call(name), result, hangs=False) for name, result in same.items()]


def _call(name: str) -> str:
    return name if name in CALLS else name.replace("_", " ")


FINE = {"abs": "1", "balanced_abs": "1", "broadcast_abs": "[1, 1]"}
_BOTH_BROADCASTS = "broadcast abs, coalescing abs"

ROWS: list[Row] = [
    *_rows(_stop("the direct scheduler", "direct scheduler"), SCHEDULER, "apply", "push, abs", balanced_abs="1"),
    *_rows(_stop("the task scheduler", "task scheduler"), SCHEDULER, "balanced", "executor", abs="1"),
    *_rows(_stop("the control scheduler", "control scheduler"), SCHEDULER, "", "clear, abort", **FINE),
    *_rows(_stop("the broadcast scheduler", "broadcast scheduler"), SCHEDULER, "", _BOTH_BROADCASTS, abs="1"),
    *_rows(_stop("a leaf", "broadcast scheduler (leaf 1)"), SCHEDULER, "", _BOTH_BROADCASTS, abs="1"),
    *_rows(_stop("the iopub relay", "iopub relay"), SCHEDULER, "", "wait_for_output, execute and print", **FINE),
    *_rows(_stop("the hub", "controller"), CONTROLLER, "", "queue_status, hub_history, db_query, purge", **FINE),
    *_rows(_stop("an engine", "engine", slot=0), ENGINE, "", "clear, abort, shutdown", queue_status="'dict'"),
    *_rows(_stop("a nanny", "nanny", slot=0), ENGINE, "", "send_signal, clear, abort, shutdown", **FINE),
    *_rows(
        _kill("a nanny", "nanny", slot=0, heal="restore"), ENGINE, "", "send_signal, clear, abort, shutdown", **FINE
    ),
    *_rows(
        # The nanny first: it would tell the hub of the engine's end.
        _kill("an engine and its nanny", "nanny", "engine", slot=0, heal="restore"),
        ENGINE,
        "",
        "send_signal, clear, abort, shutdown",
    ),
    Row(_kill("an engine", "engine", slot=0, heal="restore"), "apply", "EngineError", before=True, hangs=False),
    Row(_kill("an engine", "engine", slot=0, heal="restore"), "coalescing", "EngineError", before=True, hangs=False),
    Row(_kill("an engine", "engine", slot=0, heal="restore"), "balanced abs", "1", hangs=False),
    *_rows(
        _kill("all engines", "engine", heal="restore"),
        ENGINE,
        "",
        "balanced abs, balanced map, executor",
    ),
    # A task with retries that kills its engine; the scheduler would give it to every new one as well.
    Row(_kill("one of two engines", "engine", slot=1), "poison", ENGINE),
    *_rows(
        _kill("the direct scheduler", "direct scheduler"),
        SCHEDULER,
        "apply, apply on all",
        "push, pull, execute, map",
        balanced_abs="1",
        broadcast_abs="[1, 1]",
        queue_status="'dict'",
    ),
    *_rows(
        _kill("the task scheduler", "task scheduler"),
        SCHEDULER,
        "balanced",
        "balanced map, executor",
        abs="1",
        broadcast_abs="[1, 1]",
    ),
    *_rows(
        _kill("the control scheduler", "control scheduler"),
        SCHEDULER,
        "",
        "clear, abort, send_signal, shutdown",
        **FINE,
    ),
    *_rows(
        _kill("the broadcast scheduler", "broadcast scheduler"),
        SCHEDULER,
        "broadcast, coalescing",
        _BOTH_BROADCASTS,
        abs="1",
        balanced_abs="1",
    ),
    *_rows(_kill("a leaf", "broadcast scheduler (leaf 0)"), SCHEDULER, "", _BOTH_BROADCASTS, abs="1"),
    *_rows(_kill("the other leaf", "broadcast scheduler (leaf 1)"), SCHEDULER, "", _BOTH_BROADCASTS, abs="1"),
    *_rows(
        _kill("the iopub relay", "iopub relay"),
        SCHEDULER,
        "",
        "wait_for_output, display_outputs, execute and print",
        **FINE,
    ),
    *_rows(_kill("the heart monitor", "heart monitor of the hub"), CONTROLLER, "wait_for_engines", "", **FINE),
    *_rows(
        _kill("the hub", "controller"),
        CONTROLLER,
        "wait_for_engines",
        "queue_status, hub_history, db_query, purge, apply, balanced, broadcast",
    ),
    *_rows(
        _kill("the whole controller", *EVERYTHING),
        CONTROLLER,
        "apply, balanced, broadcast",
        "queue_status, clear",
    ),
]

FAULTS = list(dict.fromkeys(row.fault for row in ROWS))


# -- a scenario ----------------------------------------------------------------------------------------


def new_cluster(*, network: bool = False, **config: Any) -> BackgroundCluster:
    """Make a cluster of two engines on which the functions of this file can be imported; it is not started."""
    setup = EngineSetup(importable=(str(Path(__file__).parent),))
    traits = {"cluster_config": Config({"HeartMonitor": config})} if config else {}
    return BackgroundCluster(n=2, private=True, silent=True, engine_setup=setup, network=network, **traits)


@contextmanager
def connected(cluster: BackgroundCluster) -> Iterator[Bench]:
    """Connect a client of its own, on a context of its own: what it has not sent must not hold up the end."""
    context = zmq.Context()
    context.setsockopt(zmq.LINGER, 0)  # for sockets that the client's loop closes
    with tempfile.TemporaryDirectory(prefix="hangs-") as folder:
        client = cluster.client(context=context, timeout=SOON)
        bench = Bench(client, Path(folder))
        serialize_object(0)  # the first time it fills a table, which several threads at once would break
        try:
            yield bench
        finally:
            bench.let_go()
            client.close(linger=0)
            context.destroy(linger=0)


@dataclass
class Scenario:
    """One fault with all its calls: ``outcomes`` by row, when it has been run."""

    fault: Fault
    outcomes: dict[Row, Outcome] = field(default_factory=dict)

    def run(self, cluster: BackgroundCluster, bench: Bench, cap: float) -> None:
        """Make the calls and hurt the cluster; wait at most ``cap`` seconds for what may hang."""
        rows = [row for row in ROWS if row.fault == self.fault]
        waiting = {row: Waiting(_now(CALLS[row.call](bench))) for row in rows if row.before}
        if any(row.call in ("apply", "balanced", "broadcast", "coalescing") for row in waiting):
            bench.wait_until_held()
        self.fault.strike(cluster)
        struck = time.monotonic()
        for one in waiting.values():
            one.since = struck
        waiting |= {row: Waiting(lambda row=row: CALLS[row.call](bench)) for row in rows if not row.before}
        self._wait([waiting[row] for row in rows if row.hangs], cap)
        bench.let_go()
        self._wait([waiting[row] for row in rows if not row.hangs], SOON)
        self.outcomes = {row: one.outcome for row, one in waiting.items()}

    def _wait(self, waiting: list[Waiting], cap: float) -> None:
        deadline = time.monotonic() + cap
        for one in waiting:
            one.join(max(0.0, deadline - time.monotonic()))

    def heal(self, cluster: BackgroundCluster) -> None:
        """Have the cluster as it was, when its client is gone."""
        if self.fault.heal == "resume":
            self.fault.resume(cluster)
        elif self.fault.heal == "replace":  # when it goes on it may find that it was told to end
            cluster.replace([0], timeout=SOON)
        elif self.fault.heal == "restore":
            cluster.restore(timeout=SOON)
        else:
            cluster.stop()


def _now(waiter: Waiter) -> Callable[[], Waiter]:
    return lambda: waiter


class Clusters:
    """One cluster at a time, for as many scenarios as it survives; each scenario is run once.

    ``cap`` is how many seconds a call gets. ``guard`` watches over a cluster and a client, as Deadman does. ``monitor``
    is the configuration of the hub's heart monitor.
    """

    def __init__(
        self, cap: float, guard: Callable[[BackgroundCluster, Any], Any] | None = None, **monitor: Any
    ) -> None:
        self._cap = cap
        self._guard = guard
        self._monitor = monitor
        self._cluster: BackgroundCluster | None = None
        self._scenarios: dict[Fault, Scenario] = {}

    def outcome(self, row: Row) -> Outcome:
        """Return how this call ended; its scenario is run when it has not been."""
        if row.fault not in self._scenarios:
            self._scenarios[row.fault] = self._run(Scenario(row.fault))
        return self._scenarios[row.fault].outcomes[row]

    def _run(self, scenario: Scenario) -> Scenario:
        cluster = self._running()
        try:
            with (
                connected(cluster) as bench,
                nullcontext() if self._guard is None else self._guard(cluster, bench.client),
            ):
                scenario.run(cluster, bench, self._cap)
            scenario.heal(cluster)
        except BaseException:
            self.stop()
            raise
        if scenario.fault.heal == "restart":
            self._cluster = None
        return scenario

    def _running(self) -> BackgroundCluster:
        if self._cluster is None:
            self._cluster = new_cluster(**self._monitor)
            self._cluster.bring_up()
        return self._cluster

    def stop(self) -> None:
        """Stop the cluster that runs, if any."""
        cluster, self._cluster = self._cluster, None
        if cluster is not None:
            cluster.stop()
