"""What is repaired, in which order, and how often. Nothing is started here: the cluster and its hearts are made up."""

from __future__ import annotations

import itertools
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from pytest_ipcluster import ClusterError, ClusterStartError, RepairError, upkeep
from pytest_ipcluster.attendance import deaths_of
from pytest_ipcluster.cluster.cleaning import Leftovers
from pytest_ipcluster.cluster.slots import Repair
from pytest_ipcluster.keeper import Keeper
from pytest_ipcluster.keeper import test_files as files_of_tests
from pytest_ipcluster.report.events import EventLog
from pytest_ipcluster.settings import SETTINGS
from pytest_ipcluster.upkeep import Upkeep

SETUPS = itertools.count()
CLEAN = Leftovers({}, 0)
STUCK = Leftovers({1: "the engine was busy"}, 0)
WAITING = Leftovers({}, 3)


@dataclass
class Cluster:
    """A cluster of two engines that does what it is told to."""

    n: int = 2
    repairs: list[Repair] = field(default_factory=list)
    error: Exception | None = None
    calls: list[str] = field(default_factory=list)
    slots: None = None

    @property
    def engines(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(slot=slot, heart=b"%d" % slot, pid=slot) for slot in range(self.n)]

    def restore(self, n: int, timeout: float) -> list[Repair]:
        self.calls.append(f"restore {n}")
        assert timeout == 60
        if self.error is not None:
            raise self.error
        return self.repairs

    def replace(self, slots: dict[int, str], timeout: float) -> None:
        self.calls.append(f"replace {sorted(slots)}")
        assert timeout == 60
        if self.error is not None:
            raise self.error


class Hearts:
    """Hearts that beat, except those that are silent, once."""

    def __init__(self) -> None:
        self.events = EventLog()
        self.silent: list[bytes] = []
        self.hearts: set[bytes] = set()
        self.allowed: list[bytes] = []
        self.monitor = self

    def allow(self, heart: bytes) -> None:
        self.allowed.append(heart)

    def call(self, function, *args):
        return function(*args)

    def wait_for_heart(self, heart: bytes, timeout: float) -> None:
        assert timeout >= 0
        if heart in self.silent:
            self.silent.remove(heart)
            raise TimeoutError


@pytest.fixture
def cluster():
    return Cluster()


@pytest.fixture
def hearts():
    return Hearts()


@pytest.fixture
def kept(hall, cluster, hearts, monkeypatch):
    kept = Upkeep(
        cluster,
        hearts,
        hall.settings(),
        [],
        excuse=lambda engine: cluster.calls.append(f"excuse {engine.slot}"),
        unanswered=lambda: {f"task of setup {next(SETUPS)}"},
        restart=lambda reason: cluster.calls.append(f"restart: {reason}"),
    )

    @contextmanager
    def connected():
        cluster.calls.append("connect")
        yield SimpleNamespace()

    monkeypatch.setattr(kept, "_connected", connected)
    return kept


def told(hearts: Hearts) -> list[tuple[str, int | None, str, bool]]:
    return [(e.kind, e.slot, e.detail, e.seconds is not None) for e in hearts.events.since()]


def test_the_files_of_tests_that_use_the_cluster_are_known_by_all_their_names(hall):
    real = hall.pytester.mkdir("real")
    (real / "test_it.py").write_text("def test_it(ipcluster): pass\ndef test_again(ipcluster): pass")
    (real / "test_other.py").write_text("def test_it(): pass")
    link = hall.pytester.path / "link"
    link.symlink_to(real)
    items, _ = hall.pytester.inline_genitems(*hall.args, "-p", "ipcluster", link)
    assert files_of_tests(items) == [str(link / "test_it.py"), str(real / "test_it.py")]


class TestRestore:
    def test_repairs_are_told_with_the_time_that_they_took_together(self, kept, cluster, hearts):
        cluster.repairs = [Repair(0, "dead", 1.0), Repair(1, "dropped", 1.0)]
        kept.restore(2, 2)
        assert told(hearts) == [("repaired", 0, "dead", True), ("repaired", 1, "dropped", False)]

    def test_engines_that_are_added_are_no_repair(self, kept, cluster, hearts):
        cluster.repairs = [Repair(1, "dead", 1.0), Repair(2, "there was no engine", 1.0)]
        kept.restore(3, 2)
        assert [event[0] for event in told(hearts)] == ["repaired", "added"]

    def test_the_hearts_of_engines_and_no_others_are_allowed_when_they_are_not_watched(self, kept, hearts):
        hearts.hearts = {b"0"}
        kept.restore(2, 2)
        assert hearts.allowed == [b"1"]

    def test_an_engine_whose_heart_is_silent_is_replaced(self, kept, cluster, hearts):
        hearts.silent = [b"1"]
        kept.restore(2, 2)
        assert cluster.calls == ["restore 2", "replace [1]"]
        assert told(hearts) == [("repaired", 1, "the engine's heart did not beat", True)]

    def test_what_cannot_be_repaired_is_restarted_in_the_size_that_is_wanted(self, kept, cluster):
        cluster.error = RepairError("no controller")
        kept.restore(5, 2)
        assert cluster.calls == ["restore 5", "restart: it could not be repaired: no controller"]
        assert cluster.n == 5

    def test_a_heart_that_never_beats_is_an_error(self, kept, hearts):
        hearts.silent = [b"1"]
        with pytest.raises(RepairError, match=r"slot 1 \(pid 1\) does not beat"):
            kept.wait_for_hearts()


