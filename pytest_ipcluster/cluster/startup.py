"""Watching a cluster come up: whatever goes wrong becomes, at once, a ClusterStartError that names the cause.

ipcluster itself cannot be asked. It stays alive without a controller when the controller failed, it ends with
code 0 after its controller was killed, and it does not mind an engine that ends. So the processes it started
are watched, each by its pid.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import psutil

from pytest_ipcluster.cluster.diagnosis import (
    advice,
    controller_lost,
    engines_lost,
    last_lines,
    not_recognized,
    port_is_taken,
    reason,
    tail,
)
from pytest_ipcluster.cluster.processes import find, is_alive
from pytest_ipcluster.cluster.roles import Role, Roles, read_roles
from pytest_ipcluster.cluster.wakeup import Wakeup
from pytest_ipcluster.errors import ClusterStartError

__all__ = ["StartWatch"]

#: Seconds for which a child of the controller must stay dead and unreaped: the short-lived helpers of its start
#: are reaped at once.
_CORPSE = 0.2

_LOOK_AT_COMMAND = "run the command in a terminal and watch it"
_LOOK_AT_VERSIONS = "look whether a scheduler hangs, and whether the engines' ipykernel is one for this ipyparallel"
_LOOK_AT_ENGINES = "look at what engines import and run at their start: startup files, engine_args, ipengine_config.py"


class StartWatch:
    """Looks at every process of a starting cluster; ``check()`` raises for the first one that has ended.

    ``wakeup`` rings when one of them ends or the cluster file changes.
    """

    def __init__(
        self,
        command: Sequence[str],
        process: subprocess.Popen[bytes],
        output: Path,
        cluster_file: Path,
        wakeup: Wakeup,
    ) -> None:
        self.wakeup = wakeup
        self._command = command
        self._process = process
        self._output = output
        self._cluster_file = cluster_file
        self._controller: Role | None = None
        self._logs: dict[Path, TextIO] = {}
        self._corpses: dict[psutil.Process, float] = {}
        if (ipcluster := find(process.pid)) is not None:
            wakeup.watch_process(ipcluster)

    def check(self) -> Roles:
        """Return the roles known by now; raise :class:`ClusterStartError` when the cluster cannot come up any more."""
        roles = read_roles(self._cluster_file)
        self._controller = roles.controller or self._controller
        if self._process.poll() is not None:
            raise self.ended(f"ipcluster ended with exit code {self._process.returncode}")
        for role in roles:
            self._open_log(role)
            self._check_role(role)
        self._check_arguments()
        if roles.controller is not None:
            self._check_schedulers(roles.controller)
        elif self._controller is not None:
            self._check_role(self._controller)
        if not roles.engines and (lost := engines_lost(self._output) or controller_lost(self._output)):
            raise self.error(lost)
        return roles

    def _check_arguments(self) -> None:
        """ipcluster repeats what the controller says, but a tenth of a second later: so both are read."""
        log = self._controller.log if self._controller else None
        if unknown := not_recognized(tail(self._output, sys.maxsize) + self._read(log), self._command):
            raise self.error(unknown)

    def _open_log(self, role: Role) -> None:
        """Open a log while it is there: when its controller has failed, ipcluster removes what that has written."""
        if role.log is not None and role.log not in self._logs:
            with contextlib.suppress(OSError):
                self._logs[role.log] = role.log.open(errors="replace")

    def _read(self, log: Path | None) -> str:
        """Return all that stands in a log by now, also when it has been removed since."""
        if log is None or log not in self._logs:
            return tail(log, sys.maxsize)
        self._logs[log].seek(0)
        return self._logs[log].read()

    def close(self) -> None:
        """Close the logs."""
        for log in self._logs.values():
            log.close()

    def _check_role(self, role: Role) -> None:
        if role.pid is None:
            return
        process = find(role.pid)
        if process is None or not is_alive(process) or not self.wakeup.watch_process(process):
            ended = f"the {role.name} (pid {role.pid}) ended before the cluster was ready"
            raise self.ended(ended, role.log) if role == self._controller else self.error(ended, role.log)

    def ended(self, what: str, log: Path | None = None) -> ClusterStartError:
        """Return the error for an end that may only follow from the engines': ipcluster can be told to stop then."""
        lost = engines_lost(self._output)
        return self.error(lost) if lost else self.error(what, log)

    def _check_schedulers(self, controller: Role) -> None:
        """Schedulers are the controller's children; one that dies does so alone, and the controller does not notice."""
        if port_is_taken(self._read(controller.log)):
            raise self.error("a part of the controller could not have its port", controller.log)
        process = find(controller.pid) if controller.pid is not None else None
        if process is None:
            return
        for child in _children(process):
            if is_alive(child):
                self.wakeup.watch_process(child)
            elif time.monotonic() - self._corpses.setdefault(child, time.monotonic()) > _CORPSE:
                raise self.error(f"a scheduler of the controller (pid {child.pid}) ended", controller.log)

    def error(self, cause: str, log: Path | None = None) -> ClusterStartError:
        """Return the error for this cause, with the tail of ``log`` (of ipcluster's own output when there is none)."""
        text = last_lines(self._read(log)) or tail(self._output)
        why = reason(text)
        return ClusterStartError(
            f"{cause}: {why}" if why else cause,
            command=self._command,
            returncode=self._process.poll(),
            log=text,
            advice=advice(cause, "") or advice(text, _look_at(cause)),
            port_lost=port_is_taken(self._controllers_words()),
        )

    def _controllers_words(self) -> str:
        """Return the controller's log, or what ipcluster repeated of it where that is gone already."""
        log = self._read(self._controller.log) if self._controller is not None else ""
        return log or tail(self._output, sys.maxsize)


def _look_at(cause: str) -> str:
    if "not carried" in cause:
        return _LOOK_AT_VERSIONS
    return _LOOK_AT_ENGINES if "engine" in cause else _LOOK_AT_COMMAND


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children()
    except psutil.NoSuchProcess:
        return []
