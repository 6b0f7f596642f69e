"""The forkserver: one process that has ipyparallel imported and forks engines, and the controller, on request.

Run as ``python -m pytest_ipcluster.cluster.forkserver SOCKET``. It listens on that Unix socket from its first moment,
imports what engines and controllers import, and then takes one request per connection, a line of JSON:

``{"run": "ipyparallel.engine", "arguments": [...], "environment": {...}, "folder": folder, "output": file}``
    Fork a process that goes on as ``python -m ipyparallel.engine`` with these arguments would. The answer is
    ``{"pid": pid}``, later ``{"ended": code}`` (as ``Popen.returncode`` tells it), and the connection is closed;
    or ``{"refused": reason}``. With ``"hold": pipe`` an engine that is ready to register waits to open that named pipe,
    and to read ``{"id": number}`` there, with ``"lane"`` and the ports of its lane if it has one. Every end is also a
    line on the standard output, ``{"ended": pid, "code": code}``.

A fork copies the memory of its parent and only the thread that asked for it, so this process has one thread, no zmq
context and no event loop; what it does have, two kinds of descriptors, is closed in the child before anything else.
``multiprocessing``'s forkserver is where the idea comes from; its own can't be used, because it runs functions, not
programs, and keeps their exit codes to itself.

An engine's nanny is forked by the engine while that has one thread, too: at its very start (see ``nannies``).
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any

from pytest_ipcluster.cluster.firstpong import listen_while_registering
from pytest_ipcluster.cluster.handshakes import shake_hands_before_the_heart_starts
from pytest_ipcluster.cluster.headstart import make_kernel
from pytest_ipcluster.cluster.nannies import PreparedNanny, flush_output
from pytest_ipcluster.cluster.nopause import start_without_the_pause

#: What can be forked.
ENGINE, CONTROLLER = MODULES = ("ipyparallel.engine", "ipyparallel.controller")

#: Variables that a program looks at only when it starts, or when it imports: a fork comes too late for them.
_TOO_LATE = ("PYTHON", "LD_", "LC_", "LANG", "MALLOC_", "GLIBC_")

#: What a controller has imported, and an engine has not.
_OF_CONTROLLERS = "ipyparallel.controller.app"

#: What running controllers, engines and nannies have imported; the packages' own imports bring most of it. The first
#: two are all that a controller needs.
_IMPORTED = (
    "ipyparallel.engine.app",
    _OF_CONTROLLERS,
    "ipykernel.debugger",
    "IPython.core.completerlib",
    "IPython.core.oinspect",
    "IPython.extensions.storemagic",
    "encodings.idna",
    "tornado.platform.asyncio",
    "tornado.queues",
    "pytest_ipcluster.cluster.renewal",
    "pytest_ipcluster.hearts.agent",
)

#: What an engine sets before it imports the rest of that.
_ENGINES_SET = {"PYDEVD_DISABLE_FILE_VALIDATION": "1"}

#: What no engine or controller would have imported; their modules are not to be seen there.
_OURS_ALONE = (
    PreparedNanny,
    listen_while_registering,
    shake_hands_before_the_heart_starts,
    make_kernel,
    start_without_the_pause,
)

#: Nobody asks for more than this (bytes): an environment and a command line.
_LONGEST_REQUEST = 4_000_000


class Forkserver:
    """Serves requests one after the other; ``listener`` is a bound and listening Unix socket."""

    def __init__(self, listener: socket.socket, warmth: Warmth) -> None:
        self._listener = listener
        self._warmth = warmth
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._heard: dict[socket.socket, bytes] = {}
        self._children: dict[int, tuple[int, socket.socket]] = {}

    def serve(self) -> dict[str, Any]:
        """Serve until the process is ended. Only in a child does this return: with the request that it is there for."""
        while True:
            for key, _ in self._events():
                if (order := key.data(key.fileobj)) is not None:
                    return dict(order)

    def _events(self) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what has happened; import the next thing if nothing has, or wait if there is none."""
        events = self._selector.select(None if self._warmth.complete else 0)
        if not events:
            self._warmth.add()
        return events

    def _accept(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.setblocking(False)
        self._heard[connection] = b""
        self._selector.register(connection, selectors.EVENT_READ, self._hear)

    def _hear(self, connection: socket.socket) -> dict[str, Any] | None:
        """Take in a part of a request; fork when it is whole."""
        chunk = b""
        with contextlib.suppress(ConnectionResetError):
            chunk = connection.recv(65536)
        request = self._heard[connection] = self._heard[connection] + chunk
        if not chunk or len(request) > _LONGEST_REQUEST:
            self._hang_up(connection)
        elif request.endswith(b"\n"):
            self._selector.unregister(connection)
            order = json.loads(request)
            if reason := refusal(order):
                self._say(connection, {"refused": reason})
                self._hang_up(connection)
            else:
                return self._fork(order, connection)
        return None

    def _fork(self, order: dict[str, Any], connection: socket.socket) -> dict[str, Any] | None:
        if order["run"] == ENGINE:
            self._warmth.finish()
        if reason := unfit():
            sys.exit(reason)
        flush_output()
        pid = os.fork()
        if pid == 0:
            self._close_all()
            return order
        pidfd = os.pidfd_open(pid)
        self._children[pidfd] = (pid, connection)
        self._selector.register(pidfd, selectors.EVENT_READ, self._reap)
        if not self._say(connection, {"pid": pid}):  # whoever asked has gone: nobody would know of the child
            os.kill(pid, signal.SIGKILL)
        return None

    def _reap(self, pidfd: int) -> None:
        pid, connection = self._children.pop(pidfd)
        self._selector.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        os.write(1, json.dumps({"ended": pid, "code": code}).encode() + b"\n")
        self._say(connection, {"ended": code})
        self._hang_up(connection)

    def _say(self, connection: socket.socket, line: dict[str, Any]) -> bool:
        try:
            connection.sendall(json.dumps(line).encode() + b"\n")
        except OSError:
            return False
        return True

    def _hang_up(self, connection: socket.socket) -> None:
        del self._heard[connection]
        with contextlib.suppress(KeyError):  # not registered while its child runs
            self._selector.unregister(connection)
        connection.close()

    def _close_all(self) -> None:
        """In a child: close everything that is the server's."""
        self._selector.close()
        self._listener.close()
        for connection in self._heard:
            connection.close()
        for pidfd in self._children:
            os.close(pidfd)
        self._heard, self._children = {}, {}


def refusal(order: dict[str, Any]) -> str:
    """Say why a fork could not do what this request asks for; empty when it can."""
    if order["run"] not in MODULES:
        return f"{order['run']} is not one of {', '.join(MODULES)}"
    wanted = {name: value for name, value in order["environment"].items() if name.startswith(_TOO_LATE)}
    mine = {name: value for name, value in os.environ.items() if name.startswith(_TOO_LATE)}
    if different := sorted(name for name in {*wanted, *mine} if wanted.get(name) != mine.get(name)):
        return f"{', '.join(different)} can't be changed after the start of a program"
    return ""


def unfit() -> str:
    """Say why this process must not fork; empty when it may."""
    if threading.active_count() > 1 or len(os.listdir("/proc/self/task")) > 1:
        return f"something that is imported has started threads: {[thread.name for thread in threading.enumerate()]}"
    return ""


class Warmth:
    """Imports one thing after the other, while nobody wants anything else.

    Engines wait for all of it. What can't be imported is left to those who need it, and who say what is wrong.
    """

    def __init__(self) -> None:
        self._cold = list(_IMPORTED)
        #: Modules that no engine would have, and variables that imports have set, as they would in an engine.
        self.surplus: set[str] = set()
        self.variables: dict[str, str] = {}

    @property
    def complete(self) -> bool:
        """Whether everything has been imported."""
        return not self._cold

    def add(self) -> None:
        """Import the next thing."""
        name = self._cold.pop(0)
        modules, variables = set(sys.modules), dict(os.environ)
        os.environ.update({name: value for name, value in _ENGINES_SET.items() if name not in variables})
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
        self.variables |= {name: value for name, value in os.environ.items() if variables.get(name) != value}
        os.environ.clear()
        os.environ.update(variables)
        if name == _OF_CONTROLLERS:
            package = name.rpartition(".")[0]
            self.surplus = {module for module in set(sys.modules) - modules if module.startswith(package)}
        if self.complete:  # forks share this memory as long as the collector does not touch it
            gc.collect()
            gc.freeze()

    def finish(self) -> None:
        """Import what is left."""
        while not self.complete:
            self.add()


# -- in a child --------------------------------------------------------------------------------------


def become(order: dict[str, Any], warmth: Warmth) -> None:
    """Go on as the program that was asked for, in a session of its own."""
    os.setsid()
    _redirect(order["output"])
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    time.tzset()
    _forget_randomness()
    if not sys.flags.safe_path:
        sys.path[0] = os.getcwd()
    _unload(function.__module__ for function in _OURS_ALONE)
    if order["run"] == ENGINE:
        os.environ.update(warmth.variables)
        _unload(warmth.surplus)
        PreparedNanny().offer()
        listen_while_registering()
        shake_hands_before_the_heart_starts()
        if hold := order.get("hold"):
            _hold_at(hold)
    else:
        start_without_the_pause()
    sys.argv = ["", *order["arguments"]]
    runpy.run_module(order["run"], run_name="__main__", alter_sys=True)


def _redirect(output: str) -> None:
    for path, flags, targets in (
        (os.devnull, os.O_RDONLY, (0,)),
        (output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, (1, 2)),
    ):
        descriptor = os.open(path, flags, 0o666)
        for target in targets:
            os.dup2(descriptor, target)
        os.close(descriptor)


def _forget_randomness() -> None:
    """Seed anew what was seeded at an import: Python's own generator does that by itself after a fork."""
    if (numpy_random := sys.modules.get("numpy.random")) is not None:
        numpy_random.seed()


def _unload(names: Iterable[str]) -> None:
    """Have these modules not been imported."""
    for name in names:
        del sys.modules[name]
        package, _, module = name.rpartition(".")
        if package in sys.modules and hasattr(sys.modules[package], module):
            delattr(sys.modules[package], module)


def _hold_at(pipe: str) -> None:
    """Have the engine wait at this pipe, when it has done all that it can without it, for the id that it is to have."""
    from ipyparallel.engine import app

    start = app.IPEngine.start

    def start_later(engine: Any) -> None:
        make_kernel(engine)
        with open(pipe) as told:
            text = told.read()
        if not text:  # whoever has opened it has died
            sys.exit(1)
        told = json.loads(text)
        engine.id = told["id"]
        if "lane" in told:
            from pytest_ipcluster.network.routes import connection_by_lane

            engine.connection_info = connection = connection_by_lane(engine.connection_info, told["lane"])
            engine.registration_url = f"{connection['interface']}:{connection['registration']}"
        sys.argv.insert(1, f"--IPEngine.id={engine.id}")
        start(engine)

    app.IPEngine.start = start_later


# -- the process -------------------------------------------------------------------------------------


def main() -> None:
    """Listen and serve; and, in every child, go on as what was asked for."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    unheard = f"{sys.argv[1]}-"
    listener.bind(unheard)
    listener.listen(128)
    os.rename(unheard, sys.argv[1])  # who sees the socket is heard
    warmth = Warmth()
    become(Forkserver(listener, warmth).serve(), warmth)


if __name__ == "__main__":
    main()
