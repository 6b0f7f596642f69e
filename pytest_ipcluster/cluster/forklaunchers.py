"""ipyparallel's local launchers, with processes that are forked instead of started: ``--engines=forkserver``.

ipyparallel finds them by its entry points. Without a forkserver, or for what a fork cannot do, they are the local
launchers and say so in ipcluster's log.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from typing import Any

import psutil
from ipyparallel.cluster.launcher import LocalControllerLauncher, LocalEngineLauncher, LocalEngineSetLauncher

from pytest_ipcluster.cluster.forks import SOCKET, Fork, NoForkError, fork
from pytest_ipcluster.network.routes import ROUTES, environment_by_lane, lane_of

__all__ = ["ForkserverControllerLauncher", "ForkserverEngineLauncher", "ForkserverEngineSetLauncher"]

#: How often a connection file is looked at that does not hold what it should, a little over half a second each time.
_LOOKS = 10


class _Forked:
    """What changes in a local launcher; comes before it among the bases."""

    _fork: Fork | None = None

    def start(self: Any) -> Any:
        """Start the process, forked if that can be."""
        self._fork = None if self.state != "before" else self._try_to_fork()
        return super().start() if self._fork is None else self._follow(self._fork)  # type: ignore[misc]

    def _try_to_fork(self: Any) -> Fork | None:
        server, command = os.environ.get(SOCKET), self.args
        if not server or command[:2] != [sys.executable, "-m"]:
            return None
        open(self.output_file, "ab").close()  # who reads it does so from the beginning
        environment = {**os.environ, **self.get_env()}
        environment.pop(SOCKET)
        environment.pop(ROUTES, None)
        try:
            return fork(server, command[2], command[3:], environment, self.output_file, self.work_dir)
        except NoForkError as error:
            self.log.warning("Not forked but started, %s: %s", self.identifier, error)
            return None

    def _follow(self: Any, child: Fork) -> int:
        """Do with the child what a local launcher does with what it has started."""
        self.pid = child.pid
        self.process = psutil.Process(child.pid)
        self.notify_start(child.pid)
        self._start_waiting()
        if 1 <= self.log.getEffectiveLevel() <= logging.DEBUG:
            self._start_streaming()
        return child.pid

    def _wait(self: Any) -> None:
        """Wait for the end of the process, in a thread; the forkserver, its parent, tells of it."""
        child = self._fork
        while child is not None and not (self._stop_waiting.is_set() or child.lost):
            if child.wait(self.poll_seconds) is not None:
                told = {"exit_code": child.code, "pid": self.pid, "identifier": self.identifier}
                self.loop.add_callback(self.notify_stop, told)
                return
        super()._wait()  # type: ignore[misc]

    def poll(self: Any) -> Any:
        """Return how the process ended, or None while it runs."""
        if self._fork is None or self._fork.lost:
            return super().poll()  # type: ignore[misc]
        return self._fork.code


class ForkserverControllerLauncher(_Forked, LocalControllerLauncher):
    """A local controller, forked."""

    async def get_connection_info(self, timeout: float | None = None) -> Any:
        """Return what the controller has written for clients and engines.

        A file that is just being written is empty for a moment; ipyparallel looks again once, after half a second.
        """
        for _ in range(_LOOKS - 1):
            with suppress(ValueError):
                return await super().get_connection_info(timeout)
        return await super().get_connection_info(timeout)


class ForkserverEngineLauncher(_Forked, LocalEngineLauncher):
    """One local engine, forked; on its lane, where it has one."""

    def get_env(self) -> dict[str, str]:
        """Return what is added to the engine's environment."""
        return environment_by_lane(super().get_env(), self.identifier)

    def find_args(self) -> list[str]:
        """Return the command; an engine on a lane asks for the id of that slot: the hub gives ids as engines come."""
        own_id = [] if lane_of(self.identifier) is None else [f"--IPEngine.id={self.identifier}"]
        return [*super().find_args(), *own_id]


class ForkserverEngineSetLauncher(LocalEngineSetLauncher):
    """Local engines, forked."""

    launcher_class = ForkserverEngineLauncher
