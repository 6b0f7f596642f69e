"""What the warden takes for its own from ipcluster's file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pytest_ipcluster.cluster.warden import _filed

LOCAL = "ipyparallel.cluster.launcher.Local{}Launcher"


@pytest.fixture
def child() -> Iterator[psutil.Process]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield psutil.Process(process.pid)
    process.communicate()


def written(path: Path, pid: int, *, controller: str = LOCAL.format("Controller"), after: float = 1.0) -> Path:
    engines = {
        "class": "ipyparallel.cluster.launcher.SSHEngineSetLauncher",
        "sets": {"1": {"engines": {"0": {"pid": pid}}}},
    }
    path.write_text(json.dumps({"controller": {"class": controller, "state": {"pid": pid}}, "engines": engines}))
    at = psutil.Process(pid).create_time() + after
    os.utime(path, (at, at))
    return path


def test_a_process_that_began_between_the_warden_and_the_writing_is_taken(tmp_path, child):
    assert list(_filed(written(tmp_path / "file", child.pid), time.time() - 60)) == [child]


def test_engines_of_a_local_launcher_are_taken(tmp_path, child):
    path = tmp_path / "file"
    sets = {"1": {"engines": {"0": {"pid": child.pid}, "1": {"pid": None}}}}
    path.write_text(json.dumps({"engines": {"class": LOCAL.format("EngineSet"), "sets": sets}}))
    os.utime(path, (time.time() + 60, time.time() + 60))
    assert list(_filed(path, 0.0)) == [child]


def test_a_process_that_was_given_the_pid_later_is_not(tmp_path, child):
    assert list(_filed(written(tmp_path / "file", child.pid, after=-1.0), time.time() - 60)) == []


def test_a_process_that_is_older_than_the_warden_is_not(tmp_path, child):
    assert list(_filed(written(tmp_path / "file", child.pid), child.create_time() + 30)) == []


def test_a_pid_of_another_host_is_not(tmp_path, child):
    path = written(tmp_path / "file", child.pid, controller="ipyparallel.cluster.launcher.SSHControllerLauncher")
    assert list(_filed(path, 0.0)) == []


def test_a_pid_that_nobody_has_is_not(tmp_path, child):
    path = written(tmp_path / "file", child.pid)
    path.write_text(path.read_text().replace(str(child.pid), str(2**22 + 1)))
    assert list(_filed(path, 0.0)) == []


@pytest.mark.parametrize("text", ["", "{", "null is not it"])
def test_a_file_that_is_just_being_written_names_nobody(tmp_path, text):
    path = tmp_path / "file"
    path.write_text(text)
    assert list(_filed(path, 0.0)) == []
    assert list(_filed(tmp_path / "missing", 0.0)) == []
