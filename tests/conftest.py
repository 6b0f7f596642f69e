"""What all tests share: nothing that the suite starts may outlive it, and ports that nobody else is given."""

from __future__ import annotations

import importlib
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import psutil
import pytest
from tables import write_tables

from pytest_ipcluster.cluster.ports import HeldPorts
from pytest_ipcluster.cluster.processes import environment, is_alive, wait_gone
from pytest_ipcluster.report.leaks import PATIENCE, process_leak

_SUITE = "PYTEST_IPCLUSTER_SUITE"


def _of_this_suite(mark: str) -> list[psutil.Process]:
    others = (process for process in psutil.process_iter() if process.pid != os.getpid())
    return [process for process in others if environment(process).get(_SUITE) == mark and is_alive(process)]


@pytest.fixture(scope="session", autouse=True)
def nothing_outlives_the_suite() -> Iterator[None]:
    """Mark every process that a test starts, and fail the run when one of them is still there at the end."""
    outer, mark = os.environ.get(_SUITE), secrets.token_hex(8)
    os.environ[_SUITE] = mark
    yield
    if outer is None:
        del os.environ[_SUITE]
    else:
        os.environ[_SUITE] = outer
    left = wait_gone(_of_this_suite(mark), PATIENCE)
    told = [process_leak(process, {}).what for process in left]
    for process in left:
        process.kill()
    assert not left, "\n".join(told)


@pytest.fixture(scope="session", autouse=True)
def every_machine_tells_the_same() -> Iterator[None]:
    """Hide from runs inside tests that this is CI: there pytest does not cut the lines of its summary short."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CI", "BUILD_NUMBER"):
            patch.delenv(name, raising=False)
        yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    write_tables(terminalreporter)


@pytest.fixture
def held_ports() -> Iterator[list[int]]:
    """So many as a controller takes, which nobody else is given meanwhile."""
    held = HeldPorts()
    yield list(held.numbers)
    held.release()


@pytest.fixture
def given_ports(held_ports) -> list[str]:
    """Arguments of ipcluster for a cluster in a named profile, for which the product holds no ports."""
    return ["--", f"--ports={','.join(map(str, held_ports))}"]


@pytest.fixture
def load_benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Return a function that imports a module of the benchmarks."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    return importlib.import_module
