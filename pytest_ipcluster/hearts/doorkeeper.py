"""Lets in who has the hearts' key: libzmq asks for every connection, by https://rfc.zeromq.org/spec/27/ (ZAP)."""

from __future__ import annotations

import zmq
from tornado.ioloop import IOLoop
from zmq.utils import z85

from pytest_ipcluster.hearts.keys import MonitorKeys

__all__ = ["Doorkeeper"]

#: Where libzmq asks, within the context of the sockets.
_ADDRESS = "inproc://zeromq.zap.01"
#: Questions that are answered at one go; strangers may knock as often as they like.
_AT_ONCE = 100
#: Parts of a question: version, its id, domain, address, identity, mechanism, and then the peer's key as 32 bytes.
_BEFORE_KEY = 6


class Doorkeeper:
    """Answers libzmq's questions on ``loop``, for the sockets of ``context``."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], keys: MonitorKeys, loop: IOLoop) -> None:
        self._known = z85.decode(keys.hearts.public)
        self._loop = loop
        self._socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self._socket.bind(_ADDRESS)
        loop.add_handler(self._socket, self._answer, loop.READ)

    def close(self) -> None:
        """Answer no more."""
        self._loop.remove_handler(self._socket)
        self._socket.close(linger=0)

    def _answer(self, *_: object) -> None:
        for _number in range(_AT_ONCE):
            try:
                asking, empty, *question = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            let_in = question[_BEFORE_KEY - 1 :] == [b"CURVE", self._known]
            verdict = [b"200", b"OK"] if let_in else [b"400", b"unknown key"]
            self._socket.send_multipart([asking, empty, question[0], question[1], *verdict, b"", b""], zmq.NOBLOCK)
        self._loop.add_callback(self._go_on)

    def _go_on(self) -> None:
        """Answer what was left; whatever else is due has had its turn."""
        if not self._socket.closed:
            self._answer()
