from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import psutil
import pytest
import zmq
from waiting import until

from pytest_ipcluster.hearts.heart import Heart

LIMIT = 10_000  # milliseconds


class Listener:
    """The other end of hearts: an XPUB, which says who has come to listen, and a ROUTER."""

    def __init__(self) -> None:
        self.context = zmq.Context()
        self.pub, self.ping = self._bind(zmq.XPUB)
        self.router, self.pong = self._bind(zmq.ROUTER)

    def _bind(self, kind: int) -> tuple[zmq.Socket[bytes], str]:
        socket = self.context.socket(kind)
        socket.linger = 0
        socket.rcvtimeo = LIMIT
        socket.bind("tcp://127.0.0.1:*")
        return socket, socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def exchange(self, token: bytes) -> list[bytes]:
        """Send a ping and return the answer."""
        self.pub.send(token)
        return self.router.recv_multipart()


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.context.destroy(linger=0)


@pytest.fixture
def heart(listener: Listener) -> Iterator[Heart]:
    """A heart that has begun to listen."""
    heart = Heart(listener.ping, listener.pong, heart_id=b"one")
    heart.start()
    assert listener.pub.recv() == b"\x01"
    yield heart
    heart.stop()


def threads_of_hearts() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "ipcluster-heart"]


def test_class_has_no_device_and_no_id() -> None:
    assert Heart.device is None
    assert Heart.id is None


def test_heart_sends_back_what_it_hears_under_its_id(listener: Listener, heart: Heart) -> None:
    assert heart.id == b"one"
    assert listener.exchange(b"token") == [b"one", b"token"]


@pytest.mark.usefixtures("heart")
def test_heart_answers_every_ping_in_order(listener: Listener) -> None:
    assert [listener.exchange(b"%d" % n)[1] for n in range(20)] == [b"%d" % n for n in range(20)]


def test_heart_without_an_id_gets_a_random_one() -> None:
    first, second = (Heart("tcp://127.0.0.1:1", "tcp://127.0.0.1:1").id for _ in range(2))
    assert len(first) == len(second) == 16
    assert first != second


def test_text_id_is_sent_as_utf_8() -> None:
    assert Heart("tcp://127.0.0.1:1", "tcp://127.0.0.1:1", heart_id="Müller").id == "Müller".encode()


@pytest.mark.parametrize("heart_id", [b"", "", b"x" * 256, "ü" * 128])
def test_id_that_zmq_cannot_carry_is_refused(heart_id: bytes | str) -> None:
    with pytest.raises(ValueError, match="1 to 255 bytes"):
        Heart("tcp://127.0.0.1:1", "tcp://127.0.0.1:1", heart_id=heart_id)


def test_arguments_of_old_are_taken_by_position(listener: Listener) -> None:
    heart = Heart(listener.ping, listener.pong, zmq.SUB, zmq.DEALER, b"two")
    heart.start()
    listener.pub.recv()
    assert listener.exchange(b"token") == [b"two", b"token"]
    heart.stop()


def test_other_socket_types_are_used() -> None:
    with zmq.Context() as context, context.socket(zmq.PUSH) as push, context.socket(zmq.PULL) as pull:
        push.linger = pull.linger = 0
        pull.rcvtimeo = LIMIT
        for socket in (push, pull):
            socket.bind("tcp://127.0.0.1:*")
        ends = [socket.getsockopt_string(zmq.LAST_ENDPOINT) for socket in (push, pull)]
        heart = Heart(*ends, zmq.PULL, zmq.PUSH)
        heart.start()
        push.send(b"token")
        assert pull.recv() == b"token"
        heart.stop()


def test_device_is_a_daemon_with_a_context_of_its_own(heart: Heart) -> None:
    (thread,) = threads_of_hearts()
    assert thread.daemon
    assert heart.device.context is not zmq.Context.instance()


def test_starting_a_beating_heart_starts_no_second_one(heart: Heart) -> None:
    heart.start()
    assert len(threads_of_hearts()) == 1


def test_stopped_heart_leaves_no_thread(listener: Listener, heart: Heart) -> None:
    listener.exchange(b"token")
    heart.stop()
    heart.stop()
    assert threads_of_hearts() == []