class TestClient:
    @pytest.fixture
    def finding(self, kept, monkeypatch):
        """Return a function that makes the engines come out like this, cleaning by cleaning, and asks for a client."""

        def finding(*left: Leftovers) -> None:
            found = iter(left)
            monkeypatch.setattr(upkeep, "clean_engines", lambda *_: next(found))
            with kept.client():
                pass

        return finding

    def test_a_clean_cluster_is_only_connected_to(self, finding, cluster):
        finding(CLEAN)
        assert cluster.calls == ["connect"]

    def test_engines_that_do_not_come_clean_are_replaced(self, finding, cluster, hearts):
        finding(STUCK, CLEAN)
        assert cluster.calls == ["connect", "excuse 1", "replace [1]", "connect"]
        assert told(hearts) == [("repaired", 1, "the engine was busy", True)]

    def test_tasks_that_wait_need_a_restart(self, finding, cluster):
        finding(WAITING, CLEAN)
        assert [call.split(":")[0] for call in cluster.calls] == ["connect", "restart", "connect"]

    def test_what_replacing_does_not_help_is_restarted(self, finding, cluster):
        finding(STUCK, STUCK, CLEAN)
        calls = [call.split(":")[0] for call in cluster.calls]
        assert calls == ["connect", "excuse 1", "replace [1]", "connect", "restart", "connect"]
        assert "engine 1: the engine was busy" in cluster.calls[4]

    def test_an_engine_that_cannot_be_replaced_takes_a_restart(self, finding, cluster):
        cluster.error = RepairError("no more processes")
        finding(STUCK, CLEAN)
        assert cluster.calls[3:] == ["restart: it could not be repaired: no more processes", "connect"]

    def test_what_a_restart_does_not_help_is_an_error(self, finding, cluster):
        with pytest.raises(ClusterError, match=r"not as new even after a restart: engine 1: the engine was busy"):
            finding(STUCK, STUCK, STUCK)
        assert sum(call.startswith("restart") for call in cluster.calls) == 1

    def test_what_clients_were_not_answered_is_asked_once_and_told_to_each_new_engine(self, kept, monkeypatch):
        found, told = iter([STUCK, STUCK, CLEAN]), []
        monkeypatch.setattr(upkeep, "clean_engines", lambda *args: told.append(args[-1]) or next(found))
        with kept.client():
            pass
        assert len(told) == 3
        assert [len(names) for names in told] == [1, 1, 1]
        assert set.union(*told) == told[0]

    def test_dropped_tasks_are_told(self, finding, hearts):
        finding(Leftovers({}, 0, dropped=7))
        assert told(hearts) == [("dropped", None, "7 tasks that a test had not waited for", True)]


class TestRestart:
    @pytest.fixture
    def keeper(self, hall, cluster, hearts, monkeypatch):
        config = hall.pytester.parseconfigure("-p", "ipcluster")
        keeper = Keeper(config.stash[SETTINGS], deaths_of(config), [])
        monkeypatch.setattr(keeper, "_cluster", cluster)
        kept = Upkeep(cluster, hearts, hall.settings(), [], keeper.deaths.allow, set, keeper._restart_once)
        monkeypatch.setattr(keeper, "_upkeep", kept)
        monkeypatch.setattr(keeper, "_restart", lambda _: cluster.calls.append("restart"))
        cluster.error = RepairError("no controller")
        return keeper

    def test_it_is_done_once(self, keeper, cluster):
        keeper.restore()
        with pytest.raises(ClusterError, match="restarted already, and again it could not be repaired: no controller"):
            keeper.restore()
        assert cluster.calls.count("restart") == 1

    def test_it_may_be_done_again_in_the_next_phase(self, keeper, cluster):
        keeper.restore()
        keeper.allow_restart()
        keeper.restore()
        assert cluster.calls.count("restart") == 2

    def test_one_that_fails_is_remembered_for_this_shape_alone(self, keeper, cluster, monkeypatch):
        def fail(reason: str) -> None:
            cluster.calls.append(f"restart: {reason}")
            raise ClusterStartError("no more ports")

        monkeypatch.setattr(keeper, "_restart", fail)
        errors = []
        for n in (2, 2, 3):
            keeper.allow_restart()
            with pytest.raises(ClusterStartError, match="no more ports") as caught:
                keeper.restore(n)
            errors.append(caught.value)
        assert errors[0] is errors[1] is not errors[2]
        assert [call.split(":")[0] for call in cluster.calls] == ["restore 2", "restart", "restore 3", "restart"]
        assert errors[0].__notes__ == ["The cluster was being restarted: it could not be repaired: no controller"]

    def test_a_cluster_of_another_kind_is_not_renewed(self, keeper, cluster, hall):
        shape = hall.settings("--ipcluster-args=-- --other").shape
        keeper.renew(shape)
        assert cluster.calls == []
