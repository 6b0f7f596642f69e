"""A monitor with keys: who has none is not let in, and no key comes out of it."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import zmq
from traitlets.config import Config

from pytest_ipcluster.hearts import agent
from pytest_ipcluster.hearts.heart import Heart
from pytest_ipcluster.hearts.keys import HeartKeys, MonitorKeys
from pytest_ipcluster.hearts.process import MonitorProcess
from pytest_ipcluster.hearts.thread import MonitorThread

A, B = b"heart-a", b"heart-b"
SOON = 30.0

Start = Callable[..., MonitorThread]


@pytest.fixture
def keys() -> MonitorKeys:
    return MonitorKeys.generate()


@pytest.fixture(params=[MonitorThread, MonitorProcess])
def monitor(request: pytest.FixtureRequest, keys: MonitorKeys) -> Iterator[MonitorThread]:
    monitor = request.param(period=50.0, keys=keys)
    monitor.start()
    yield monitor
    monitor.stop()


def secrets(keys: MonitorKeys) -> list[str]:
    return [key.decode() for key in (keys.secret, keys.hearts.secret, keys.hearts.public, keys.hearts.server)]


def test_heart_with_the_keys_is_watched(monitor: MonitorThread, keys: MonitorKeys, ending: ExitStack) -> None:
    heart = Heart(monitor.ping_url, monitor.pong_url, heart_id=b"x" * 255, keys=keys.hearts)
    ending.callback(heart.stop)
    heart.start()
    monitor.wait_for_heart(b"x" * 255, SOON)


def others(keys: MonitorKeys) -> dict[str, HeartKeys | None]:
    pair = zmq.curve_keypair()
    return {
        "none": None,
        "another pair": HeartKeys(keys.hearts.server, *pair),
        "another monitor": HeartKeys(pair[0], keys.hearts.public, keys.hearts.secret),
    }


@pytest.mark.parametrize("which", ["none", "another pair", "another monitor"])
def test_who_does_not_have_the_keys_is_not_let_in(monitor: MonitorThread, keys: MonitorKeys, which: str) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as voice, context.socket(zmq.SUB) as pings:
        voice.linger = pings.linger = 0
        pings.subscribe(b"")
        with closing(voice.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_AUTH)) as events:
            for socket, url in ((voice, monitor.pong_url), (pings, monitor.ping_url)):
                if (stranger := others(keys)[which]) is not None:
                    stranger.apply(socket.setsockopt)
                socket.connect(url)
            with suppress(zmq.Again):  # turned away already: then it has nobody to send to, and would wait for ever
                voice.send(b"let me in", zmq.NOBLOCK)
            assert events.poll(1000 * SOON), "the monitor kept the connection"
            # One who is let in hears of it meanwhile, at the same address.
            heart = Heart(monitor.ping_url, monitor.pong_url, heart_id=A, keys=keys.hearts)
            heart.start()
            monitor.wait_for_heart(A, SOON)
            heart.stop()
            assert not pings.poll(0)
            voice.disable_monitor()
    assert monitor.monitor.hearts <= {A}
    assert monitor.monitor.bad_messages == 0


def test_keys_are_in_no_repr_event_or_command_line(
    monitor: MonitorThread, keys: MonitorKeys, capfd: pytest.CaptureFixture[str]
) -> None:
    told = [repr(keys), repr(keys.hearts), str(keys), repr(monitor), repr(monitor.events.since())]
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):  # others may end at any moment
            told += [*process.cmdline(), *process.environ().values()]
    told += capfd.readouterr()
    for secret in secrets(keys):
        assert not any(secret in text for text in told)


def test_file_of_keys_is_for_its_owner_only_and_is_never_overwritten(keys: MonitorKeys, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    keys.hearts.write(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert HeartKeys.read(path) == keys.hearts
    assert keys.secret.decode() not in path.read_text()
    with pytest.raises(FileExistsError):
        keys.hearts.write(path)


def test_agent_takes_the_keys_from_their_file(
    monitor: MonitorThread, keys: MonitorKeys, tmp_path: Path, ending: ExitStack
) -> None:
    keys.hearts.write(tmp_path / "keys")
    settings = {"ping": monitor.ping_url, "pong": monitor.pong_url, "key_file": str(tmp_path / "keys")}
    kernel = SimpleNamespace(ident="engine", engine_id=0, parent=SimpleNamespace())
    ip = SimpleNamespace(config=Config({"HeartAgent": settings}), kernel=kernel)
    ending.callback(agent.unload_ipython_extension, ip)
    agent.load_ipython_extension(ip)
    monitor.wait_for_heart(b"engine", SOON)
