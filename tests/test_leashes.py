"""The leash of the benchmarks: what they start they end, and with it what it has left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from waiting import SOON

from pytest_ipcluster.cluster.guard import Guard
from pytest_ipcluster.cluster.processes import wait_gone

SLEEPER = [sys.executable, "-c", "import sys; print('up', flush=True); sys.stdin.read()"]

#: An owner of a warden, which tells the warden's pid and folder.
OWNER = """
import os, sys
from pytest_ipcluster.cluster.guard import Guard
guard = Guard()
guard.spawn([sys.executable, "-c", "import time; time.sleep(600)"], guard.folder / "out", dict(os.environ))
print(guard.process.pid, guard.folder, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def leashes(load_benchmark):
    return load_benchmark("leashes")


def test_ends_what_was_started_in_the_block(leashes):
    with leashes.leash() as held:
        child = subprocess.Popen(SLEEPER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        child.stdout.readline()
        assert held.left() == {psutil.Process(child.pid)}
    with child:
        assert child.wait(SOON) < 0


def test_leaves_alone_what_was_started_before(leashes):
    with subprocess.Popen(SLEEPER, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        with leashes.leash() as held:
            assert held.left() == set()
        assert child.poll() is None


def test_tells_what_outlives_a_wait_without_paths(leashes):
    with leashes.leash() as held:
        child = subprocess.Popen(SLEEPER, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        child.stdout.readline()
        (told,) = held.wait(0)
    with child:
        assert child.wait(SOON) < 0
    assert told.startswith(f"{Path(sys.executable).name} -c import sys")


@pytest.fixture
def guarded(tmp_path, monkeypatch):
    """Return a function that starts an owner of a warden and returns this and its folder."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    def start():
        owner = subprocess.Popen(
            [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        owners.append(owner)
        pid, folder = owner.stdout.readline().split()
        return psutil.Process(int(pid)), Path(folder)

    owners = []
    yield start
    for owner in owners:
        with owner:  # its pipes are closed
            assert owner.wait(SOON) == -signal.SIGKILL


def test_a_warden_clears_away_what_its_owner_has_left(leashes, guarded):
    with leashes.leash() as held:
        warden, folder = guarded()
        assert warden in held.left()
        assert folder.exists()
    assert held.left() == set()
    assert not folder.exists()


def test_a_warden_that_does_not_is_killed_as_well(leashes, guarded, monkeypatch):
    monkeypatch.setattr(leashes, "_SOON", 0.5)
    with leashes.leash() as held:
        warden, _ = guarded()
        warden.suspend()
    assert wait_gone({warden}, SOON) == set()
    assert held.left() == set()


def test_its_folders_go_with_it(leashes, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with leashes.leash() as held:
        folder = held.folder("short-")
        assert (folder.parent, folder.name.startswith("short-")) == (tmp_path, True)
        (folder / "file").touch()
    assert not folder.exists()


def test_a_warden_of_this_very_process_ends_with_that(leashes, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with leashes.leash() as held:
        guard = Guard()
    assert held.left() == {psutil.Process(guard.process.pid)}
    guard.dismiss()
    assert held.left() == set()


def test_a_second_signal_does_not_disturb_the_end(leashes, monkeypatch):
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    ended = []
    with leashes.leash() as held:

        def end():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            ended.append(held)

        monkeypatch.setattr(held, "end", end)
    assert ended == [held]
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == before


def test_takes_its_mark_back(leashes, monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    with leashes.leash():
        assert leashes.RUN in os.environ
        assert "PYTHONDONTWRITEBYTECODE" not in os.environ
    assert leashes.RUN not in os.environ
    assert os.environ["PYTHONDONTWRITEBYTECODE"] == "1"
