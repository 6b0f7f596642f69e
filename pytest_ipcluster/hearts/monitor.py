"""``HeartMonitor``: sends pings, hears pongs, and tells handlers whose heart is new, failed or back.

It lives on the thread of its event loop. What may be called from elsewhere says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import zmq
from tornado.ioloop import IOLoop
from traitlets import CFloat, CInt, Instance, default, observe
from traitlets.config import LoggingConfigurable
from zmq.eventloop.zmqstream import ZMQStream

from pytest_ipcluster.hearts.handlers import Handler, HandlerError, Handlers
from pytest_ipcluster.hearts.ledger import Ledger
from pytest_ipcluster.hearts.verdicts import Beat, Failure
from pytest_ipcluster.report.events import EventLog

__all__ = ["Handler", "HandlerError", "HeartMonitor"]


class _Responses(Instance):  # type: ignore[type-arg]
    """The ledger's set of that name, which takes in what was heard in batches whenever it is asked for."""

    def get(self, obj: Any, cls: Any = None) -> Any:  # noqa: ARG002 - as traitlets calls it
        return obj.ledger.responses


class HeartMonitor(LoggingConfigurable):
    """Watches hearts over a PUB stream for pings and a ROUTER stream for pongs.

    Further arguments than the traits: ``events``, a time line to write to; ``clock``, monotonic seconds; ``accept``,
    which is asked about every heart id; ``allowed``, the only ids that are watched, with those that are allowed later.
    Without these two every heart that answers is watched.
    """

    created: ClassVar[None] = None

    period = CFloat(100.0, min=0.001, config=True, help="How many milliseconds lie between two pings.")
    misses = CInt(3, min=1, config=True, help="How many beats a heart must miss in a row to be declared failed.")

    pingstream = Instance(ZMQStream, help="A PUB stream, on which pings go out.")
    pongstream = Instance(ZMQStream, help="A ROUTER stream, on which pongs come in.")
    loop = Instance(IOLoop, help="The event loop that beats; the current one by default.")

    hearts = Instance(set, help="The ids of the hearts that are watched.")
    responses = _Responses(set, help="The hearts that have answered since the last beat.")
    on_probation = Instance(set, help="The hearts that missed the last beat, or more.")
    last_ping = CFloat(0.0, help="The lifetime, in seconds, at the ping before the last one.")
    lifetime = CFloat(0.0, help="How many seconds the monitor had run at the last ping.")
    tic = CFloat(0.0, help="When the last beat was, in seconds of the monotonic clock.")

    def __init__(
        self,
        *,
        events: EventLog | None = None,
        clock: Callable[[], float] = time.monotonic,
        accept: Callable[[bytes], bool] | None = None,
        allowed: Iterable[bytes] | None = None,
        **kwargs: Any,
    ) -> None:
        self.events = events
        #: How many messages came in that were no pongs at all.
        self.bad_messages = 0
        self._clock = clock
        self._ledger = Ledger(accept=accept, allowed=allowed)
        self._failures: dict[bytes, Failure] = {}
        self._handler_errors: list[HandlerError] = []
        self._new_handlers = Handlers(self._handler_errors)
        self._failure_handlers = Handlers(self._handler_errors)
        self._return_handlers = Handlers(self._handler_errors)
        self._running = False
        self._timer: object | None = None
        super().__init__(**kwargs)
        self._apply_settings()

    # -- running

    def start(self) -> None:
        """Begin to listen and to beat; the first ping goes out as soon as the loop runs."""
        if self._running:
            return
        self._running = True
        self.tic = self._clock()
        self._listen()
        self._timer = self.loop.call_later(0, self._tick)

    def stop(self) -> None:
        """Stop listening and beating; may be called twice. The streams stay open, they are the caller's."""
        self._running = False
        if self._timer is not None:
            self.loop.remove_timeout(self._timer)
            self._timer = None
        self._hush()

    def beat(self) -> None:
        """Hear what has come in, judge, tell the handlers, then send the next ping."""
        now = self._clock()
        self._hear()
        self.last_ping, self.lifetime = self.lifetime, self.lifetime + now - self.tic
        self.tic = now
        beat = self._ledger.beat(now)
        self._announce(beat)
        self._send(beat.token)
        self._ledger.sent(self._clock())

    def handle_pong(self, msg: object) -> None:
        """Book one pong, ``[heart, token]``. Anything else is counted in ``bad_messages``; nothing raises."""
        match msg:
            case [bytes(heart), bytes(token)]:
                self._ledger.pong(heart, token, self._clock())
            case _:
                self.bad_messages += 1

    # -- verdicts

    def handle_new_heart(self, heart: bytes) -> None:
        """Watch a heart and tell the handlers for new hearts."""
        self._ledger.admit(heart)
        self._new_handlers.call(heart)
        self._note("new heart", heart)

    def handle_heart_failure(self, heart: bytes) -> None:
        """Fail a heart and tell the handlers for failures, once per death; a heart that is not watched is ignored."""
        self._fail(heart)

    def _fail(self, heart: bytes, noticed: str = "") -> None:
        """Pass the verdict, by whatever sense it was ``noticed``, and tell the handlers."""
        failure = self._ledger.condemn(heart, self._clock())
        if failure is None or self._failures.get(heart) is failure:
            return
        self._failures[heart] = failure
        self._failure_handlers.call(heart)
        self._note("failed", heart, noticed + _describe_silence(failure), at=failure.verdict_at)

    def handle_heart_return(self, heart: bytes) -> None:
        """Watch a failed heart again; tell the handlers for returns, then those for new hearts."""
        self._ledger.admit(heart)
        self._return_handlers.call(heart)
        self._new_handlers.call(heart)
        self._note("returned", heart)

    def failure_of(self, heart: bytes) -> Failure | None:
        """Return the latest verdict on a heart, also when it is back since; None without one. From any thread."""
        return self._failures.get(heart)

    def forget(self, heart: bytes) -> None:
        """Drop a heart without a verdict, for one that is stopped on purpose. Its pongs are ignored from now on."""
        self._ledger.forget(heart)
        self._note("forgotten", heart)

    def allow(self, heart: bytes) -> None:
        """Watch a heart from its next answer on, or at once if it has just given one; see ``allowed``."""
        if self._ledger.allow(heart, self._clock()):
            self._welcome(heart)

    def _welcome(self, heart: bytes) -> None:
        """Watch one who has answered."""
        (self.handle_heart_return if heart in self._ledger.tombstones else self.handle_new_heart)(heart)

    def mute(self, heart: bytes) -> None:
        """Drop the pongs of a heart as they come in, so that it is failed by missed beats though its process lives."""
        self._ledger.mute(heart)
        self._note("muted", heart, at=self._clock())

    def unmute(self, heart: bytes) -> None:
        """Hear a heart again. One that was failed meanwhile returns with its next answers."""
        self._ledger.unmute(heart)
        self._note("unmuted", heart, at=self._clock())

    @property
    def ledger(self) -> Ledger:
        """The books: tombstones, and the tally of pongs by what they were worth."""
        return self._ledger

    # -- handlers; all of these may be called from any thread

    def add_new_heart_handler(self, handler: Handler) -> None:
        """Call ``handler(heart)`` for every heart that is new or back. Adding it again changes nothing."""
        self._new_handlers.add(handler)

    def add_heart_failure_handler(self, handler: Handler) -> None:
        """Call ``handler(heart)`` for every heart that failed, once per death. Adding it again changes nothing."""
        self._failure_handlers.add(handler)

    def add_heart_return_handler(self, handler: Handler) -> None:
        """Call ``handler(heart)`` for every failed heart that is back. Adding it again changes nothing."""
        self._return_handlers.add(handler)

    def remove_new_heart_handler(self, handler: Handler) -> None:
        """Call the handler no more; no error when it was never added."""
        self._new_handlers.remove(handler)

    def remove_heart_failure_handler(self, handler: Handler) -> None:
        """Call the handler no more; no error when it was never added."""
        self._failure_handlers.remove(handler)

    def remove_heart_return_handler(self, handler: Handler) -> None:
        """Call the handler no more; no error when it was never added."""
        self._return_handlers.remove(handler)

    @contextmanager
    def temporary_handlers(self) -> Iterator[None]:
        """Take back, at the end of the block, every handler that was added in it. From any thread."""
        lists = (self._new_handlers, self._failure_handlers, self._return_handlers)
        before = [handlers.registered for handlers in lists]
        try:
            yield
        finally:
            for handlers, kept in zip(lists, before, strict=True):
                handlers.keep(kept)

    def take_handler_errors(self) -> list[HandlerError]:
        """Return what handlers have raised since the last call, oldest first."""
        count = len(self._handler_errors)
        taken = self._handler_errors[:count]
        del self._handler_errors[:count]
        return taken

    def raise_handler_errors(self) -> None:
        """Raise what handlers have raised since the errors were last taken: the one exception, or all as a group."""
        errors = [error.exception for error in self.take_handler_errors()]
        if len(errors) > 1:
            raise BaseExceptionGroup("heart handlers raised", errors)
        for error in errors:
            raise error

    # -- the wire: what a monitor that does without the streams does in another way

    def _listen(self) -> None:
        self.pongstream.on_recv(self._take_pongs)

    def _hush(self) -> None:
        if not self.pongstream.closed():
            self.pongstream.on_recv(None)

    def _hear(self) -> None:
        """Take everything that has come in. One message by the stream will do: its callback takes the others along."""
        self.pongstream.flush(zmq.POLLIN, limit=1)

    def _send(self, token: bytes) -> None:
        self.pingstream.send(token)
        self.pingstream.flush(zmq.POLLOUT)

    # -- inside

    def _tick(self) -> None:
        """Beat, and see to it that there is a next beat whatever happens in this one."""
        self._timer = None
        try:
            self.beat()
        finally:
            if self._running:
                due = self._ledger.deadline or 0.0
                self._timer = self.loop.call_later(max(0.0, due - self._clock()), self._tick)

    def _take_pongs(self, msg: object) -> None:
        """Book a pong and all that have come with it, up to a limit that lets no flood keep us from beating."""
        self.handle_pong(msg)
        receive = self.pongstream.socket.recv_multipart
        for _ in range(self._limit):
            try:
                self.handle_pong(receive(zmq.NOBLOCK))
            except zmq.Again:
                return

    @property
    def _limit(self) -> int:
        """How many pongs are taken at one wake-up: at some microseconds each, few milliseconds beyond all hearts'."""
        return 1000 + 4 * len(self._ledger.hearts)

    def _announce(self, beat: Beat) -> None:
        """Tell what the beat found: the bad news first."""
        if beat.stalled:
            self._note("stalled", detail=f"our own beat was {beat.late:.3f} s late, no misses counted")
        for heart, count in beat.missed.items():
            self._note("missed", heart, f"{count} of {self.misses}")
        for failure in beat.failed:
            self.handle_heart_failure(failure.heart)
        for heart in beat.returned:
            self.handle_heart_return(heart)
        for heart in beat.new:
            self.handle_new_heart(heart)

    def _note(self, kind: str, heart: bytes | None = None, detail: str = "", at: float | None = None) -> None:
        """Write an event. Verdicts are written when the handlers are done, so who sees the event can rely on them."""
        if self.events is not None:
            self.events.add(kind, heart=heart, detail=detail, at=self.tic if at is None else at)

    @default("loop")
    def _default_loop(self) -> IOLoop:
        return IOLoop.current()

    @default("hearts")
    def _default_hearts(self) -> set[bytes]:
        return self._ledger.hearts

    @default("on_probation")
    def _default_on_probation(self) -> set[bytes]:
        return self._ledger.on_probation

    @observe("period", "misses")
    def _apply_settings(self, _change: object = None) -> None:
        self._ledger.period = self.period / 1000
        self._ledger.misses = self.misses


def _describe_silence(failure: Failure) -> str:
    if failure.last_pong is None:
        return "it never answered"
    return f"last pong {failure.verdict_at - failure.last_pong:.3f} s ago"
