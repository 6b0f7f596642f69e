"""How the proxy is ordered about, and how an engine learns of its lane."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from pytest_ipcluster.errors import ClusterError
from pytest_ipcluster.network.lanes import Lanes
from pytest_ipcluster.network.routes import CHANNELS, CLIENT_CHANNELS, ROUTES, connection_by_lane, environment_by_lane


def test_ports_are_written_down_for_launchers(network):
    written = json.loads(network.lanes.routes.read_text())
    assert written == {str(slot): network.lanes.ports(slot) for slot in (0, 1)}
    assert set(written["0"]) == set(CHANNELS)
    assert not set(written["0"].values()) & set(written["1"].values())


def test_a_lane_that_is_opened_again_stays_the_same(network):
    ports = network.lanes.ports(0)
    network.lanes.open([0, 1, 2])
    assert network.lanes.ports(0) == ports
    assert network.lanes.slots == (0, 1, 2)


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda lanes: lanes.freeze(2), "slot 2: expected one of 0, 1"),
        (lambda lanes: lanes.freeze(True), "slot True: expected one of 0, 1"),
        (
            lambda lanes: lanes.freeze(0, channels="heart"),
            "channel 'heart': expected one or several of 'registration', ",
        ),
        (lambda lanes: lanes.freeze(0, channels=[]), "channels: expected at least one"),
        (lambda lanes: lanes.freeze(0, direction="both"), "direction 'both': expected 'up', 'down', or None for both"),
        (lambda lanes: lanes.half_open(0, direction="left"), "direction 'left': expected "),
        (lambda lanes: lanes.delay(0, -1.0), "delay -1.0, jitter 0.0: expected seconds, 0 <= jitter <= delay"),
        (lambda lanes: lanes.delay(0, 1.0, 2.0), "delay 1.0, jitter 2.0: expected seconds"),
        (lambda lanes: lanes.rate(0, 0), "rate 0: expected more than 0 bytes per second"),
        (lambda lanes: lanes.cut(0, -1), "cut after -1: expected a number of bytes, 0 or more"),
        (lambda lanes: lanes.cut(0, 1.5), "cut after 1.5: expected a number of bytes"),
    ],
)
def test_what_does_not_exist_is_refused(network, ask, told):
    with pytest.raises(ValueError, match=f"^{told}"):
        ask(network.lanes)
    assert network.lanes.hurt == ()


class TestTheClientsLane:
    def test_is_there_when_it_is_wanted(self, network):
        with pytest.raises(ValueError, match=r"^slot 'client': expected one of 0, 1$"):
            network.lanes.freeze("client")
        ports = network.lanes.client_ports()
        assert ports == network.lanes.client_ports()
        assert set(ports) == set(CLIENT_CHANNELS)
        network.lanes.freeze("client", channels=["mux", "notification"])
        network.lanes.reset(1)
        assert network.lanes.hurt == (1, "client")
        assert network.lanes.slots == (0, 1)
        network.lanes.heal_all()
        assert network.lanes.hurt == ()

    def test_has_channels_of_its_own(self, network):
        network.lanes.client_ports()
        with pytest.raises(ValueError, match="channel 'heartbeat': expected one or several of 'registration', "):
            network.lanes.freeze("client", channels="heartbeat")
        with pytest.raises(ValueError, match="channel 'notification': expected one or several of 'registration', "):
            network.lanes.freeze(0, channels="notification")


def test_what_was_hurt_is_known_until_it_is_healed(network):
    lanes = network.lanes
    lanes.freeze(1)
    lanes.reset(0, channels="mux")
    assert lanes.hurt == (0, 1)
    lanes.heal(1, channels="mux")
    assert lanes.hurt == (0, 1)
    lanes.heal(1)
    assert lanes.hurt == (0,)
    lanes.refuse(1)
    lanes.heal_all()
    assert lanes.hurt == ()
    lanes.freeze(0)
    lanes.clear(0)
    assert lanes.hurt == ()


@pytest.mark.parametrize(
    ("hurt", "sent", "broken"),
    [
        (lambda lanes: lanes.freeze(0), b"", ()),
        (lambda lanes: lanes.delay(0, 0.01), b"x", ()),
        (lambda lanes: lanes.refuse(0), b"x", ()),
        (lambda lanes: lanes.reset(0), b"", (0,)),
        (lambda lanes: lanes.reset(0, channels="task"), b"", ()),
        (lambda lanes: lanes.half_open(0), b"", (0,)),
        (lambda lanes: lanes.cut(0, 2), b"x", ()),
        (lambda lanes: lanes.cut(0, 1), b"x", (0,)),
    ],
)
def test_messages_may_be_lost_where_connections_were_broken(network, hurt, sent, broken):
    near, far = network.connect()
    hurt(network.lanes)
    if sent:
        near.sendall(sent)
        assert far.recv(1) == sent
    assert network.lanes.broken == broken
    network.lanes.heal(0)
    assert network.lanes.broken == broken
    network.lanes.clear(0)
    assert network.lanes.broken == ()


def test_each_thread_gets_its_own_answer(network):
    network.connect("mux", 0)
    network.connect("task", 1)
    wrong: list[object] = []

    def ask(slot: int, channel: str) -> None:
        for _ in range(200):
            state = network.lanes.state(slot)
            if [name for name, one in state.items() if one["open"]] != [channel]:
                wrong.append(state)

    threads = [threading.Thread(target=ask, args=args) for args in ((0, "mux"), (1, "task")) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


def test_an_order_that_cannot_be_carried_out_is_told(network):
    with pytest.raises(ClusterError, match="the lanes' proxy could not fly: KeyError"):
        network.lanes._order("fly")
    network.lanes.freeze(0)


def test_a_proxy_that_has_died_is_told(network):
    network.lanes.process.kill()
    network.lanes.process.wait(30)
    with pytest.raises(ClusterError, match=rf"the lanes' proxy \(pid {network.lanes.process.pid}\) has ended"):
        network.lanes.freeze(0)


def test_a_proxy_that_does_not_answer_is_told(network):
    network.lanes._connection.settimeout(0.2)
    psutil.Process(network.lanes.process.pid).suspend()
    with pytest.raises(ClusterError, match="the lanes' proxy has not answered 'change' for"):
        network.lanes.freeze(0)


def spawned(code: str):
    return lambda _: subprocess.Popen([sys.executable, "-c", code])


def test_a_proxy_that_ends_instead_of_coming_is_told(tmp_path_factory):
    folder = tmp_path_factory.mktemp("l")
    with pytest.raises(ClusterError, match="the lanes' proxy has ended with code 3 instead of coming up"):
        Lanes(folder, folder / "engine.json", folder / "client.json", spawned("raise SystemExit(3)"))


def test_a_proxy_that_does_not_come_is_told(tmp_path_factory):
    folder, children = tmp_path_factory.mktemp("l"), []

    def spawn(_) -> subprocess.Popen[bytes]:
        children.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        return children[0]

    with pytest.raises(ClusterError, match=r"the lanes' proxy \(pid \d+\) has not come up within 0.3 s"):
        Lanes(folder, folder / "engine.json", folder / "client.json", spawn, timeout=0.3)
    children[0].kill()
    children[0].wait()


def test_a_folder_too_deep_for_a_socket_is_told():
    folder = Path("/" + "x" * 120)
    with pytest.raises(ClusterError, match="too long for a Unix socket: have a shorter TMPDIR"):
        Lanes(folder, folder / "engine.json", folder / "client.json", spawned(""))


CONNECTION = {"interface": "tcp://*", "registration": 1, "mux": 2, "broadcast": [3, 4], "key": "secret"}
LANE = {"registration": 11, "mux": 12, "broadcast": 13, "task": 15}


class TestRoutes:
    def test_ports_become_those_of_the_lane_and_the_rest_stays(self):
        assert connection_by_lane(CONNECTION, LANE) == {
            "interface": "tcp://127.0.0.1",
            "registration": 11,
            "mux": 12,
            "broadcast": [13, 13],
            "key": "secret",
        }

    @pytest.fixture
    def environment(self):
        return {"IPP_CONNECTION_INFO": json.dumps(CONNECTION), "OTHER": "x"}

    def test_an_engine_is_told_its_own_lane(self, environment, tmp_path, monkeypatch):
        file = tmp_path / "lanes.json"
        file.write_text(json.dumps({"1": LANE}))
        monkeypatch.setenv(ROUTES, str(file))
        told = environment_by_lane(environment, "1")
        assert json.loads(told["IPP_CONNECTION_INFO"])["mux"] == 12
        assert told["OTHER"] == "x"
        assert environment_by_lane(environment, "0") == environment

    def test_without_lanes_nothing_changes(self, environment, monkeypatch):
        monkeypatch.delenv(ROUTES, raising=False)
        assert environment_by_lane(environment, "0") == environment


class TestTheProcess:
    def test_ends_with_the_connection_that_it_is_ordered_by(self, network):
        near, far = network.connect()
        network.lanes.freeze(1)
        network.lanes.close()
        assert network.lanes.process.wait(30) == 0
        assert (near.recv(1), far.recv(1)) == (b"", b"")

    def test_listens_on_loopback_only(self, network):
        process = psutil.Process(network.lanes.process.pid)
        connections = getattr(process, "net_connections", None) or process.connections  # its name before psutil 6
        listening = [one.laddr for one in connections("tcp") if one.status == psutil.CONN_LISTEN]
        assert {address.ip for address in listening} == {"127.0.0.1"}
        assert {address.port for address in listening} == {
            port for slot in (0, 1) for port in network.lanes.ports(slot).values()
        }
