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
        self.targets: dict[str, socket.socket] = {}
        self.opened: list[socket.socket] = []
        self.lanes = Lanes(folder, self.file, self.file, self._spawn)
        self.lanes.open([0, 1])
        self.begin()

    def _spawn(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("wb") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def begin(self) -> None:
        """Have a new controller, which nobody is connected to, and lanes as if they were new."""
        self._disconnect()
        self.targets = {name: socket.create_server(("127.0.0.1", 0)) for name in (*CHANNELS, "leaf")}
        for target in self.targets.values():
            target.settimeout(SOON)
        self.write_file()
        for slot in self.lanes.slots:
            self.lanes.clear(slot)

    def write_file(self, interface: str = "tcp://127.0.0.1") -> None:
        """Tell the ports, as a controller does once it has them; broadcasts have two."""
        ports: dict[str, object] = {name: self.targets[name].getsockname()[1] for name in CHANNELS}
        ports["broadcast"] = [ports["broadcast"], self.targets["leaf"].getsockname()[1]]
        self.file.write_text(json.dumps({"interface": interface, **ports}))

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

    def _disconnect(self) -> None:
        for one in (*self.targets.values(), *self.opened):
            one.close()
        self.opened = []

    def close(self, code: int = 0) -> None:
        """End the proxy, which is to end with this code, and to have complained of nothing."""
        self.lanes.close()
        self._disconnect()
        assert self.lanes.process.wait(SOON) == code
        assert "Traceback" not in (self.folder / "log").read_text()


@pytest.fixture
def network() -> Iterator[Network]:
    """A network of the test's own."""
    with tempfile.TemporaryDirectory(prefix="lanes-") as folder:  # a short path, for a socket
        network = Network(Path(folder))
        yield network
        if network.lanes.process.returncode is None:
            psutil.Process(network.lanes.process.pid).resume()  # a test may have stopped it
        network.close(network.lanes.process.returncode or 0)


@pytest.fixture(scope="module")
def one_network() -> Iterator[Network]:
    """A network for all tests of a module, which begin() on it."""
    with tempfile.TemporaryDirectory(prefix="lanes-") as folder:
        network = Network(Path(folder))
        yield network
        network.close()
