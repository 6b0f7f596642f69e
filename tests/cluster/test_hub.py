"""When the hub is asked. Here a thread answers in its place; all tests of clusters ask the real one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import zmq
from jupyter_client.session import Session

from pytest_ipcluster.cluster import hub as hub_module
from pytest_ipcluster.cluster.hub import Hub
from pytest_ipcluster.cluster.wakeup import Wakeup

SOON = 30.0
KEY = "key"


@contextmanager
def hub_that_answers(*answers: dict[str, str]) -> Iterator[tuple[Hub, list[float]]]:
    """Connect to one that answers so, one after the other, the last for good, and publishes nothing."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as requests, context.socket(zmq.PUB) as notices:
        ports = {
            "registration": requests.bind_to_random_port("tcp://127.0.0.1"),
            "notification": notices.bind_to_random_port("tcp://127.0.0.1"),
        }
        asked: list[float] = []
        ended = threading.Event()

        def answer() -> None:
            session = Session(key=KEY.encode())
            while not ended.is_set():
                if requests.poll(20):
                    idents, _ = session.recv(requests, mode=0)
                    engines = answers[min(len(asked), len(answers) - 1)]
                    asked.append(time.monotonic())
                    session.send(requests, "connection_reply", content={"engines": engines}, ident=idents)

        thread = threading.Thread(target=answer)
        thread.start()
        coded = {"key": KEY, "signature_scheme": "hmac-sha256", "pack": "json", "unpack": "json"}
        hub = Hub({"interface": "tcp://127.0.0.1", **coded, **ports})
        try:
            yield hub, asked
        finally:
            hub.close()
            ended.set()
            thread.join()


def test_a_notice_that_was_missed_is_made_up_for_long_before_the_longest_pause(monkeypatch):
    monkeypatch.setattr(hub_module, "_ASK_AGAIN", 2 * SOON)
    monkeypatch.setattr(hub_module, "_TURN", SOON)  # for the slowest machine to answer in
    with hub_that_answers({"0": "here"}, {}) as (hub, asked), Wakeup() as wakeup:
        deadline = time.monotonic() + SOON
        assert hub.wait_until(lambda engines: not engines, deadline, wakeup, lambda: None) == {}
        assert len(asked) == 2


def test_the_hub_is_asked_less_and_less_often(monkeypatch):
    monkeypatch.setattr(hub_module, "_TURN", SOON)
    monkeypatch.setattr(hub_module, "time", clock := Clock())
    with hub_that_answers({"0": "here"}) as (hub, asked), Wakeup() as wakeup:
        monkeypatch.setattr(wakeup, "wait", clock.sleep)
        assert hub.wait_until(lambda engines: not engines, 60.0, wakeup, lambda: None) is None
    assert 60 <= len(asked) <= 66  # every second, and some more at the beginning


class Clock:
    """Time that goes on only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
