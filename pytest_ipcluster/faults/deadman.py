"""What makes a call of an ipyparallel client fail that would wait for ever: all that reaches into the client.

ipyparallel's client waits without a limit, and offers no way to end a wait from outside. This is the one module that
knows its private names; :func:`missing_names` tells which of them a new version no longer has.
"""

from __future__ import annotations

import functools
import inspect
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from pytest_ipcluster.errors import ClusterError
from pytest_ipcluster.faults.reach import (
    ARRIVAL,
    BALANCED,
    BROADCAST,
    CONTROL,
    DIRECT,
    HUB,
    OUTPUT,
    TASKS,
    Call,
    names_at_engines,
)

if TYPE_CHECKING:
    from ipyparallel import AsyncResult, Client

__all__ = ["GuardedClient", "missing_names"]

#: What a client must have, besides its streams.
_CLIENT_NAMES = (
    "_send",
    "_futures",
    "_output_futures",
    "_outstanding_dict",
    "_queue_handlers",
    "_io_loop",
    "_closed",
    "_config",
    "outstanding",
    "results",
    "metadata",
    "wait_for_engines",
)

#: The streams of a client, by the lane of the calls that are sent, or answered, there.
_STREAMS = {
    DIRECT: "_mux_stream",
    BALANCED: "_task_stream",
    BROADCAST: "_broadcast_stream",
    CONTROL: "_control_stream",
    HUB: "_query_stream",
    OUTPUT: "_iopub_stream",
}

#: What a client's ``_send`` must take by these names.
_SEND_NAMES = ("socket", "msg_type", "ident", "metadata")

_RESULT_NAMES = ("_collect_exceptions", "wait_for_output")


def missing_names(client: Client) -> list[str]:
    """Return what this client, or its results, would need for their calls to be watched, and do not have."""
    from ipyparallel import AsyncResult

    needed = [*_CLIENT_NAMES, *_STREAMS.values()]
    missing = [f"Client.{name}" for name in needed if not hasattr(client, name)]
    missing += [f"AsyncResult.{name}" for name in _RESULT_NAMES if not hasattr(AsyncResult, name)]
    if hasattr(client, "_send"):
        taken = inspect.signature(client._send).parameters
        missing += [f"the parameter {name!r} of Client._send" for name in _SEND_NAMES if name not in taken]
    return missing


