"""Whether the controller has ended is told by its process, where ipcluster's file does not tell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from clusters import kill

from pytest_ipcluster.cluster import runtime as runtime_module
from pytest_ipcluster.cluster.files import ClusterFiles
from pytest_ipcluster.cluster.processes import find
from pytest_ipcluster.cluster.profile import RunFolder
from pytest_ipcluster.cluster.runtime import Runtime

# Whoever has no input to wait for sleeps: it does nothing, and ends by itself if nobody ends it.
SLEEPS = [sys.executable, "-c", "import time; time.sleep(60)"]
WAITS = [sys.executable, "-c", "import sys; sys.stdin.read()"]


@pytest.fixture
def controller() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(WAITS, stdin=subprocess.PIPE) as process:
        yield process


@pytest.fixture
def runtime(controller, tmp_path) -> Iterator[Runtime]:
    """An ipcluster that does nothing, and whose file names the controller."""
    folder = RunFolder()
    runtime = Runtime(SLEEPS, folder, ClusterFiles(tmp_path, "abc"), os.environ)
    tmp_path.joinpath("security").mkdir()
    runtime.launch()
    write(runtime, {"controller": {"state": {"pid": controller.pid}}})
    yield runtime
    runtime.stop([], kill_after=0)
    folder.remove()


def write(runtime: Runtime, content: dict[str, object]) -> None:
    runtime.files.cluster_file.write_text(json.dumps(content))


def test_one_that_was_seen_lives_though_the_file_does_not_name_it(runtime):
    runtime.roles()
    write(runtime, {})
    assert runtime.lost() == ""


def test_one_that_was_seen_has_ended_whatever_the_file_says(runtime, controller):
    runtime.roles()
    kill(find(controller.pid))
    told = f"the controller (pid {controller.pid}) has ended"
    assert runtime.lost() == told
    write(runtime, {})
    assert runtime.lost() == told


def test_one_that_had_ended_before_anybody_looked_is_told(runtime, controller):
    kill(find(controller.pid))
    controller.wait()
    assert runtime.lost() == f"the controller (pid {controller.pid}) has ended"


def test_one_without_a_pid_is_there_while_the_file_names_it(runtime):
    write(runtime, {"controller": {"state": {"pid": None}}})
    assert runtime.lost() == ""
    assert runtime.controller is None


def test_one_that_nobody_has_seen_is_known_to_the_hub_alone(runtime, monkeypatch):
    asked = []
    monkeypatch.setattr(runtime, "_controller_answers", lambda patience: asked.append(patience) or True)
    write(runtime, {})
    assert runtime.lost() == ""
    assert asked == [runtime_module._HUB_PATIENCE]
