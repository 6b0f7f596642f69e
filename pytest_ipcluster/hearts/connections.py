"""Whose connection has just broken: when a process dies, the kernel closes what it had open, whatever the period is.

A broken connection is no verdict. Networks do this as well, and a heart connects anew.
"""

from __future__ import annotations

import struct
from contextlib import suppress

import zmq

__all__ = ["Connections", "Listeners"]

#: The first frame of libzmq's notice of an event: what it is, and its value, here a file descriptor.
_NOTICE = struct.Struct("=Hi")

#: Notices that are read at one go, in some milliseconds: strangers may connect and break as often as they like.
_NOTICES_AT_ONCE = 1000


class _Notices:
    """Hears from libzmq of events at a socket, on the socket's thread."""

    def __init__(self, socket: zmq.Socket[bytes], events: int) -> None:
        self._socket = socket
        #: Where notices come in. It may be polled, and belongs to the thread of the socket.
        self.notices: zmq.Socket[bytes] = socket.context.socket(zmq.PAIR)
        self.notices.rcvhwm = 0  # libzmq waits where a notice finds no room, and would hold up every heart
        address = f"inproc://ipcluster-notices-{id(self):x}"
        socket.monitor(address, events)
        self.notices.connect(address)
        self.notices.getsockopt(zmq.EVENTS)  # its descriptor tells of what comes after a look, not before the first

    def close(self) -> None:
        """Hear no more notices."""
        self._socket.disable_monitor()
        self.notices.close(linger=0)


class Connections(_Notices):
    """Knows over which connection of a ROUTER each heart speaks, and hears from libzmq when one of them breaks.

    A pong's frame knows the descriptor that it came in by. The number is given again to a later connection, so what is
    known of it ends with the notice of its end, or when somebody else is heard there.
    """

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        #: Connections of which it is not known who speaks there. They stay here for as long as they say nothing: a lost
        #: packet may hold up a heart's first pong for seconds, and its death is noticed all the same.
        self.wanted: set[int] = set()
        super().__init__(socket, zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        self._hearts: dict[int, bytes] = {}

    def heard(self, heart: bytes, frame: zmq.Frame) -> None:
        """Learn that this heart has sent this frame."""
        with suppress(zmq.ZMQError):  # a transport without descriptors
            descriptor = int(frame.get(zmq.SRCFD))
            self._hearts[descriptor] = heart
            self.wanted.discard(descriptor)

    def read(self) -> tuple[list[int], bool]:
        """Read the notices that have come in; return the descriptors of connections that have broken, in order.

        And whether those were all notices: of a flood of them only so many are read at one go.
        """
        broken = []
        try:
            for _ in range(_NOTICES_AT_ONCE):
                notice, _address = self.notices.recv_multipart(zmq.NOBLOCK)
                kind, descriptor = _NOTICE.unpack(notice)
                if kind == zmq.EVENT_DISCONNECTED:
                    broken.append(descriptor)
                    self.wanted.discard(descriptor)
                else:
                    self.wanted.add(descriptor)
        except zmq.Again:
            return broken, True
        return broken, False

    def drop(self, descriptor: int) -> bytes | None:
        """Forget a broken connection, when all that came in by it is heard; return the heart that spoke there."""
        return self._hearts.pop(descriptor, None)


class Listeners(_Notices):
    """Lets go of what libzmq holds for the listeners of a PUB that have gone, when they go.

    It holds some tens of kilobytes for each until the thread of the socket looks. Between two pings nobody else does,
    and strangers come and go thousands of times in one period.
    """

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        super().__init__(socket, zmq.EVENT_DISCONNECTED)

    def let_go(self) -> bool:
        """Read the notices that have come in, at most so many, and let go; return whether those were all."""
        try:
            for _ in range(_NOTICES_AT_ONCE):
                self.notices.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return True
        finally:
            self._socket.getsockopt(zmq.EVENTS)  # to ask is to look
        return False
