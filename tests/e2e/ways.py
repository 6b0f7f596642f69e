"""The ways for a run to end: what pytest is given, what is done to it, and what shows that it ended so."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass

from acts import (
    become_another_program,
    by_itself,
    ctrl_c,
    ctrl_c_in_workers,
    ctrl_c_thrice,
    ctrl_c_twice,
    fork_and_go,
    in_the_start,
    kill_above_workers,
    kill_forkserver,
    kill_group,
    kill_hub,
    kill_in_the_stop,
    kill_ipcluster,
    kill_warden,
    kill_with_busy_engines,
    kill_with_escapee,
    kill_with_fork,
    kill_with_frozen_tree,
    not_up,
    nothing_started,
    send,
    workers_by_themselves,
)
from inner import Run

__all__ = ["CLUSTER", "FROM_OUTSIDE", "FROM_WITHIN", "OTHER_PLUGINS", "WAYS", "Ending"]

#: A test that tells that it runs, and goes on when it is told to.
HERE = "tell('here'); wait()"
STAYS = "tell('here'); stay()"

HEAD = "import ctypes, os, signal, sys, time, pytest\nfrom moments import *\n"

TEST = """
def test_it(up, ipcluster, ipcluster_client, stopping):
    {}
"""


@dataclass(frozen=True, slots=True)
class Ending:
    """One way to end.

    ``body`` is that of the only test, unless ``source`` is a whole module; ``other`` is a second module. ``act``
    ends the run from outside, or sees it end; ``codes`` are the exit codes that show that it ended so, ``told`` is a
    pattern that its output must show, ``never`` a word that it must not have said. ``lives_on``: the process that
    was pytest goes on as another program, and is told to end after the check.
    """

    way: str
    codes: tuple[int, ...]
    body: str = HERE
    act: Callable[[Run], None] = by_itself
    told: str = ""
    never: str = ""
    source: str = ""
    other: str = ""
    conftest: str = ""
    arguments: tuple[str, ...] = ()
    lives_on: bool = False

    @property
    def module(self) -> str:
        """The source of the test module."""
        return HEAD + (self.source or TEST.format(self.body))


AFTER_THE_CLUSTER = """
@pytest.fixture
def mine(up, stopping):
    {}
    yield
    {}
def test_it(mine): pass
"""

IN_THE_TEARDOWN = """
@pytest.fixture(scope="session")
def waiting(stopping):
    yield
    tell("in the teardown"); wait()
def test_it(up, waiting):
    tell("here"); wait()
"""

OVER_TIME = """
@pytest.mark.timeout(0.3, method="{}", func_only=True)
def test_it(up, stopping): wait()
"""

OVER_TIME_IN_THE_TEARDOWN = """
def test_cluster(up, stopping): pass

@pytest.fixture
def slow():
    yield
    wait()

@pytest.mark.timeout(2, method="{}")
def test_it(slow): pass
"""

WORKERS = """
@pytest.mark.parametrize("number", [0, 1])
def test_it(up, number):
    {}
"""

FORK = """child = os.fork()
    if child == 0:
        time.sleep(60)  # bounded; whoever started the run ends it earlier
        os._exit(0)
    tell("forked", child=child); wait()"""

EXEC = "os.execv(sys.executable, [sys.executable, '-c', {!r}])"
ANOTHER = "from moments import *; tell('another'); wait(); raise SystemExit(42)"

REPORT_AT_FINISH = """
import psutil
def pytest_sessionfinish():
    children = [child.pid for child in psutil.Process().children(recursive=True)]
    tell("finish", children=children, temp=os.listdir(os.environ["TMPDIR"]))
"""

BROKEN_HOOK = """
def pytest_runtest_logreport(report):
    if report.when == "call":
        raise RuntimeError("a hook that raises")
"""

#: The start does not end before the run is told to go on, so that whatever comes early in it comes in time.
LONG_START = """
from pytest_ipcluster.cluster.background import BackgroundCluster

def wait_for_engines(self, *arguments, real=BackgroundCluster.wait_for_engines, **named):
    real(self, *arguments, **named)
    wait()

BackgroundCluster.wait_for_engines = wait_for_engines
"""

#: The run tells that the stop of its cluster has ended the engines, and stops the rest when it is told to.
LONG_STOP = """
from pytest_ipcluster.cluster import stopping as stop