class GuardedClient:
    """The calls of one client that wait, and the way to end them.

    Calls that the client has sent before are not known. ``entering`` is called before a call is sent, ``entered`` when
    it waits.
    """

    def __init__(self, client: Client, entering: Callable[[], object], entered: Callable[[], object]) -> None:
        self.client = client
        #: When its network was last seen hurt, in seconds of ``time.monotonic()``.
        self.hurt_at = float("-inf")
        self._entering = entering
        self._entered = entered
        self._waiting: dict[str, tuple[Call, Future[Any]]] = {}
        self._failing: dict[str, Call] = {}  # on the client's own thread, which may take the answer after all
        self._given_up: dict[str, Call] = {}
        self._heeding: dict[object, None] = {}  # one entry for each wait for output
        self._plain_send = client._send
        self._plain_wait = client.wait_for_engines
        self._handlers = dict(client._queue_handlers)
        client._send = self._send
        client.wait_for_engines = self._wait_for_engines
        client._queue_handlers.update(
            {kind: functools.partial(self._on_reply, handler) for kind, handler in self._handlers.items()}
        )
        _results_tell(+1)

    def release(self) -> None:
        """Let the client be as it was; only late answers to tasks that were given up are dropped further on."""
        self.client._send = self._plain_send
        self.client.wait_for_engines = self._plain_wait
        if not self._given_up:
            self.client._queue_handlers.update(self._handlers)
        _results_tell(-1)

    @property
    def closed(self) -> bool:
        """Whether the client has been closed."""
        return bool(self.client._closed)

    @property
    def port(self) -> int:
        """Where its tasks go."""
        return int(self.client._config["mux"].rpartition(":")[2])

    def waiting(self) -> list[Call]:
        """Return the calls that are not answered, in the order in which they were sent."""
        return [call for call, _ in list(self._waiting.values())]

    def unanswered(self) -> set[str]:
        """Return the tasks of which no engine has sent the end, by the ids under which they come to an engine."""
        # In the order in which a call moves on, so that none is missed.
        calls = [*self.waiting(), *self._failing.copy().values(), *self._given_up.copy().values()]
        return {name for call in calls for name in names_at_engines(call)}

    @property
    def busy(self) -> bool:
        """Whether somebody may be waiting."""
        return any(call.lane != OUTPUT or self._heeding for call, _ in list(self._waiting.values()))

    def heeded(self) -> list[Call]:
        """Return the calls for which somebody may be waiting; for output only who does so at this moment counts."""
        return [call for call in self.waiting() if call.lane != OUTPUT or self._heeding]

    # -- calls that begin --------------------------------------------------------------------------

    def _send(self, socket: Any, msg_type: str, *args: Any, **kwargs: Any) -> Any:
        """Send as the client would, and remember who is to answer."""
        self._entering()
        sent = time.monotonic()
        future = self._plain_send(socket, msg_type, *args, **kwargs)
        lane = next((lane for lane, name in _STREAMS.items() if getattr(self.client, name) is socket), None)
        if future is not None and lane is not None:
            for message, engines in _addressees(lane, future.msg_id, kwargs):
                self._watch(Call(message, msg_type, lane, sent, engines), self.client._futures.get(message))
                if msg_type in TASKS:
                    output = self.client._output_futures.get(message)
                    self._watch(Call(f"{message}/output", msg_type, OUTPUT, sent, engines), output)
            self._entered()
        return future

    def _wait_for_engines(
        self, n: int | None = None, *, timeout: float = -1, block: bool = True, **kwargs: Any
    ) -> Future[None] | None:
        self._entering()
        sent = time.monotonic()
        future: Future[None] = self._plain_wait(n, timeout=timeout, block=False, **kwargs)
        self._watch(Call(f"arrival-{id(future)}", "wait_for_engines", ARRIVAL, sent), future)
        self._entered()
        return future.result() if block else future

    def _watch(self, call: Call, future: Future[Any] | None) -> None:
        """Note that this call waits; one that ipyparallel has answered meanwhile has no future any more."""
        if future is not None:
            self._waiting[call.id] = call, future
            future.add_done_callback(lambda _: self._waiting.pop(call.id, None))

    def heed_output(self, wait: Callable[[], bool]) -> bool:
        """Wait for output, with the deadman awake."""
        self._entering()
        mine = object()
        self._heeding[mine] = None
        self._entered()
        try:
            return wait()
        finally:
            del self._heeding[mine]

    # -- calls that end ----------------------------------------------------------------------------

    def fail(self, call: Call, error: ClusterError) -> None:
        """Have this call end with an error, unless its answer has arrived; from any thread."""
        self._failing[call.id] = call
        _, future = self._waiting.pop(call.id, (call, None))
        if future is None:
            self._failing.pop(call.id, None)
        else:
            self.client._io_loop.add_callback(self._fail, call, future, error)

    def _fail(self, call: Call, future: Any, error: ClusterError) -> None:
        """On the client's own thread, as whatever it receives: take what has come, then make an end."""
        import zmq

        if call.lane in _STREAMS:
            getattr(self.client, _STREAMS[call.lane]).flush(zmq.POLLIN)
        if not future.done():
            self._end(call, future, error)
        self._failing.pop(call.id, None)

    def _end(self, call: Call, future: Any, error: ClusterError) -> None:
        """Give a call an error instead of the answer that has not come."""
        if call.lane == OUTPUT:  # an exception here would be told on the log for every other one of the same result
            future.lost = error
            future.set_result(None)
        elif call.what not in TASKS:
            future.set_exception(error)
        else:
            self._given_up[call.id] = call
            self._fail_task(call.id, future, error)

    def _fail_task(self, message: str, future: Future[Any], error: ClusterError) -> None:
        """Give a task an error for its result, by the steps of ipyparallel's own ``_handle_apply_reply``.

        The result of a task that fails is a value: an exception would be lost in a callback.
        """
        from ipyparallel.util import utcnow

        client = self.client
        client.outstanding.discard(message)
        for outstanding in list(client._outstanding_dict.values()):
            outstanding.discard(message)
        client.metadata[message].update({"msg_id": message, "status": "error", "received": utcnow()})
        client.results[message] = result = _as_remote(error)
        output = client._output_futures.get(message)
        if output is not None and not output.done():
            output.set_result(None)
        future.set_result(result)

    def _on_reply(self, handler: Callable[[Any], object], reply: Any) -> None:
        """Drop the late answer to a task that was given up, of which the client would print and raise."""
        message = {reply["metadata"].get("original_msg_id"), reply["parent_header"].get("msg_id")}
        if not self._given_up.keys() & message:
            handler(reply)


