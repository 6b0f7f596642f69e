"""Runs of pytest in a folder of their own, as a reader of the documentation has them."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import entry_points

import psutil
import pytest
from pages import ROOT
from waiting import WHOLE_RUN

from pytest_ipcluster.cluster.processes import MARK, environment


@dataclass
class Reader:
    """Somebody who pastes what a page says into an empty folder, and runs it."""

    pytester: pytest.Pytester
    token: str = field(default_factory=lambda: secrets.token_hex(8))

    def paste(self, files: dict[str, str]) -> None:
        for name, source in files.items():
            (self.pytester.path / name).write_text(source, encoding="utf-8")

    def pytest(self, *args: str) -> pytest.RunResult:
        loading = () if _is_installed() else ("-p", "pytest_ipcluster.plugin")
        return self.pytester.runpytest_subprocess(*loading, "-p", "no:cacheprovider", *args, timeout=WHOLE_RUN)

    def scripts(self, *names: str) -> dict[str, tuple[int, str]]:
        """Run scripts beside each other; return their exit codes and output."""
        started = {
            name: subprocess.Popen(
                [sys.executable, name],
                cwd=self.pytester.path,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for name in names
        }
        output = {name: process.communicate(timeout=WHOLE_RUN)[0] for name, process in started.items()}
        return {name: (process.returncode, output[name]) for name, process in started.items()}

    def left_behind(self) -> list[psutil.Process]:
        """Return the processes of clusters that this reader's runs have left."""
        return [p for p in psutil.process_iter() if _is_left(p, self.token)]


def _is_left(process: psutil.Process, token: str) -> bool:
    given = environment(process)
    return given.get("READER_TOKEN") == token and MARK in given


def _is_installed() -> bool:
    return any(entry.value == "pytest_ipcluster.plugin" for entry in entry_points(group="pytest11"))


@pytest.fixture
def reader(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    for name in list(os.environ):
        if name.startswith(("PYTEST_IPCLUSTER_", "PYTEST_XDIST_")) or name == "IPYTHONDIR":
            monkeypatch.delenv(name)
    reader = Reader(pytester)
    monkeypatch.setenv("READER_TOKEN", reader.token)
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    yield reader
    assert reader.left_behind() == []
