"""The thread that owns the monitor's sockets and runs it beside the tests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import zmq
from tornado.ioloop import IOLoop
from zmq.eventloop.zmqstream import ZMQStream

from pytest_ipcluster.hearts.direct import DirectMonitor
from pytest_ipcluster.hearts.doorkeeper import Doorkeeper
from pytest_ipcluster.hearts.keys import MonitorKeys
from pytest_ipcluster.hearts.monitor import HeartMonitor
from pytest_ipcluster.report.events import Event, EventLog

__all__ = ["MonitorThread", "bind", "remove_socket_files"]

_Result = TypeVar("_Result")

#: A pong is a routing id and a token; who sends more is no heart (bytes). A heart subscribes to everything, which takes
#: one byte; what else one subscribes to we would have to remember. Its introduction has to fit in as well.
_LONGEST_MESSAGE, _LONGEST_SUBSCRIPTION = 256, 64
#: An introduction with keys: the longest one has 257 bytes, and what is said of the socket, with an id of 255 bytes.
_LONGEST_INTRODUCTION = 1024
#: That of libzmq's authentication. There is none, but with a domain it refuses what does not speak ZMTP 3. HTTP, for
#: one, otherwise passes for ZMTP 1 and costs libzmq up to ten kilobytes a connection, for ever.
_DOMAIN = b"ipcluster"
#: What is needed are the two, and a pair for libzmq's notices.
_SOCKETS = 16
#: Messages that may wait for, and from, one heart: who is further behind gains nothing from more.
_PINGS_WAITING, _PONGS_WAITING = 10, 100
#: The kernel's share of what waits for one heart (bytes): with its usual buffers thousands of pings outlast a pause.
_BYTES_WAITING = 4096
#: A peer that has not introduced itself after this long is dropped (milliseconds).
_HANDSHAKE_LIMIT = 2000


class MonitorThread:
    """A :class:`HeartMonitor` on a thread, a loop and a zmq context of its own.

    ``ping`` and ``pong`` are addresses to bind; ``ping_url`` and ``pong_url`` are what they became, which is
    what hearts connect to. ``period`` is in milliseconds; ``accept`` and ``allowed`` are as for :class:`HeartMonitor`.
    With ``keys`` only hearts that have them are let in, and nobody else can read what is sent. ``gone`` is asked, on
    the monitor's thread, about a heart whose connection has broken: whether its process has ended, or None if that
    cannot be told. A heart whose process has ended is failed at once, whatever the period is. Everything the monitor
    sees is written to ``events``. Good for one start and one stop; every method may be
    called from any thread.
    """

    def __init__(
        self,
        ping: str = "tcp://127.0.0.1:*",
        pong: str = "tcp://127.0.0.1:*",
        *,
        period: float = 100.0,
        misses: int = 3,
        events: EventLog | None = None,
        accept: Callable[[bytes], bool] | None = None,
        allowed: Iterable[bytes] | None = None,
        gone: Callable[[bytes], bool | None] | None = None,
        keys: MonitorKeys | None = None,
        name: str = "ipcluster-heart-monitor",
    ) -> None:
        self.ping_url = ping
        self.pong_url = pong
        self.events = EventLog() if events is None else events
        self._settings: dict[str, Any] = {
            "period": period,
            "misses": misses,
            "accept": accept,
            "allowed": None if allowed is None else frozenset(allowed),
            "gone": gone,
        }
        self._keys = keys
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._announced = threading.Event()
        self._error: BaseException | None = None
        self._loop: IOLoop | None = None
        self._monitor: HeartMonitor | None = None
        # Guards the three below: a call is either seen by the thread or refused.
        self._lock = threading.Lock()
        self._calls: set[Future[Any]] = set()
        self._stopping = False
        self._over = False

    @property
    def monitor(self) -> HeartMonitor:
        """The running monitor. Raises RuntimeError before the start."""
        if self._monitor is None:
            raise RuntimeError(f"{self._thread.name} has no monitor yet: start() it first")
        return self._monitor

    def start(self, timeout: float = 10.0) -> None:
        """Return when the monitor listens.

        Raises what went wrong in the thread (``zmq.ZMQError`` for an address in use), RuntimeError for a second
        start, TimeoutError after ``timeout`` seconds.
        """
        self._thread.start()
        if not self._announced.wait(timeout):
            self._ask_to_stop()
            raise TimeoutError(
                f"{self._thread.name} did not listen on {self.ping_url} and {self.pong_url} within {timeout} s"
            )
        if self._error is not None:
            self.stop(timeout)
            raise self._error

    def stop(self, timeout: float = 10.0) -> None:
        """Return when the thread, its sockets, their files and its context are gone.

        May be called twice, and before the start. From a handler it only asks for the end. Raises TimeoutError when the
        thread still runs after ``timeout`` seconds.
        """
        self._ask_to_stop()
        if self._thread.ident is None or self._thread is threading.current_thread():
            return
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise TimeoutError(
                f"{self._thread.name} was told to stop, but still ran after {timeout} s: a handler that hangs?"
            )

    def call(self, function: Callable[..., _Result], *args: Any, timeout: float = 10.0) -> _Result:
        """Run ``function(*args)`` on the monitor's thread and return its result, or raise what it raises.

        Raises RuntimeError when the monitor does not run, TimeoutError when there is no result after
        ``timeout`` seconds.
        """
        if self._thread is threading.current_thread():
            return function(*args)
        future = self._submit(function, args)
        try:
            return future.result(timeout)
        except CancelledError:
            raise RuntimeError(f"{self._thread.name} ended before it could run {function!r}") from self._error
        except TimeoutError:
            if not future.cancel() and future.done():
                return future.result()
            raise TimeoutError(f"{self._thread.name} gave no result of {function!r} within {timeout} s") from None

    def wait_for_heart(self, heart: bytes, timeout: float = 10.0) -> None:
        """Return when ``heart`` is watched; TimeoutError after ``timeout`` seconds says which hearts are."""
        mark = len(self.events)
        if heart in self.monitor.hearts:
            return
        if self.events.wait_for(lambda event: _is_arrival(event, heart), timeout, since=mark) is None:
            known = ", ".join(map(repr, sorted(set(self.monitor.hearts)))) or "none"
            pongs = dict(self.monitor.ledger.tally) or "none"
            raise TimeoutError(f"no heart {heart!r} within {timeout} s; hearts that beat: {known}; pongs: {pongs}")

    # -- any thread

    def _submit(self, function: Callable[..., _Result], args: tuple[Any, ...]) -> Future[_Result]:
        future: Future[_Result] = Future()
        with self._lock:
            if self._over or self._loop is None:
                raise RuntimeError(f"{self._thread.name} does not run, so it cannot run {function!r}")
            self._calls.add(future)
            self._loop.add_callback(self._fulfil, future, function, args)
        return future

    def _ask_to_stop(self) -> None:
        with self._lock:
            self._stopping = True
            if self._loop is not None and not self._over:
                self._loop.add_callback(self._loop.stop)

    # -- the monitor's thread

    def _run(self) -> None:
        try:
            with ExitStack() as stack:
                self._serve(stack)
        except BaseException as error:  # whatever it is, start() must raise it and nobody may hang
            self._error = error
        finally:
            self._announced.set()

    def _serve(self, stack: ExitStack) -> None:
        """Listen, announce it, and beat until told to stop; what is opened here is closed in the reverse order."""
        stack.callback(lambda: remove_socket_files(self.ping_url, self.pong_url))
        context = make_context()
        stack.callback(context.destroy, linger=0)
        loop = IOLoop(make_current=False)
        stack.callback(loop.close)
        stack.callback(self._refuse_calls)
        if self._keys is not None:
            stack.callback(Doorkeeper(context, self._keys, loop).close)
        ping, self.ping_url = bind(context.socket(zmq.PUB), self.ping_url, self._keys)
        pong, self.pong_url = bind(context.socket(zmq.ROUTER), self.pong_url, self._keys)
        streams = [ZMQStream(socket, loop) for socket in (ping, pong)]
        for stream in streams:
            stack.callback(stream.close, linger=0)
        monitor = DirectMonitor(
            pingstream=streams[0], pongstream=streams[1], loop=loop, events=self.events, **self._settings
        )
        monitor.start()
        stack.callback(monitor.stop)
        self._begin(loop, monitor)
        loop.start()

    def _begin(self, loop: IOLoop, monitor: HeartMonitor) -> None:
        with self._lock:
            self._loop, self._monitor = loop, monitor
            if self._stopping:
                loop.add_callback(loop.stop)
        self._announced.set()

    def _fulfil(self, future: Future[_Result], function: Callable[..., _Result], args: tuple[Any, ...]) -> None:
        with self._lock:
            self._calls.discard(future)
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(function(*args))
        except BaseException as error:  # it belongs to the caller
            future.set_exception(error)

    def _refuse_calls(self) -> None:
        """Take no more calls, and tell those who still wait for one."""
        with self._lock:
            self._over = True
            waiting, self._calls = self._calls, set()
        for future in waiting:
            future.cancel()
            future.set_running_or_notify_cancel()


def make_context() -> zmq.Context[zmq.Socket[bytes]]:
    """Return a zmq context for a monitor's sockets, and not for many more."""
    context = zmq.Context()
    context.set(zmq.MAX_SOCKETS, _SOCKETS)
    return context


