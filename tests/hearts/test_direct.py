from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import pytest
import zmq
from tornado.ioloop import IOLoop
from zmq.eventloop.zmqstream import ZMQStream

from pytest_ipcluster.hearts.direct import DirectMonitor
from pytest_ipcluster.hearts.heart import Heart
from pytest_ipcluster.hearts.thread import MonitorThread

A = b"heart-a"
PATIENCE = 10_000


@pytest.fixture
def context(ending: ExitStack) -> zmq.Context[zmq.Socket[bytes]]:
    context = zmq.Context()
    ending.callback(context.destroy, linger=0)
    return context


@pytest.fixture
def monitor(ending: ExitStack, context: zmq.Context[zmq.Socket[bytes]]) -> DirectMonitor:
    """A monitor that has begun, on a loop that does not run: nothing is read but what a beat reads."""
    loop = IOLoop(make_current=False)
    ending.callback(loop.close)
    streams = [ZMQStream(context.socket(kind), loop) for kind in (zmq.PUB, zmq.ROUTER)]
    for stream in streams:
        stream.socket.bind("tcp://127.0.0.1:*")
        ending.callback(stream.close, linger=0)
    monitor = DirectMonitor(pingstream=streams[0], pongstream=streams[1], loop=loop, period=100_000.0)
    monitor.ledger._make_token = lambda number: b"token-%d" % number
    monitor.start()
    ending.callback(monitor.stop)
    return monitor


@pytest.fixture
def voice(ending: ExitStack, context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
    voice = context.socket(zmq.DEALER)
    ending.callback(voice.close, linger=0)
    voice.identity = A
    return voice


def test_answers_to_a_ping_are_read_without_another_turn_of_the_loop(
    monitor: DirectMonitor, voice: zmq.Socket[bytes]
) -> None:
    pongs = monitor.pongstream.socket
    voice.connect(pongs.getsockopt_string(zmq.LAST_ENDPOINT))
    monitor.ledger.admit(A)
    monitor._tick()
    voice.send(b"token-1")
    assert pongs.poll(PATIENCE)
    monitor._drain()
    assert not monitor.ledger.is_waiting
    voice.send(b"token-2")  # as quick as an answer can be: it is there before the ping
    assert pongs.poll(PATIENCE)
    monitor._tick()
    assert monitor.ledger.token == b"token-2"
    assert monitor.responses == {A}


def test_nobody_is_woken_by_what_happens_on_the_way_of_the_pings(
    monkeypatch: pytest.MonkeyPatch,
    start_monitor: Callable[..., MonitorThread],
    start_heart: Callable[[MonitorThread, bytes], Heart],
) -> None:
    """A stream wakes its loop for each subscription, and for every few pings that have left for one heart."""
    woken: list[ZMQStream] = []
    monkeypatch.setattr(ZMQStream, "_handle_events", lambda stream, *_: woken.append(stream))
    thread = start_monitor(period=20.0)
    start_heart(thread, A)
    thread.wait_for_heart(A)
    assert woken == []
