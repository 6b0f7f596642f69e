"""CURVE keys for a monitor that others can reach: who does not have a heart's keys is not let in, and reads nothing.

Needs pyzmq and nothing else, as hearts do.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import zmq

__all__ = ["HeartKeys", "MonitorKeys"]


@dataclass(frozen=True, slots=True)
class HeartKeys:
    """What a heart needs to be let in: the monitor's public key and a pair of its own, each 40 characters (Z85).

    None of them is in its repr, so that none comes into a log or a report.
    """

    server: bytes = field(repr=False)
    public: bytes = field(repr=False)
    secret: bytes = field(repr=False)

    def apply(self, set_option: Callable[[int, bytes], object]) -> None:
        """Set the options of a socket that is to connect to the monitor."""
        set_option(zmq.CURVE_SERVERKEY, self.server)
        set_option(zmq.CURVE_PUBLICKEY, self.public)
        set_option(zmq.CURVE_SECRETKEY, self.secret)

    def write(self, path: Path) -> None:
        """Write them to a new file that only its owner can read. Raises FileExistsError."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            json.dump({name: key.decode() for name, key in asdict(self).items()}, file)

    @classmethod
    def read(cls, path: Path) -> HeartKeys:
        """Read what ``write`` has written. Raises OSError."""
        found = json.loads(path.read_text(encoding="ascii"))
        return cls(**{name: found[name].encode() for name in ("server", "public", "secret")})


@dataclass(frozen=True, slots=True)
class MonitorKeys:
    """The keys of a monitor, and those of its hearts, which they all share. ``secret`` stays with the monitor."""

    hearts: HeartKeys = field(repr=False)
    secret: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> MonitorKeys:
        """Return new ones. Raises ``zmq.ZMQError`` where libzmq was built without CURVE."""
        server, secret = zmq.curve_keypair()
        return cls(HeartKeys(server, *zmq.curve_keypair()), secret)

    def apply(self, socket: zmq.Socket[bytes]) -> None:
        """Set the options of a socket of the monitor."""
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self.secret)
