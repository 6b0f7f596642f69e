"""A proxy between plain sockets: no cluster, no engine."""

from __future__ import annotations

import json
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from pytest_ipcluster.network.lanes import Lanes
from pytest_ipcluster.network.routes import CHANNELS

# Any limit that the slowest machine keeps; where time matters, a test asserts an order.
SOON = 30.0


class Network:
    """A controller that only listens, and a proxy with lanes to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "engine.json"
        self.targets = {name: socket.create_server(("127.0.0.1", 0)) for name in (*CHANNELS, "leaf")}
        for target in self.targets.values():
            target.settimeout(SOON)
        self.opened: list[socket.socket] = []
        self.lanes = Lanes(folder, self.file, self.file, self._spawn)

    def _spawn(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("wb") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def write_file(self) -> None:
        """Tell the ports, as a controller does once it has them; broadcasts have two."""
        ports: dict[str, object] = {name: self.targets[name].getsockname()[1] for name in CHANNELS}
        ports["broadcast"] = [ports["broadcast"], self.targets["leaf"].getsockname()[1]]
        self.file.write_text(json.dumps({"interface": "tcp://127.0.0.1", **ports}))

    def enter(self, channel: str = "mux", slot: int = 0) -> socket.socket:
        """Connect to a lane, as an engine would."""
        near = socket.create_connection(("127.0.0.1", self.lanes.ports(slot)[channel]), SOON)
        self.opened.append(near)
        return near

    def leave(self, channel: str = "mux") -> socket.socket:
        """Accept what comes out of a lane, as the controller would."""
        far, _ = self.targets[channel].accept()
        far.settimeout(SOON)
        self.opened.append(far)
        return far

    def connect(self, channel: str = "mux", slot: int = 0) -> tuple[socket.socket, socket.socket]:
        """Connect, and see that a byte has come through: from then on the connection is there for the proxy, too."""
        near = self.enter(channel, slot)
        near.sendall(b"!")
        far = self.leave(channel)
        assert far.recv(1) == b"!"
        return near, far

    def is_refused(self, channel: str = "mux") -> bool:
        """Tell whether a connection is reset, while it is made or at once after that."""
        try:
            return self.enter(channel).recv(1) == b"..."  # never
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.lanes.close()
        for one in (*self.targets.values(), *self.opened):
            one.close()
        assert self.lanes.process.wait(SOON) == 0


@pytest.fixture
def network() -> Iterator[Network]:
    with tempfile.TemporaryDirectory(prefix="lanes-") as folder:  # a short path, for a socket
        network = Network(Path(folder))
        network.lanes.open([0, 1])
        network.write_file()
        yield network
        if network.lanes.process.poll() is None:  # a test may have stopped it
            psutil.Process(network.lanes.process.pid).resume()
        network.close()
        assert (Path(folder) / "log").read_text().count("Traceback") == 0
