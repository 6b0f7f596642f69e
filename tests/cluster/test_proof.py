"""A task must come back from every engine by way of every scheduler, and whoever does not carry it is named."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import psutil
import pytest
import zmq
from jupyter_client.session import Session
from waiting import until

from pytest_ipcluster.cluster import proof as proof_module
from pytest_ipcluster.cluster.proof import Proof
from pytest_ipcluster.cluster.wakeup import Wakeup

ENGINES = {0: "uuid-of-0", 1: "uuid-of-1"}
CHANNELS = ("mux", "task", "broadcast")
# Long enough that no test passes because its time ran out.
PATIENCE = 60


class Controller:
    """Schedulers that answer for the engines, unless ``obstacle(channel, uuid, count)`` says otherwise.

    It returns "lost" for a task that is lost, "refused" for one that does not get as far as the engine, and "" for
    one that is answered; ``count`` is how many tasks that engine has been sent on that channel by now.
    """

    def __init__(self) -> None:
        self.obstacle: Callable[[str, str, int], str] = lambda *_: ""
        self.asked: Counter[tuple[str, str]] = Counter()
        self._session = Session(key=b"secret", signature_scheme="hmac-sha256")
        self._context = zmq.Context()
        self._sockets = {channel: self._context.socket(zmq.ROUTER) for channel in CHANNELS}
        ports = {name: socket.bind_to_random_port("tcp://127.0.0.1") for name, socket in self._sockets.items()}
        self.connection = {
            "key": "secret",
            "signature_scheme": "hmac-sha256",
            "pack": "json",
            "unpack": "json",
            "interface": "tcp://127.0.0.1",
            "task_scheme": "leastload",
            **ports,
        }
        self._over = self._context.socket(zmq.PAIR)
        self._over.bind("inproc://over")
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        over = self._context.socket(zmq.PAIR)
        over.connect("inproc://over")
        poller = zmq.Poller()
        for socket in (over, *self._sockets.values()):
            poller.register(socket, zmq.POLLIN)
        while over not in (ready := dict(poller.poll())):
            for channel, socket in self._sockets.items():
                if socket in ready:
                    self._carry(channel, socket)
        over.close()

    def _carry(self, channel: str, socket: zmq.Socket[bytes]) -> None:
        idents, task = self._session.recv(socket, mode=0)
        targets = task["metadata"].get("targets")
        uuids = {
            "mux": lambda: [idents[1].decode()],
            "task": lambda: targets,
            "broadcast": lambda: [t[0] for t in targets],
        }
        for uuid in uuids[channel]():
            self.asked[channel, uuid] += 1
            obstacle = self.obstacle(channel, uuid, self.asked[channel, uuid])
            if obstacle != "lost":
                self._answer(socket, idents[0], task, uuid, broadcast=channel == "broadcast", ok=not obstacle)

    def _answer(
        self, socket: zmq.Socket[bytes], client: bytes, task: dict, uuid: str, *, broadcast: bool, ok: bool
    ) -> None:
        header = task["header"]
        parent = {**header, "msg_id": f"{header['msg_id']}_{uuid}"} if broadcast else header
        content, metadata = ({"status": "ok"}, {"engine": uuid}) if ok else ({"status": "error"}, {})
        self._session.send(socket, "apply_reply", content, parent=parent, ident=client, metadata=metadata)

    def close(self) -> None:
        self._over.send(b"")
        self._thread.join()
        self._context.destroy(linger=0)


@pytest.fixture
def controller() -> Iterator[Controller]:
    with contextlib.closing(Controller()) as controller:
        yield controller


def proven(controller: Controller, *, check: Callable[[], object] = lambda: None) -> str:
    with Wakeup() as wakeup, contextlib.closing(Proof(controller.connection, wakeup, check)) as proof:
        return proof.carry(ENGINES, time.monotonic() + PATIENCE)


def test_each_engine_is_sent_one_task_by_each_scheduler(controller, monkeypatch):
    monkeypatch.setattr(proof_module, "_ASK_AGAIN", PATIENCE)  # nobody is late
    assert proven(controller) == ""
    assert controller.asked == {(channel, uuid): 1 for channel in CHANNELS for uuid in ENGINES.values()}


@pytest.mark.parametrize("channel", ["mux", "broadcast"])
def test_a_lost_task_is_sent_again(controller, channel):
    controller.obstacle = lambda *it: "lost" if it == (channel, ENGINES[1], 1) else ""
    assert proven(controller) == ""
    assert controller.asked[channel, ENGINES[1]] >= 2


def test_who_has_answered_is_not_asked_again(controller):
    controller.obstacle = lambda *it: "lost" if it == ("mux", ENGINES[1], 1) else ""
    proven(controller)
    assert controller.asked["mux", ENGINES[0]] == 1


def test_who_can_lose_a_task_for_ever_is_asked_when_all_others_have_answered(controller):
    answered = []

    def obstacle(channel, uuid, count):
        late = channel != "task" and count < 2
        if not late:
            answered.append((channel, uuid))
        return "lost" if late else ""

    controller.obstacle = obstacle
    assert proven(controller) == ""
    assert {channel for channel, _ in answered[: -len(ENGINES)]} == {"mux", "broadcast"}
    assert {channel for channel, _ in answered[-len(ENGINES) :]} == {"task"}


def test_a_task_that_a_scheduler_keeps_is_not_doubled(controller):
    # It would be answered if it were sent again.
    controller.obstacle = lambda channel, _, count: "lost" if channel == "task" and count == 1 else ""
    sent: list[float] = []

    def enough() -> None:
        """End it when the task was sent long enough ago for others to be sent again."""
        if controller.asked["task", ENGINES[0]]:
            sent.append(time.monotonic())
            if sent[-1] - sent[0] > 2 * proof_module._ASK_AGAIN:
                raise TimeoutError

    with pytest.raises(TimeoutError):
        proven(controller, check=enough)
    assert controller.asked["task", ENGINES[0]] == 1


def test_a_task_that_was_refused_is_sent_again(controller):
    controller.obstacle = lambda channel, _, count: "refused" if channel == "task" and count == 1 else ""
    assert proven(controller) == ""
    assert controller.asked["task", ENGINES[0]] == 2


def test_schedulers_that_carry_nothing_are_named_with_the_slots(controller, monkeypatch):
    controller.obstacle = lambda channel, uuid, _: "lost" if channel == "mux" or uuid == ENGINES[1] else ""

    def now() -> float:
        """Have the time be up once slot 1 was asked again by broadcast, and slot 0 was not, for it has answered."""
        over = controller.asked["broadcast", ENGINES[1]] > controller.asked["broadcast", ENGINES[0]]
        return time.monotonic() + (2 * PATIENCE if over else 0.0)

    monkeypatch.setattr(proof_module, "time", SimpleNamespace(monotonic=now))
    assert proven(controller) == " and ".join(
        [
            "the direct scheduler has not carried a task to slots [0, 1] and back",
            "the broadcast scheduler has not carried a task to slots [1] and back",
        ]
    )


def test_a_process_that_ends_meanwhile_ends_the_wait(controller):
    controller.obstacle = lambda *_: "lost"
    looks = iter([None, None])

    def check() -> None:
        if next(looks, "ended") is not None:
            raise ProcessLookupError

    with pytest.raises(ProcessLookupError):
        proven(controller, check=check)


def test_a_pure_scheduler_is_not_asked(controller):
    controller.connection["task_scheme"] = "pure"
    assert proven(controller) == ""
    assert {channel for channel, _ in controller.asked} == {"mux", "broadcast"}


def test_no_engines_need_no_proof(controller):
    with Wakeup() as wakeup, contextlib.closing(Proof(controller.connection, wakeup, lambda: None)) as proof:
        assert proof.carry({}, time.monotonic()) == ""


def test_nothing_of_it_stays(controller):
    def held() -> tuple[int, int]:
        return psutil.Process().num_threads(), psutil.Process().num_fds()

    def at_most(before: tuple[int, int]) -> bool:
        return all(now <= then for now, then in zip(held(), before, strict=True))

    proven(controller)
    before = held()  # it may have more than stays: the other end is in this process, too, and closes a moment later
    for _ in range(10):
        proven(controller)
    until(lambda: at_most(before))
