"""Every name on the two pages of the old API reference that this project descends from: it is there, and it behaves."""

from __future__ import annotations

import threading
from collections.abc import Callable
from subprocess import Popen

import pytest
import zmq
from tornado.ioloop import IOLoop
from traitlets.config import Config, LoggingConfigurable, SingletonConfigurable
from waiting import MISSES
from zmq.eventloop.zmqstream import ZMQStream

from pytest_ipcluster import BackgroundCluster, Heart, HeartMonitor, MonitorThread

CONFIGURABLE = [
    "class_config_section",
    "class_get_help",
    "class_get_trait_help",
    "class_print_help",
    "class_trait_names",
    "class_traits",
    "config",
    "created",
    "on_trait_change",
    "trait_metadata",
    "trait_names",
    "traits",
    "update_config",
]
SINGLETON = ["clear_instance", "initialized", "instance"]
CLUSTER = [
    "command",
    "extra_args",
    "ipcluster_cmd",
    "msg",
    "n",
    "poll",
    "process",
    "profile",
    "returncode",
    "silent",
    "start",
    "stop",
]
MONITOR = [
    "add_heart_failure_handler",
    "add_new_heart_handler",
    "beat",
    "handle_heart_failure",
    "handle_new_heart",
    "handle_pong",
    "hearts",
    "last_ping",
    "lifetime",
    "log",
    "loop",
    "on_probation",
    "period",
    "pingstream",
    "pongstream",
    "responses",
    "start",
    "tic",
]
HEART = ["device", "id", "start"]

PAGES = [
    *((BackgroundCluster, name) for name in [*CONFIGURABLE, *SINGLETON, *CLUSTER]),
    *((HeartMonitor, name) for name in [*CONFIGURABLE, *MONITOR]),
    *((Heart, name) for name in HEART),
]


@pytest.fixture(scope="module")
def cluster():
    """A running cluster, and the same made by hand as the page has it: ``start``, later ``stop``."""
    cluster = BackgroundCluster(n=1, private=True, silent=True)
    cluster.start(n=2, check_after=30)
    cluster.wait_for_engines()
    yield cluster
    cluster.stop(kill_after=5)
    assert cluster.poll() == cluster.returncode == 0


@pytest.fixture(scope="module")
def hearts():
    """A running monitor that hears one heart."""
    thread = MonitorThread(period=50, misses=MISSES)
    thread.start()
    heart = Heart(thread.ping_url, thread.pong_url, heart_id=b"heart")
    heart.start()
    thread.wait_for_heart(b"heart", 30)
    yield thread, heart
    heart.stop()
    thread.stop()


@pytest.mark.parametrize(("kind", "name"), PAGES, ids=[f"{kind.__name__}.{name}" for kind, name in PAGES])
def test_the_name_is_there(kind, name):
    assert hasattr(kind, name)


@pytest.mark.parametrize("kind", [BackgroundCluster, HeartMonitor])
def test_the_classes_configure_themselves_as_traitlets_does(kind, capsys):
    assert kind.__name__ in kind.class_config_section()
    assert kind.class_get_help().startswith(kind.__name__)
    some = "n" if kind is BackgroundCluster else "period"
    assert some in kind.class_get_trait_help(kind.class_traits()[some])
    kind.class_print_help()
    assert some in capsys.readouterr().out
    assert some in kind.class_trait_names()


@pytest.mark.parametrize("kind", [BackgroundCluster, HeartMonitor])
def test_instances_are_configured_and_observed(kind):
    some = "n" if kind is BackgroundCluster else "period"
    instance = kind(config=Config({kind.__name__: {some: 7}}))
    assert getattr(instance, some) == 7
    assert some in instance.trait_names()
    assert some in instance.traits()
    assert instance.trait_metadata(some, "config") is True
    seen: list[object] = []
    with pytest.warns(DeprecationWarning, match="on_trait_change"):
        instance.on_trait_change(lambda: seen.append("changed"), some)
    instance.update_config(Config({kind.__name__: {some: 8}}))
    assert getattr(instance, some) == 8
    assert seen == ["changed"]
    assert isinstance(instance.config, Config)
    assert instance.created is None