def _addressees(lane: str, message: str, options: dict[str, Any]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each message that is answered by itself, with the idents of the engines that it goes to."""
    metadata = options.get("metadata") or {}
    if lane == BROADCAST:
        idents = [ident for ident, _ in metadata.get("targets", ())]
        if metadata.get("is_coalescing"):
            yield message, tuple(idents)
        else:
            yield from ((f"{message}_{ident}", (ident,)) for ident in idents)
    elif lane == BALANCED:
        yield message, tuple(metadata.get("targets") or ())
    else:
        ident = options.get("ident")
        ident = ident[-1] if isinstance(ident, list) else ident
        yield message, () if ident is None else (ident.decode(),)


# -- errors that are ipyparallel's as well -------------------------------------------------------------


def _mixed(kind: type[ClusterError], other: type[Exception]) -> type[ClusterError]:
    """Return a class of errors that are of both kinds, and read as ours."""
    told: dict[str, Any] = {"__str__": BaseException.__str__, "__repr__": BaseException.__repr__}
    told |= {"__module__": kind.__module__, "_pickled_as": kind}
    return type(kind.__name__, (kind, other), told)


def _mix(error: ClusterError, other: type[Exception], message: str, fields: dict[str, Any]) -> ClusterError:
    mixed = _mixed(type(error), other)
    made = mixed.__new__(mixed)
    made.__dict__.update(error.__dict__, **fields)
    made.args, made.__cause__ = (message,), error.__cause__
    return made


def _as_remote(error: ClusterError) -> ClusterError:
    """Return the same error as one that ipyparallel takes for a task's: anything else would pass for a result."""
    from ipyparallel.error import RemoteError

    name, text = type(error).__name__, str(error)
    fields = {"ename": name, "evalue": text, "traceback": text, "engine_info": {}}
    return _mix(error, RemoteError, text, fields)


def _as_composite(errors: Sequence[ClusterError], composite: Any) -> ClusterError:
    """Return the first of our errors as the CompositeError that ipyparallel makes of several results."""
    others = len(composite.elist) - len(errors)
    message = str(errors[0]) if len(composite.elist) == 1 else f"{errors[0]}\n{composite}"
    if not others and len(composite.elist) > 1:
        message = f"{errors[0]}\nand {len(errors) - 1} more of the same call"
    plain = {key: errors[0].__dict__[key] for key in errors[0].__dict__.keys() - {"ename", "evalue", "engine_info"}}
    made = _mixed(type(errors[0]).__mro__[1], type(composite))
    error = made.__new__(made)
    error.__dict__.update(plain, msg=composite.msg, elist=composite.elist)
    error.args, error.__cause__ = (message,), errors[0].__cause__
    return error


# -- results -------------------------------------------------------------------------------------------

_results_lock = threading.Lock()
_results_users = 0
_plain_results: dict[str, Any] = {}


def _results_tell(change: int) -> None:
    """Have ipyparallel's results tell our errors as what they are, for as long as any client is guarded."""
    global _results_users  # noqa: PLW0603 - there is one class of results
    from ipyparallel import AsyncResult

    with _results_lock:
        _results_users += change
        if change > 0 and _results_users == 1:
            _plain_results.update({name: getattr(AsyncResult, name) for name in _RESULT_NAMES})
            AsyncResult._collect_exceptions = _collect(_plain_results["_collect_exceptions"])
            AsyncResult.wait_for_output = _wait_for_output(_plain_results["wait_for_output"])
        elif change < 0 and _results_users == 0:
            for name, plain in _plain_results.items():
                setattr(AsyncResult, name, plain)


def _collect(plain: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(plain)
    def collect(result: AsyncResult, results: Any) -> Any:
        from ipyparallel.error import CompositeError

        try:
            return plain(result, results)
        except CompositeError as composite:
            if not (ours := [one for one in results if isinstance(one, ClusterError)]):
                raise
            raise _as_composite(ours, composite) from ours[0].__cause__

    return collect


def _wait_for_output(plain: Callable[..., bool]) -> Callable[..., bool]:
    @functools.wraps(plain)
    def wait_for_output(result: AsyncResult, timeout: float | None = -1) -> bool:
        guarded = getattr(result._client._send, "__self__", None)
        if timeout == 0 or not isinstance(guarded, GuardedClient):  # get() asks so, for which output does not matter
            return plain(result, timeout)
        done = guarded.heed_output(lambda: plain(result, timeout))
        for child in result._children if done else ():
            if (error := getattr(child.output, "lost", None)) is not None:
                raise error
        return done

    return wait_for_output
