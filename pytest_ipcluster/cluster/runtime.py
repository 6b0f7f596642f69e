"""One run of ipcluster: its process, everything that belongs to it, and the way it ends."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import psutil

from pytest_ipcluster.cluster.diagnosis import tail
from pytest_ipcluster.cluster.files import ClusterFiles
from pytest_ipcluster.cluster.forked import FORKSERVER_LOG, ForkedChild
from pytest_ipcluster.cluster.forks import SOCKET, NoForkError, fork
from pytest_ipcluster.cluster.hub import Hub
from pytest_ipcluster.cluster.processes import carries, descendants, find, is_alive, marked
from pytest_ipcluster.cluster.profile import RunFolder
from pytest_ipcluster.cluster.roles import Roles, read_roles
from pytest_ipcluster.cluster.startup import StartWatch
from pytest_ipcluster.cluster.stopping import stop_cluster
from pytest_ipcluster.cluster.wakeup import Wakeup
from pytest_ipcluster.errors import ClusterError, ClusterStartError
from pytest_ipcluster.network.lanes import Lanes
from pytest_ipcluster.network.routes import ROUTES

__all__ = ["PROXY_LOG", "Runtime"]

#: The standard output of the lanes' proxy, in the folder of logs.
PROXY_LOG = "proxy.log"

#: Longest time between two looks at what the kernel does not report, in seconds.
_LOOK_EVERY = 0.25

#: Seconds that the hub may take to answer, on a machine that stands still meanwhile, before it counts as gone.
_HUB_PATIENCE = 10.0


class Runtime:
    """One ipcluster: ``files`` is what it writes, ``folder`` our private folder, ``process`` its Popen object.

    ``command`` is the Popen list, ``environment`` the children's whole environment; ``forking`` says that there is a
    forkserver beside it, ``lanes`` for how many engines there are lanes from the start, None for no lanes at all.
    """

    def __init__(
        self,
        command: Sequence[str],
        folder: RunFolder,
        files: ClusterFiles,
        environment: Mapping[str, str],
        *,
        forking: bool = False,
        lanes: int | None = None,
    ) -> None:
        self.command = list(command)
        self.folder = folder
        self.files = files
        self._environment = dict(environment)
        self._forking = forking
        self._first_lanes = lanes
        #: The engines' networks; None where they have none of their own.
        self.lanes: Lanes | None = None
        #: The forkserver; None where there is none.
        self.forkserver: subprocess.Popen[bytes] | None = None
        self._known: set[psutil.Process] = set()
        self._children: list[subprocess.Popen[bytes]] = []
        #: What was found to be gone that no repair brings back, in words; empty while nothing is.
        self.broken = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._controller: psutil.Process | None = None
        self._launched_at = 0.0

    def launch(self) -> None:
        """Start ipcluster. Whatever happens meanwhile, ``stop`` finds what was started by its mark."""
        self.files.create_folders()
        self.folder.output.unlink(missing_ok=True)  # what an earlier run in this folder said is no news
        self._launched_at = time.monotonic()
        told = self._start_forkserver() if self._forking else {}
        told |= {} if self._first_lanes is None else self._open_lanes(self._first_lanes)
        self._process = self.spawn(self.command, self.folder.output, told)

    def _start_forkserver(self) -> dict[str, str]:
        """Start the forkserver, which imports while ipcluster does; return how ipcluster learns of it."""
        path = self.folder.forkserver
        path.unlink(missing_ok=True)
        command = [sys.executable, "-m", "pytest_ipcluster.cluster.forkserver", str(path)]
        self.forkserver = self.spawn(command, self.folder.logs / FORKSERVER_LOG)
        return {SOCKET: str(path)}

    def _open_lanes(self, n: int) -> dict[str, str]:
        """Open lanes for the first ``n`` slots, before any engine looks for its own; return how ipcluster learns of it.

        Raises ClusterError.
        """
        log = self.folder.logs / PROXY_LOG
        files = self.files
        spawn = partial(self.spawn, output=log)
        self.lanes = Lanes(self.folder.path, files.engine_file, files.client_file, spawn)
        self.lanes.open(range(n))
        return {ROUTES: str(self.lanes.routes)}

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The Popen object of ipcluster. Raises ClusterError before the launch."""
        if self._process is None:
            raise ClusterError("ipcluster has not been launched")
        return self._process

    def spawn(
        self, command: Sequence[str], output: Path, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Have the warden start a process of this cluster: own session, marked as ours, output into a file.

        Never into a pipe: ipcluster writes a lot, and hangs at its stop when nobody reads. Raises
        ClusterStartError when the command cannot be run.
        """
        environment = {**self._environment, **(environment or {})}
        guard = self.folder.guard
        try:
            child = guard.spawn(command, output, environment) if guard else _spawn(command, output, environment)
        except OSError as error:
            raise _cannot_run(command, error) from error
        return self._keep(child)

    def spawn_module(
        self, module: str, arguments: Sequence[str], output: Path, environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        """Have ``python -m module`` run as a process of this cluster, forked where that is possible."""
        forked = self.fork_module(module, arguments, output, environment)
        if forked is not None:
            return forked
        return self.spawn([sys.executable, "-m", module, *arguments], output, environment)

    def fork_module(
        self,
        module: str,
        arguments: Sequence[str],
        output: Path,
        environment: Mapping[str, str],
        hold: Path | None = None,
    ) -> subprocess.Popen[bytes] | None:
        """Have the forkserver run this, or an engine that is held at a pipe; None when that is not possible."""
        if self.forkserver is None or self.folder.guard is None:
            return None
        everything = {**self._environment, **environment}
        log = self.folder.logs / FORKSERVER_LOG
        begun = log.stat().st_size if log.exists() else 0
        try:
            child = fork(self.folder.forkserver, module, arguments, everything, output, hold=hold)
        except NoForkError:  # a forkserver that is gone is missed at the next roll call
            return None
        child.close()  # the log tells of its end
        command = [sys.executable, "-m", module, *arguments]
        server = find(self.forkserver.pid)
        return self._keep(ForkedChild(command, child.pid, self.folder.guard, server, log, begun))

    def _keep(self, child: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
        self._children.append(child)
        self._know(child.pid)
        return child

    @property
    def unforked(self) -> str:
        """Say why engines were started instead of forked, when the forkserver has stepped aside; else empty."""
        if self.forkserver is None or self.forkserver.poll() is None:
            return ""
        return f"the forkserver has ended: {tail(self.folder.logs / FORKSERVER_LOG, 1)}"

    @property
    def heads(self) -> tuple[psutil.Process, ...]:
        """The processes of ipcluster, the forkserver and the lanes' proxy, as far as they are there."""
        proxy = None if self.lanes is None else self.lanes.process
        popens = [one for one in (self._process, self.forkserver, proxy) if one is not None]
        return tuple(process for popen in popens if (process := find(popen.pid)) is not None)

    @property
    def children(self) -> tuple[subprocess.Popen[bytes], ...]:
        """The Popen objects of everything that was started here and is not forgotten, ipcluster first."""
        return tuple(self._children)

    def _know(self, pid: int) -> None:
        if (process := find(pid)) is not None:
            self._known.add(process)

    def forget(self, processes: Collection[psutil.Process]) -> None:
        """Keep nothing of these processes, which are gone: there may be any number of them in the life of a cluster.

        The warden and the logs still tell how they ended. Where there is no warden only their Popen objects do, which
        stay.
        """
        self._known.difference_update(processes)
        if self.folder.guard is not None:
            pids = {process.pid for process in processes}
            self._children = [child for child in self._children if child.pid not in pids]

    # -- coming up ---------------------------------------------------------------------------------

    def roles(self) -> Roles:
        """Return who does what, as far as ipcluster has written it down."""
        roles = read_roles(self.files.cluster_file)
        if self._controller is None and roles.controller is not None and roles.controller.pid is not None:
            self._controller = find(roles.controller.pid)
        return roles

    @property
    def controller(self) -> psutil.Process | None:
        """The controller's process, also when it has ended since; None before it is known, and where it has no pid.

        It is remembered, for ipcluster strikes it off its file when it has ended, and writes that file in place.
        """
        if self._controller is None:
            self.roles()
        return self._controller

    def lost(self) -> str:
        """Say which process that nothing works without has ended; empty when they are all there."""
        if self.broken:
            return self.broken
        if self.folder.guard is not None and not self.folder.guard.alive:
            return f"the warden (pid {self.folder.guard.process.pid}) has ended"
        if self.lanes is not None and self.lanes.process.poll() is not None:
            return f"the lanes' proxy has ended with exit code {self.lanes.process.returncode}"
        if self.process.poll() is not None:
            return f"ipcluster has ended with exit code {self.process.returncode}"
        if (controller := self.controller) is not None:
            return "" if is_alive(controller) else f"the controller (pid {controller.pid}) has ended"
        role = self.roles().controller
        if role is None:  # struck off ipcluster's file, unless that is just being written: nobody knows but the hub
            return "" if self._controller_answers(_HUB_PATIENCE) else "the controller has ended"
        return "" if role.pid is None else f"the controller (pid {role.pid}) has ended"

    def watch(self, wakeup: Wakeup) -> StartWatch:
        """Return a watch over everything that must live while the cluster comes up; closing it is the caller's."""
        wakeup.watch_folder(self.files.cluster_file.parent)
        return StartWatch(self.command, self.process, self.folder.output, self.files.cluster_file, wakeup)

    def wait_for_controller(self, timeout: float, meanwhile: Callable[[], object] | None = None) -> bool:
        """Wait until the controller answers; False when it has not within ``timeout`` seconds.

        ``meanwhile`` is called when the controller has been started, which then sleeps for a quarter of a second.
        Raises :class:`ClusterStartError` as soon as it never will.
        """
        deadline = time.monotonic() + timeout
        with Wakeup() as wakeup, contextlib.closing(self.watch(wakeup)) as watch:
            while True:
                if watch.check().controller is not None and meanwhile is not None:
                    meanwhile()
                    meanwhile = None
                if self._controller_answers(_LOOK_EVERY):
                    return True
                if (left := deadline - time.monotonic()) <= 0:
                    return False
                wakeup.wait(min(_LOOK_EVERY, left))

    def _controller_answers(self, patience: float) -> bool:
        if self.files.client_connection() is None:
            return False
        with contextlib.suppress(ClusterError), self.hub() as hub:  # its file can be gone again, and it can be silent
            hub.engines(patience)
            return True
        return False

    def not_ready(self) -> ClusterStartError:
        """Return the error for a controller that lives but has not answered in time."""
        with Wakeup() as wakeup, contextlib.closing(self.watch(wakeup)) as watch:
            return watch.error(f"the controller has not answered {self.age:.1f} s after the start")

    @property
    def age(self) -> float:
        """The seconds since ipcluster was launched."""
        return time.monotonic() - self._launched_at

    @contextlib.contextmanager
    def hub(self) -> Iterator[Hub]:
        """Connect to the hub for the time of the block. Raises ClusterError when there is no connection file."""
        connection = self.files.client_connection()
        if connection is None:
            raise ClusterError(
                f"the controller has written no connection file {self.files.client_file.name}: does it run?"
            )
        hub = Hub(connection)
        try:
            yield hub
        finally:
            hub.close()

    # -- going down --------------------------------------------------------------------------------

    def owned(self) -> set[psutil.Process]:
        """Return every living process of this cluster, orphans included.

        Ours is what we started, what the warden has adopted, what carries exactly our mark in its environment,
        and what descends from any of these, now or at an earlier look.
        """
        found = self._known | marked(self.folder.mark)
        if self.folder.guard is not None:
            found |= descendants(self.folder.guard.process)
        for process in list(found):
            found |= descendants(process)
        self._known |= found
        return {process for process in found if is_alive(process)}

    def owns(self, process: psutil.Process) -> bool:
        """Tell whether this process is of this cluster."""
        return process in self._known or carries(process, self.folder.mark)

    def stop(self, engines: Sequence[psutil.Process], *, kill_after: float) -> None:
        """Stop everything of this cluster within ``kill_after`` seconds, whatever state it is in."""
        ipcluster = None if self._process is None else find(self._process.pid)
        try:
            stop_cluster(ipcluster, engines, self.owned, kill_after=kill_after)
        finally:
            if self.lanes is not None:
                self.lanes.close()
        for child in self._children:
            child.wait()
        self.files.remove()


def _spawn(command: Sequence[str], output: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a process without a warden, where there is none to be had."""
    with output.open("ab") as stream:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env=environment,
            start_new_session=True,
        )


def _cannot_run(command: Sequence[str], error: OSError) -> ClusterStartError:
    return ClusterStartError(
        f"{command[0]!r} cannot be run: {error.strerror}",
        command=command,
        advice="install ipyparallel where the tests run, or correct ipcluster_cmd",
    )
