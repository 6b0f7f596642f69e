"""Ports that nobody else gets while the controller has not taken them yet.

ipyparallel looks for free ports, lets go of them, and binds them a good while later in other processes; of
clusters that start at the same time every fiftieth loses a port that way. A socket that is bound but does not
listen keeps the system from handing its port to others, and does not hinder one that binds it by its number
with SO_REUSEADDR, as zmq does.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable

__all__ = ["HeldPorts", "names_ports"]

#: What a controller needs with ipyparallel's defaults; it looks for more by itself when it needs them.
_CONTROLLER_NEEDS = 18

#: The traits of ipyparallel's IPController that choose ports, deprecated ones included.
_CHOICE = re.compile("((engine|client)_)?ports|(mon|notifier)_port|regport|hb|mux|task|control|iopub")


class HeldPorts:
    """``count`` free ports on the loopback interface, held until ``release()``."""

    def __init__(self, count: int = _CONTROLLER_NEEDS) -> None:
        self._sockets = [_held() for _ in range(count)]
        self.numbers = [int(held.getsockname()[1]) for held in self._sockets]

    def release(self) -> None:
        """Let go of the ports; may be called twice."""
        for held in self._sockets:
            held.close()


def _held() -> socket.socket:
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return held


def names_ports(arguments: Iterable[str], traits: Iterable[str]) -> bool:
    """Tell whether the user has chosen ports of the controller, by an argument or by a trait of IPController's."""
    names = [argument.split("=", 1)[0].lstrip("-").removeprefix("IPController.") for argument in arguments]
    return any(_CHOICE.fullmatch(name) for name in [*names, *traits])