def bind(socket: zmq.Socket[bytes], url: str, keys: MonitorKeys | None = None) -> tuple[zmq.Socket[bytes], str]:
    """Bind a socket that strangers cannot make us pay for; return it with the address it really got."""
    socket.linger = 0
    socket.sndbuf = _BYTES_WAITING
    socket.sndhwm, socket.rcvhwm = _PINGS_WAITING, _PONGS_WAITING
    publishes = socket.type == zmq.PUB
    longest = _LONGEST_SUBSCRIPTION if publishes else _LONGEST_MESSAGE
    if keys is not None:
        keys.apply(socket)
        longest = _LONGEST_INTRODUCTION
    socket.setsockopt(zmq.MAXMSGSIZE, longest)
    if not publishes and (keys is not None or url.startswith("ipc://")):
        # A heart may be back before this thread knows that it was gone: libzmq then never hears it again, or lets it
        # take its name from the older connection. Where anybody may connect, anybody could take it.
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
    socket.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_LIMIT)
    socket.setsockopt(zmq.ZAP_DOMAIN, _DOMAIN)
    socket.bind(url)
    return socket, socket.getsockopt_string(zmq.LAST_ENDPOINT)


def remove_socket_files(*urls: str) -> None:
    """Do what libzmq leaves to us when it closes an ipc socket."""
    for url in urls:
        path = Path(url.removeprefix("ipc://"))
        if url.startswith("ipc://") and path.is_socket():
            path.unlink(missing_ok=True)


def _is_arrival(event: Event, heart: bytes) -> bool:
    return event.heart == heart and event.kind in ("new heart", "returned")
