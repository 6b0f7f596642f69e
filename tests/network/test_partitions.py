"""What ipyparallel makes of each fault on each channel, on a real cluster: the partition matrix.

One cluster serves all cells. Each hurts the network of the engine in slot 0, asserts what its users see, and heals.
After that the engine in this slot answers on every channel, a new one where the old one can't be cured.

The hub's heartbeat has a period of 200 ms here, and 10 misses: an engine that is not heard is dropped after 2 s.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from traitlets.config import Config
from waiting import MISSES, announced_by, comes_about, until

from pytest_ipcluster import BackgroundCluster

PERIOD = 0.2
FAULTS = ("freeze", "delay", "reset", "half_open", "cut")
BIG = 400_000

#: What the hub writes when its heartbeat has failed an engine, and when somebody tells it that one is gone.
A_HEART_STOPPED, A_NANNYS_WORD = "1 hearts stopped", "requested 'unregistration_request'"


@pytest.fixture(scope="module")
def cluster() -> Iterator[BackgroundCluster]:
    config = Config()
    config.HeartMonitor.period = int(PERIOD * 1000)
    config.HeartMonitor.max_heartmonitor_misses = MISSES
    with BackgroundCluster(n=2, private=True, silent=True, network=True, cluster_config=config) as cluster:
        yield cluster


class Asker:
    """Sends questions to engines, each by the channel that is asked for."""

    def __init__(self, cluster: BackgroundCluster) -> None:
        self.client = cluster.client()

    def ask(self, channel: str, slot: int = 0, size: int = 0) -> Callable[[], bool]:
        """Send a question that has an answer of so many bytes; return what tells whether that has come."""
        if channel == "control":
            return self.client.abort(jobs="no-such-task", targets=[slot], block=False).done
        view = self.client[slot] if channel == "mux" else self.client.load_balanced_view(targets=[slot])
        return view.apply_async(os.urandom, size).ready

    def meanwhile(self, channel: str) -> None:
        """Ask the other engine some questions: what was asked before is through the same scheduler by then."""
        for _ in range(5):
            until(self.ask(channel, slot=1))

    def ask_again(self, channel: str) -> None:
        """Ask until there is an answer."""
        until(lambda: comes_about(self.ask(channel), 0.5))


@pytest.fixture
def asker(cluster) -> Iterator[Asker]:
    asker = Asker(cluster)
    until(lambda: asker.client.ids == [0, 1])
    yield asker
    asker.client.close(linger=0)


@pytest.fixture(autouse=True)
def everything_works_after_it(cluster) -> Iterator[None]:
    yield
    assert cluster.lanes.hurt == ()
    asker = Asker(cluster)
    until(lambda: asker.client.ids == [0, 1])
    answers = [asker.ask(channel, slot) for channel in ("mux", "task", "control") for slot in (0, 1)]
    for answer in answers:
        until(answer)
    asker.client.close()


def inject(fault: str, cluster: BackgroundCluster, channel: str) -> None:
    """Hurt this channel of the engine in slot 0."""
    lanes = cluster.lanes
    if fault == "delay":
        lanes.delay(0, 0.5, 0.2, channels=channel)  # more than two of the hub's heartbeats for both ways
    elif fault == "cut":
        lanes.cut(0, after={"mux": BIG // 2, "task": BIG // 2}.get(channel, 10), channels=channel, direction="up")
    elif fault == "reset":
        lanes.refuse(0, channels=channel)  # or it would be connected again, on a slow machine, before anybody asks
        assert lanes.reset(0, channels=channel)
    else:
        getattr(lanes, fault)(0, channels=channel)


# -- what engines are asked by: the client sees an answer, late or never ------------------------------


@pytest.mark.parametrize("channel", ["mux", "task", "control"])
class TestAQuestion:
    def test_freeze_waits_and_is_answered_after_the_healing(self, cluster, asker, channel):
        inject("freeze", cluster, channel)
        answered = asker.ask(channel)
        asker.meanwhile(channel)
        assert not answered()
        cluster.lanes.heal(0)
        until(answered)

    def test_delay_is_answered_late(self, cluster, asker, channel):
        cluster.lanes.delay(0, 3600.0, channels=channel)
        answered = asker.ask(channel)
        asker.meanwhile(channel)
        assert not answered()
        inject("delay", cluster, channel)
        until(answered)
        cluster.lanes.heal(0)

    @pytest.mark.parametrize("fault", ["reset", "cut", "half_open"])
    def test_broken_connection_loses_it(self, cluster, asker, channel, fault):
        before = self.cuts(cluster, channel)
        inject(fault, cluster, channel)
        lost = asker.ask(channel, size=BIG)
        asker.meanwhile(channel)
        until(lambda: fault != "cut" or self.cuts(cluster, channel) > before)
        if fault == "half_open":
            self.is_unreachable_though_it_is_connected_again(cluster, asker, channel)
        assert 0 in announced_by(cluster)
        cluster.lanes.heal(0)
        if channel == "task":
            self.gets_no_other_task(cluster, asker)
        else:
            asker.ask_again(channel)
        assert not lost()

    def cuts(self, cluster, channel):
        """Return how often this channel has been cut, in earlier tests, too."""
        return cluster.lanes.state(0)[channel]["up"]["cuts"]

    def is_unreachable_though_it_is_connected_again(self, cluster, asker, channel):
        # The scheduler ignores a new connection under the name of one that it takes for alive.
        until(lambda: cluster.lanes.state(0)[channel]["open"] == 1)
        answered = asker.ask(channel)
        asker.meanwhile(channel)
        assert not answered()

    def gets_no_other_task(self, cluster, asker):
        # The task scheduler gives an engine one task at a time, and waits for the answer to the lost one.
        answered = asker.ask("task")
        asker.meanwhile("task")
        asker.ask_again("mux")
        assert not answered()
        cluster.replace([0])


# -- the hub's heartbeat: the hub takes an engine for alive or for dead -------------------------------


class TestAHeartbeat:
    @pytest.mark.parametrize("fault", ["freeze", "delay", "half_open"])
    def test_unheard_engine_is_dropped_alive_and_stays_so(self, cluster, fault):
        engine = cluster.engines[0]
        inject(fault, cluster, "heartbeat")
        until(lambda: 0 not in announced_by(cluster))
        cluster.lanes.heal(0)
        self.beats(cluster, 3)
        assert 0 not in announced_by(cluster)
        until(lambda: engine.state == "zombie")  # of a hub that is slow to answer it is "idle"
        assert [repair.reason for repair in cluster.restore()] == ["the hub had dropped the engine"]

    @pytest.mark.parametrize("fault", ["reset", "cut"])
    def test_broken_connection_is_made_again_before_anybody_minds(self, cluster, fault):
        inject(fault, cluster, "heartbeat")
        cluster.lanes.heal(0) if fault == "reset" else None
        self.beats(cluster, MISSES + 3)
        assert 0 in announced_by(cluster)
        cluster.lanes.heal(0)

    def beats(self, cluster, times):
        """Wait until the engine has answered so many pings."""
        for _ in range(times):
            before = cluster.lanes.state(0)["hb_pong"]["up"]["passed"]
            until(lambda before=before: cluster.lanes.state(0)["hb_pong"]["up"]["passed"] > before)


# -- the hub: its nanny tells that an engine has died, or nobody does ---------------------------------


class TestTheNewsOfADeath:
    @pytest.mark.parametrize("fault", FAULTS)
    def test_arrives_unless_the_way_to_the_hub_is_closed(self, cluster, fault):
        inject(fault, cluster, "registration")
        if fault == "reset":
            cluster.lanes.heal(0)  # or it is as with freeze
        begun = len(self.said_by_the_hub(cluster))
        cluster.engines[0].process.kill()
        until(lambda: 0 not in announced_by(cluster))
        if fault == "freeze":
            news = self.said_by_the_hub(cluster)[begun:]
            assert A_HEART_STOPPED in news
            assert A_NANNYS_WORD not in news
        else:  # which of the two the hub believes is a matter of who had the time to run
            until(lambda: A_NANNYS_WORD in self.said_by_the_hub(cluster)[begun:])
        assert [repair.reason for repair in cluster.restore()] == ["the engine was dead"]

    def said_by_the_hub(self, cluster):
        return cluster.slots._runtime.roles().controller.log.read_text()
