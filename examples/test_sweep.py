"""How the sweep is tested: on a real cluster, with engines that die and falter while they work."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from ipyparallel.error import EngineError
from sweep import Batch, EnginesLostError, Sweep, Watchdog, count_percolating, split

from pytest_ipcluster import BackgroundCluster, HeartMonitor

DENSITIES = (0.3, 0.5, 0.6, 0.9)


class Gate:
    """Holds tasks up on their engines, so that a test knows that they run and decides when they go on."""

    def __init__(self, folder: Path) -> None:
        self.work = partial(hold_then_count, folder)
        self._folder = folder

    def wait_for(self, count: int) -> list[int]:
        """Return the pids of the engines that are held up, once there are so many."""
        wait_until(lambda: len(self._held()) >= count)
        return self._held()

    def _held(self) -> list[int]:
        return [int(path.name) for path in self._folder.iterdir() if path.name.isdigit()]

    def open(self) -> None:
        """Let all tasks go on, those that come later too."""
        (self._folder / "open").touch()


def hold_then_count(folder: Path, batch: Batch) -> int:
    """Do the work, but report at the gate first and wait there. Runs on the engines."""
    (folder / str(os.getpid())).touch()
    wait_until((folder / "open").exists)
    return count_percolating(batch)


def wait_until(reached: Callable[[], bool], timeout: float = 20.0) -> None:
    """Wait for something, but not for ever."""
    deadline = time.monotonic() + timeout
    while not reached():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout} s in vain")
        time.sleep(0.01)  # a file tells nobody that it is there, so look again


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """A gate that is open at the latest when the test ends, so that no task is held for ever."""
    gate = Gate(tmp_path)
    yield gate
    gate.open()


@pytest.fixture
def watchdog(ipcluster: BackgroundCluster, heart_monitor: HeartMonitor) -> Iterator[Watchdog]:
    """A watchdog that can spare all engines but one, and hears of every heart that fails."""
    watchdog = Watchdog(spare=ipcluster.n - 1)
    heart_monitor.add_heart_failure_handler(watchdog.engine_lost)
    yield watchdog
    heart_monitor.remove_heart_failure_handler(watchdog.engine_lost)


def slot_of(ipcluster: BackgroundCluster, pid: int) -> int:
    """Return the slot of the engine with this pid."""
    return next(engine.slot for engine in ipcluster.engines if engine.pid == pid)


def shares_without_cluster(batches: list[Batch]) -> dict[float, float]:
    """Return what a sweep must find, worked out here and now."""
    found: dict[float, list[float]] = {}
    for batch in batches:
        found.setdefault(batch.density, []).append(count_percolating(batch) / batch.trials)
    return {density: sum(parts) / len(parts) for density, parts in found.items()}


BATCHES = split(DENSITIES)
EXPECTED = shares_without_cluster(BATCHES)


class TestNormalRun:
    def test_finds_the_shares(self, ipcluster_lbview):
        sweep = Sweep(ipcluster_lbview, BATCHES)
        sweep.submit()
        assert sweep.collect().shares == EXPECTED

    def test_water_comes_through_above_the_critical_density_only(self):
        assert EXPECTED[0.3] < 0.1 < 0.9 < EXPECTED[0.9]

    def test_uses_every_engine(self, ipcluster, ipcluster_lbview, gate):
        sweep = Sweep(ipcluster_lbview, split(DENSITIES, batches=ipcluster.n), work=gate.work)
        sweep.submit()
        gate.wait_for(ipcluster.n)
        gate.open()
        assert sweep.collect().engines == set(range(ipcluster.n))

    def test_error_on_an_engine_ends_the_sweep(self, ipcluster_lbview, raises_remote):
        sweep = Sweep(ipcluster_lbview, [Batch(density=1.5, seed=0)])
        sweep.submit()
        with raises_remote(ValueError, match="between 0 and 1, not 1.5"):
            sweep.collect()


class TestEngineIsKilled:
    def test_its_batch_is_done_by_another_engine(self, ipcluster, ipcluster_lbview, heart_failure, gate):
        sweep = Sweep(ipcluster_lbview, BATCHES, work=gate.work)
        sweep.submit()
        victim = slot_of(ipcluster, gate.wait_for(1)[0])
        with heart_failure.expect(slot=victim, cause="killed", within=5.0):
            heart_failure.kill(victim)
        gate.open()
        report = sweep.collect()
        assert report.shares == EXPECTED
        assert report.retries == 1
        assert victim not in report.engines

    def test_loss_is_told_when_no_retries_are_left(self, ipcluster_client, heart_failure, gate, raises_remote):
        sweep = Sweep(ipcluster_client[1], BATCHES[:1], work=gate.work, max_retries=0)
        sweep.submit()
        gate.wait_for(1)
        heart_failure.kill(1)
        with raises_remote(EngineError):
            sweep.collect()

    def test_watchdog_hears_of_it_once(self, ipcluster, heart_failure, watchdog):
        heart = ipcluster.engines[0].heart
        with heart_failure.expect(slot=0, cause="killed", within=5.0):
            heart_failure.kill(0)
        assert watchdog.lost == [heart]
        assert not watchdog.alarm.is_set()


class TestAllEnginesAreKilled:
    def test_sweep_gives_up(self, ipcluster_lbview, heart_failure, watchdog, gate):
        sweep = Sweep(ipcluster_lbview, BATCHES, work=gate.work, watchdog=watchdog)
        sweep.submit()
        gate.wait_for(1)
        heart_failure.kill("all")
        with pytest.raises(EnginesLostError):
            sweep.collect()


class TestEngineIsPaused:
    def test_it_goes_on_where_it_was(self, ipcluster, ipcluster_lbview, heart_failure, gate):
        sweep = Sweep(ipcluster_lbview, BATCHES, work=gate.work)
        sweep.submit()
        slot = slot_of(ipcluster, gate.wait_for(1)[0])
        with heart_failure.expect(slot=slot, cause="missed heartbeats", within=5.0):
            heart_failure.pause(slot)
        heart_failure.resume(slot)
        gate.open()
        report = sweep.collect()
        assert report.shares == EXPECTED
        assert report.retries == 0
        assert slot in report.engines