def wait_gone(*arguments, real=stop.wait_gone):
    left = real(*arguments)
    stop.wait_gone = real  # once: whoever is interrupted here stops the cluster again
    tell("in the stop")
    wait()
    return left

stop.wait_gone = wait_gone
"""

TIMEOUT = r"\+ Timeout \+"

# The exit code of a run that Ctrl-C ends again while it ends is Python's own, or the signal's.
INTERRUPTED_AGAIN = (2, -signal.SIGINT)

# How a test fails whose cluster has lost a part that no fault of the test has ended.
DIED = r"UnexpectedDeathError: {} \(pid \d+\) died during .* killed by SIGKILL"

FROM_WITHIN = [
    Ending("a test passes", (0,), "pass", told="1 passed"),
    Ending("a test fails", (1,), "assert 'this' == 'that'", told="AssertionError: assert 'this'"),
    Ending(
        "a fixture's setup fails",
        (1,),
        source=AFTER_THE_CLUSTER.format("raise LookupError('in the setup')", "pass"),
        told="LookupError: in the setup",
    ),
    Ending(
        "a fixture's teardown fails",
        (1,),
        source=AFTER_THE_CLUSTER.format("pass", "raise LookupError('in the teardown')"),
        told="LookupError: in the teardown",
    ),
    Ending(
        "the cluster cannot start",
        (1,),
        act=not_up,
        arguments=("--ipcluster-args=-- --nosuch",),
        told="ClusterStartError: .*--nosuch",
        never="up",
    ),
    Ending(
        "no test is collected",
        (5,),
        act=nothing_started,
        arguments=("-k", "nothing"),
        conftest=REPORT_AT_FINISH,
        told="1 deselected",
        never="up",
    ),
    Ending(
        "the collection fails",
        (2,),
        act=nothing_started,
        other="import nowhere",
        conftest=REPORT_AT_FINISH,
        told="1 error during collection",
        never="up",
    ),
    Ending(
        "the collection fails, and tests run all the same",
        (1,),
        "pass",
        other="import nowhere",
        arguments=("--continue-on-collection-errors",),
        told="1 passed, 1 error",
    ),
    Ending("sys.exit in a test", (1,), "sys.exit(5)", told="SystemExit: 5"),
    Ending("pytest.exit in a test", (9,), "pytest.exit('enough', returncode=9)", told="Exit: enough"),
    Ending(
        "an internal error of pytest", (3,), "pass", conftest=BROKEN_HOOK, told="INTERNALERROR> RuntimeError: a hook"
    ),
    Ending("os._exit in a test", (77,), "os._exit(77)", never="torn down"),
    Ending(
        "a segmentation fault",
        (-signal.SIGSEGV,),
        "ctypes.string_at(0)",
        told="Fatal Python error: Segmentation fault",
        never="torn down",
    ),
    Ending("abort", (-signal.SIGABRT,), "os.abort()", told="Fatal Python error: Aborted", never="torn down"),
    Ending("exec of a short program", (41,), EXEC.format("raise SystemExit(41)"), never="torn down"),
    Ending(
        "exec of a program that goes on",
        (42,),
        EXEC.format(ANOTHER),
        act=become_another_program,
        lives_on=True,
        never="torn down",
    ),
    Ending("a test passes, its forked child lives on", (0,), FORK, act=fork_and_go, told="1 passed"),
]

OTHER_PLUGINS = [
    Ending("pytest-timeout, method thread", (1,), source=OVER_TIME.format("thread"), told=TIMEOUT, never="torn down"),
    Ending("pytest-timeout, method signal", (1,), source=OVER_TIME.format("signal"), told="Failed: Timeout"),
    Ending(
        "pytest-timeout in a teardown, method thread",
        (1,),
        source=OVER_TIME_IN_THE_TEARDOWN.format("thread"),
        told=TIMEOUT,
        never="torn down",
    ),
    Ending(
        "pytest-timeout in a teardown, method signal",
        (1,),
        source=OVER_TIME_IN_THE_TEARDOWN.format("signal"),
        told="2 passed, 1 error",
    ),
    Ending(
        "pytest-xdist, two workers pass",
        (0,),
        act=workers_by_themselves,
        source=WORKERS.format("pass"),
        arguments=("-n2",),
        told="2 passed",
    ),
    Ending(
        "pytest-xdist, os._exit in a worker",
        (1,),
        act=workers_by_themselves,
        source=WORKERS.format("number or os._exit(1)"),
        arguments=("-n2",),
        told="worker 'gw[01]' crashed while running",
    ),
    Ending(
        "pytest-xdist, Ctrl-C",
        (2,),
        act=ctrl_c_in_workers,
        source=WORKERS.format(STAYS),
        arguments=("-n2",),
        told="KeyboardInterrupt",
    ),
    Ending(
        "pytest-xdist, SIGKILL of the main process",
        (-signal.SIGKILL,),
        act=kill_above_workers,
        source=WORKERS.format(STAYS),
        arguments=("-n2",),
    ),
]

FROM_OUTSIDE = [
    Ending(
        "Ctrl-C during the start",
        (2,),
        act=in_the_start("ipcluster-*/ipython/*/security/*client.json", signal.SIGINT),
        conftest=LONG_START,
        told="KeyboardInterrupt|no tests ran",
        never="up",
    ),
    Ending("Ctrl-C in a test", (2,), act=ctrl_c, told="KeyboardInterrupt"),
    Ending(
        "Ctrl-C in a teardown",
        (2,),
        act=ctrl_c,
        source=AFTER_THE_CLUSTER.format("pass", HERE),
        told="KeyboardInterrupt",
    ),
    Ending("Ctrl-C twice", INTERRUPTED_AGAIN, act=ctrl_c_twice, source=IN_THE_TEARDOWN, told="KeyboardInterrupt"),
    Ending(
        "Ctrl-C thrice",
        INTERRUPTED_AGAIN,
        act=ctrl_c_thrice,
        source=IN_THE_TEARDOWN,
        conftest=LONG_STOP,
        told="KeyboardInterrupt",
    ),
    Ending("SIGTERM", (-signal.SIGTERM,), act=send(signal.SIGTERM), never="torn down"),
    Ending("SIGHUP", (-signal.SIGHUP,), act=send(signal.SIGHUP), never="torn down"),
    Ending("SIGQUIT", (-signal.SIGQUIT,), act=send(signal.SIGQUIT), never="torn down"),
    Ending("SIGKILL", (-signal.SIGKILL,), act=send(signal.SIGKILL), never="torn down"),
    Ending("SIGKILL of the process group", (-signal.SIGKILL,), act=kill_group, never="torn down"),
    Ending(
        "SIGKILL as ipcluster starts",
        (-signal.SIGKILL,),
        act=in_the_start("ipcluster-*/log/ipcluster.log", signal.SIGKILL),
        conftest=LONG_START,
        never="up",
    ),
    Ending(
        "SIGKILL as the engines start",
        (-signal.SIGKILL,),
        act=in_the_start("ipcluster-*/cards/*", signal.SIGKILL),
        conftest=LONG_START,
        never="up",
    ),
    Ending(
        "SIGKILL during the stop",
        (-signal.SIGKILL,),
        "pass",
        act=kill_in_the_stop,
        conftest=LONG_STOP,
        never="torn down",
    ),
]

CLUSTER = [
    Ending("SIGKILL of ipcluster", (1,), act=kill_ipcluster, told=DIED.format("ipcluster")),
    Ending("SIGKILL of the controller", (1,), act=kill_hub, told=DIED.format("the controller")),
    Ending("SIGKILL of the warden", (1,), act=kill_warden, told=r"the warden \(pid \d+\)"),
    Ending("SIGKILL of the forkserver", (1,), act=kill_forkserver, told=DIED.format("the forkserver")),
    Ending(
        "SIGKILL, engines busy for ever",
        (-signal.SIGKILL,),
        "ipcluster_client[:].apply_async(spin); wait()",
        act=kill_with_busy_engines,
        arguments=("--ipcluster-n=2",),
        never="torn down",
    ),
    Ending("SIGKILL, the whole tree frozen", (-signal.SIGKILL,), act=kill_with_frozen_tree, never="torn down"),
    Ending("SIGKILL, a forked child lives on", (-signal.SIGKILL,), FORK, act=kill_with_fork, never="torn down"),
    Ending(
        "SIGKILL, a process has escaped from an engine",
        (-signal.SIGKILL,),
        "tell('escaped', pid=ipcluster_client[0].apply_sync(escape)); wait()",
        act=kill_with_escapee,
        never="torn down",
    ),
]

WAYS = [*FROM_WITHIN, *OTHER_PLUGINS, *FROM_OUTSIDE, *CLUSTER]
