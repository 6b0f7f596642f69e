"""What beats inside an engine: an echo that answers every ping, however busy the interpreter is.

Needs pyzmq and nothing else, so that it also runs where pytest is not installed.
"""

from __future__ import annotations

import uuid
from threading import Thread

import zmq
from zmq.devices import ThreadDevice

from pytest_ipcluster.hearts.keys import HeartKeys

__all__ = ["Heart"]

#: Pings, and bytes of them, that may queue up unanswered. An engine that was paused for long should not come back with
#: a long backlog; the kernel's usual buffers hold thousands of pings, whatever zmq's own limit says.
_UNANSWERED_PINGS, _UNANSWERED_BYTES = 10, 4096

#: Milliseconds for one try to connect. The kernel waits twice as long before each further one, so that a monitor whose
#: door strangers block, or a network that is back, would be found after a minute; a new try begins anew.
_CONNECTING = 2000

#: libzmq's own limit for a routing id.
_LONGEST_ID = 255


class Heart:
    """Sends every ping heard at ``in_addr`` back to ``out_addr``, signed with ``heart_id``.

    The work is done by a zmq forwarder in a daemon thread of its own, outside the interpreter lock.
    ``heart_id`` is bytes, or text that is sent as UTF-8; without one the heart gets 16 random bytes. ``in_type``
    and ``out_type`` are zmq socket types. ``keys`` are for a monitor that has some. Raises ValueError for an id that
    zmq cannot carry.
    """

    device: ThreadDevice | None = None
    id: bytes | None = None

    def __init__(
        self,
        in_addr: str,
        out_addr: str,
        in_type: int = zmq.SUB,
        out_type: int = zmq.DEALER,
        heart_id: bytes | str | None = None,
        *,
        keys: HeartKeys | None = None,
    ) -> None:
        self.id = _as_identity(heart_id)
        self._device = self.device = _HeartDevice(zmq.FORWARDER, in_type, out_type)
        self._device.connect_in(in_addr)
        self._device.setsockopt_in(zmq.LINGER, 0)
        self._device.setsockopt_in(zmq.CONNECT_TIMEOUT, _CONNECTING)
        self._device.setsockopt_in(zmq.RCVHWM, _UNANSWERED_PINGS)
        self._device.setsockopt_in(zmq.RCVBUF, _UNANSWERED_BYTES)
        if in_type == zmq.SUB:
            self._device.setsockopt_in(zmq.SUBSCRIBE, b"")
        self._device.connect_out(out_addr)
        if keys is not None:
            keys.apply(self._device.setsockopt_in)
            keys.apply(self._device.setsockopt_out)
        self._device.setsockopt_out(zmq.LINGER, 0)
        self._device.setsockopt_out(zmq.CONNECT_TIMEOUT, _CONNECTING)
        self._device.setsockopt_out(zmq.IDENTITY, self.id)

    def start(self) -> None:
        """Begin to answer pings; returns at once. Starting a heart that beats already changes nothing."""
        if self._device.context is None:
            self._device.start()

    def stop(self, timeout: float = 5.0) -> None:
        """Fall silent for good and leave no thread and no socket behind; may be called twice.

        Raises TimeoutError when the thread is still there after ``timeout`` seconds.
        """
        if self._device.context is None:
            return
        self._device.end()
        self._device.join(timeout)
        if self._device.launcher.is_alive():
            raise TimeoutError(f"heart {self.id!r} was told to stop, but its thread still ran after {timeout} s")


class _HeartDevice(ThreadDevice):
    """A forwarder with a context of its own, a named thread, and an end.

    An engine's other sockets live in the global context; a device that shared it would keep it from terminating.
    """

    context: zmq.Context[zmq.Socket[bytes]] | None = None
    _ending = False

    def start(self) -> None:
        context = self.context = zmq.Context()
        self.context_factory = lambda: context
        self.launcher = Thread(target=self.run, name="ipcluster-heart", daemon=True)
        self.launcher.start()

    def run(self) -> None:
        try:
            super().run()
        except zmq.ZMQError:
            # A context that ends while the sockets are still being made gives other errors than ETERM.
            if not self._ending:
                raise

    def end(self) -> None:
        """Terminate the context, which ends the forwarder and makes its own thread close its sockets."""
        self._ending = True
        if self.context is not None:
            self.context.term()


def _as_identity(heart_id: bytes | str | None) -> bytes:
    if heart_id is None:
        return uuid.uuid4().bytes
    identity = heart_id.encode() if isinstance(heart_id, str) else bytes(heart_id)
    if not 0 < len(identity) <= _LONGEST_ID:
        raise ValueError(f"a heart id has 1 to {_LONGEST_ID} bytes, not {len(identity)}")
    return identity