def test_the_bases_are_those_of_the_page():
    assert issubclass(BackgroundCluster, SingletonConfigurable)
    assert issubclass(HeartMonitor, LoggingConfigurable)


def test_background_cluster_as_a_singleton():
    class Mine(BackgroundCluster):
        pass

    assert not Mine.initialized()
    instance = Mine.instance(n=3)
    assert Mine.instance() is instance
    assert Mine.initialized()
    Mine.clear_instance()
    assert not Mine.initialized()


RUNNING: dict[str, Callable[[BackgroundCluster], bool]] = {
    "command": lambda c: "start" in c.command and "--n=2" in c.command,
    "extra_args": lambda c: c.extra_args == [] == c.command[len(c.command) :],
    "ipcluster_cmd": lambda c: c.command[: len(c.ipcluster_cmd)] == c.ipcluster_cmd,
    "n": lambda c: c.n == 2,
    "poll": lambda c: c.poll() is None,
    "process": lambda c: isinstance(c.process, Popen),
    "profile": lambda c: c.profile == "default",
    "returncode": lambda c: c.returncode is None,
    "silent": lambda c: c.silent is True,
    "msg": lambda c: c.msg("not printed") is None,
}


@pytest.mark.parametrize("name", sorted(RUNNING))
def test_background_cluster_while_it_runs(cluster, name):
    assert RUNNING[name](cluster)


def test_the_walk_over_the_cluster_is_complete():
    assert {*RUNNING, "start", "stop"} == set(CLUSTER)  # the fixture starts and stops it


BEATING: dict[str, Callable[[HeartMonitor], bool]] = {
    "hearts": lambda m: m.hearts == {b"heart"},
    "responses": lambda m: isinstance(m.responses, set),
    "on_probation": lambda m: m.on_probation == set(),
    "period": lambda m: m.period == 50,
    "pingstream": lambda m: isinstance(m.pingstream, ZMQStream) and m.pingstream.socket.type == zmq.PUB,
    "pongstream": lambda m: isinstance(m.pongstream, ZMQStream) and m.pongstream.socket.type == zmq.ROUTER,
    "loop": lambda m: isinstance(m.loop, IOLoop),
    "lifetime": lambda m: m.lifetime > m.last_ping >= 0,
    "last_ping": lambda m: isinstance(m.last_ping, float),
    "tic": lambda m: m.tic > 0,
    "log": lambda m: m.log.name is not None,
}


@pytest.mark.parametrize("name", sorted(BEATING))
def test_heart_monitor_while_it_beats(hearts, name):
    thread, _ = hearts
    assert thread.call(BEATING[name], thread.monitor)


def test_heart_monitor_told_by_hand(hearts):
    thread, _ = hearts
    monitor = thread.monitor
    new, failed = [], []
    monitor.add_new_heart_handler(new.append)
    monitor.add_heart_failure_handler(failed.append)
    thread.call(monitor.handle_new_heart, b"by hand")
    assert new == [b"by hand"]
    thread.call(monitor.handle_heart_failure, b"by hand")
    assert failed == [b"by hand"]
    assert b"by hand" not in monitor.hearts


def test_heart_monitor_beaten_by_hand(hearts):
    thread, _ = hearts
    monitor = thread.monitor

    def beat() -> tuple[float, float, float]:
        before = monitor.lifetime
        monitor.beat()
        return before, monitor.last_ping, monitor.lifetime

    before, last, now = thread.call(beat)
    assert before == last < now


def test_heart_monitor_takes_a_pong_by_hand(hearts):
    thread, _ = hearts
    thread.call(thread.monitor.handle_pong, [b"stranger", b"no ping of ours"])
    assert b"stranger" not in thread.monitor.hearts


def test_the_walk_over_the_monitor_is_complete():
    by_hand = (
        "add_heart_failure_handler add_new_heart_handler beat handle_heart_failure handle_new_heart handle_pong start"
    )
    assert {*BEATING, *by_hand.split()} == set(MONITOR)  # the fixture starts it


def test_heart_as_on_the_page(hearts):
    _, heart = hearts
    assert Heart.device is None
    assert Heart.id is None
    assert heart.id == b"heart"
    assert heart.device is not None
    assert any(thread.name == "ipcluster-heart" for thread in threading.enumerate())
