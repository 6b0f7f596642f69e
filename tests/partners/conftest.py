"""A run of pytest inside a test, with pytest-timeout and a cluster of which nothing is real but the calls."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from timers import Timers
from waiting import WHOLE_RUN

from pytest_ipcluster import keeper
from pytest_ipcluster.faults import injector


@dataclass(eq=False)
class Run:
    """One run inside a test. ``charged`` tells what was done to the cluster, and whether a timer ran meanwhile."""

    pytester: pytest.Pytester
    timers: Timers = field(default_factory=Timers)
    charged: list[tuple[str, bool]] = field(default_factory=list)

    def note(self, what: str) -> None:
        self.charged.append((what, self.timers.running))

    @pytest.hookimpl
    def pytest_runtest_call(self) -> None:
        self.note("test")

    def __call__(self, source: str, *args: str, timeout: bool = True) -> pytest.RunResult:
        self.pytester.makepyfile(test_it=source)
        plugins = ["-p", "ipcluster", *(["-p", "timeout"] if timeout else [])]
        stand_ins = [self, *([self.timers] if timeout else [])]
        return self.pytester.runpytest_inprocess(*plugins, "-p", "no:cacheprovider", *args, plugins=stand_ins)


def keeper_of(run: Run) -> type:  # noqa: C901 - one small class
    class Keeper:
        """Notes what is asked of it."""

        hearts = events = cluster = folder = None
        deaths = SimpleNamespace(allow=None, allow_members=None)

        def __init__(self, *_: object, boss: int | None) -> None:  # noqa: ARG002
            run.note("keeper")

        def provide(self, shape, config):  # noqa: ARG002
            run.note("provide")
            return shape

        @contextmanager
        def client(self) -> Iterator[None]:
            run.note("client")
            yield None

        def watch(self, item):  # noqa: ARG002
            return nullcontext()

        def restore(self) -> None:
            run.note("restore")

        def raise_handler_errors(self) -> None:
            """Raise nothing."""

        def expire_at(self, limit: float | None, holds: object) -> None:
            """End nothing: nothing waits."""

        def allow_restart(self) -> None:
            """Allow what is never done here."""

        def renew(self, shape: object) -> None:
            """Repair nothing: nothing breaks."""

        def close(self) -> None:
            run.note("close")

    return Keeper


def injector_of(run: Run) -> type:
    class FaultInjector:
        def __init__(self, *_: object, **__: object) -> None:
            run.note("injector")

        def close(self) -> None:
            run.note("undo")

    return FaultInjector


@pytest.fixture
def surroundings(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in list(os.environ):
        if name.startswith(("PYTEST_IPCLUSTER_", "PYTEST_TIMEOUT")) and name != "PYTEST_IPCLUSTER_SUITE":
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.fixture
def inside(pytester: pytest.Pytester, surroundings: pytest.MonkeyPatch) -> Run:
    surroundings.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # so that each plugin is loaded once, by its name
    run = Run(pytester)
    # On modules that are imported above: those that a test imports are forgotten after it, and imported again.
    surroundings.setattr(keeper, "Keeper", keeper_of(run))
    surroundings.setattr(injector, "FaultInjector", injector_of(run))
    return run


@pytest.fixture
def outside(pytester: pytest.Pytester, surroundings: pytest.MonkeyPatch):  # noqa: ARG001
    """Run pytest on a test file in a process of its own, with real timers; ``stdin`` is what somebody types."""

    def run(source: str, *args: str, stdin: str = "", **files: str) -> pytest.RunResult:
        pytester.makepyfile(test_it=source, **files)
        command = pytester._getpytestargs()
        return pytester.run(*command, "-p", "no:cacheprovider", *args, stdin=stdin.encode(), timeout=WHOLE_RUN)

    return run