def test_heart_that_never_started_can_be_stopped() -> None:
    Heart("tcp://127.0.0.1:1", "tcp://127.0.0.1:1").stop()


def test_heart_can_be_stopped_at_any_moment_of_its_start() -> None:
    for _ in range(50):
        heart = Heart("tcp://127.0.0.1:1", "tcp://127.0.0.1:1")
        heart.start()
        heart.stop()
    assert threads_of_hearts() == []


@pytest.fixture
def blocked_door() -> Iterator[socket.socket]:
    """A socket that listens, and whose queue is full of strangers whom nobody lets in."""
    with ExitStack() as stack:
        door = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):
            stranger = stack.enter_context(socket.socket())
            stranger.setblocking(False)
            stranger.connect_ex(door.getsockname())
        yield door


def ports_that_try(address: tuple[str, int]) -> set[int]:
    """Return the ports of this process from which there is a connection to that address, or a try to have one."""
    process = psutil.Process()
    connections = getattr(process, "net_connections", None) or process.connections  # the name before psutil 6
    return {one.laddr.port for one in connections("tcp") if one.raddr == address}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems refuse whom they have no room for")
def test_heart_that_nobody_lets_in_begins_anew_instead_of_waiting_longer_and_longer(blocked_door) -> None:
    address = blocked_door.getsockname()
    tries = ports_that_try(address)
    others = len(tries)
    heart = Heart("tcp://127.0.0.1:1", f"tcp://127.0.0.1:{address[1]}")
    heart.start()

    def has_begun_anew() -> bool:
        tries.update(ports_that_try(address))
        return len(tries) - others >= 3

    try:
        until(has_begun_anew)
    finally:
        heart.stop()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")
def test_stopped_hearts_leave_no_descriptor(listener: Listener) -> None:
    def beat_once() -> None:
        heart = Heart(listener.ping, listener.pong, heart_id=b"one")
        heart.start()
        assert listener.pub.recv() == b"\x01"
        heart.stop()
        assert listener.pub.recv() == b"\x00"

    beat_once()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        beat_once()
    # The other end of a connection is closed a moment later, by a thread of the listener's.
    until(lambda: len(os.listdir("/proc/self/fd")) <= before)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="calls poll(2)")
@pytest.mark.usefixtures("heart")
def test_heart_answers_while_the_interpreter_is_locked(listener: Listener) -> None:
    class PollFd(ctypes.Structure):
        _fields_ = (("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short))

    listener.exchange(b"introduction")
    assert not listener.router.poll(0)
    listener.pub.send(b"token")
    wanted = PollFd(listener.router.FD, 1, 0)
    # PyDLL keeps the interpreter lock during the call, so no Python thread can run until the answer is there.
    assert ctypes.PyDLL(None).poll(ctypes.byref(wanted), 1, LIMIT) == 1
    assert listener.router.recv_multipart(zmq.NOBLOCK) == [b"one", b"token"]


ALONE = """
import sys
for name in ("pytest", "_pytest", "traitlets", "tornado", "IPython", "ipyparallel", "psutil", "jupyter_client"):
    sys.modules[name] = None
import {module}
print(sorted(name for name in sys.modules if name.startswith("pytest_ipcluster")))
"""


@pytest.mark.parametrize(
    ("module", "others"),
    [("pytest_ipcluster.hearts.heart", []), ("pytest_ipcluster.hearts.agent", ["crash", "farewell", "tasks"])],
)
def test_what_runs_in_engines_needs_pyzmq_only(module: str, others: list[str]) -> None:
    done = run_python(ALONE.format(module=module))
    assert done.returncode == 0, done.stderr
    hearts = "pytest_ipcluster.hearts"
    needed = {
        "pytest_ipcluster",
        hearts,
        f"{hearts}.heart",
        f"{hearts}.keys",
        module,
        *(f"{hearts}.{one}" for one in others),
    }
    assert done.stdout.strip() == str(sorted(needed))


def test_process_with_a_beating_heart_ends_when_it_is_done(listener: Listener) -> None:
    done = run_python(
        "import sys; from pytest_ipcluster.hearts.heart import Heart; heart = Heart(*sys.argv[1:]); heart.start()",
        listener.ping,
        listener.pong,
    )
    assert (done.returncode, done.stderr) == (0, "")


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
