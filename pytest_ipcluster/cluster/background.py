"""Run ipcluster in the background, know its engines, and leave nothing behind when it stops.

This file is long because the old page's class has many names and they have one home; what they do is done elsewhere.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from traitlets import Bool, Instance, Int, List, Unicode, default
from traitlets.config import Config, SingletonConfigurable

from pytest_ipcluster.cluster.autopsy import ended_with
from pytest_ipcluster.cluster.clients import connected, import_ahead, leave
from pytest_ipcluster.cluster.diagnosis import tail
from pytest_ipcluster.cluster.engines import Engine
from pytest_ipcluster.cluster.files import ClusterFiles, current_profile, given_cluster_id, profile_folder
from pytest_ipcluster.cluster.forks import can_fork
from pytest_ipcluster.cluster.ports import HeldPorts, names_ports
from pytest_ipcluster.cluster.profile import (
    QUICK_HUB_PERIOD,
    EngineSetup,
    RunFolder,
    child_environment,
    named_profile_arguments,
    write_profile,
)
from pytest_ipcluster.cluster.rollcall import RollCall
from pytest_ipcluster.cluster.runtime import Runtime
from pytest_ipcluster.cluster.slots import Repair, Slots
from pytest_ipcluster.errors import ClusterError, ClusterStartError
from pytest_ipcluster.launchers import FORKSERVER, LOCAL, network_refusal
from pytest_ipcluster.network.routes import connection_by_lane

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import psutil
    from ipyparallel import Client

    from pytest_ipcluster.network.lanes import Lanes

__all__ = ["BackgroundCluster"]


class BackgroundCluster(SingletonConfigurable):
    """A real ipcluster in the background, stopped at the latest when the interpreter exits.

    ::

        with BackgroundCluster(n=4, private=True) as cluster:
            pids = cluster.client()[:].apply_sync(os.getpid)

    Every name on the page of IPython's old ``BackgroundCluster`` is here. New are ``private``, ``launcher``,
    ``cluster_config``, ``engine_setup``, ``bring_up``, ``retries``, ``wait_for_engines``, ``engines``, ``client``,
    ``connection_file``, ``log``, ``restore``, ``network``, ``lanes``, and the context manager.
    """

    #: On the old page, where SingletonConfigurable had it; no use is known.
    created = None

    n = Int(2, min=1, config=True, help="The number of engines to start.")
    profile = Unicode(
        config=True,
        help="The IPython profile to use. Default: that of the current IPython application, else 'default'.",
    )
    extra_args = List(
        Unicode(),
        config=True,
        help="More arguments for `ipcluster start`, such as '--log-level=DEBUG'. They come last.",
    )
    ipcluster_cmd = List(Unicode(), config=True, help="The Popen list that runs ipcluster, without its arguments.")
    silent = Bool(False, config=True, help="Whether msg() stays silent.")
    private = Bool(
        False,
        config=True,
        help="Whether to use a private, temporary profile with our faster defaults instead of `profile`.",
    )
    launcher = Unicode(
        config=True,
        help="The engine launcher, as in `ipcluster start --engines=NAME`; empty for its default. Default: "
        "'forkserver' in a private profile, else empty.",
    )
    spares = Int(
        0,
        min=0,
        help="How many engines more the forkserver keeps ready, out of sight, to replace one that has died.",
    )
    network = Bool(
        False,
        help="Whether each engine has a network of its own that can be hurt, see `lanes`; in a private profile only.",
    )
    cluster_config = Instance(
        Config,
        args=(),
        help="Configuration of a private profile's controller and engines: plain values only.",
    )
    engine_setup = Instance(EngineSetup, args=(), help="What each engine is told at its start.")

    def __init__(self, *, folder: RunFolder | None = None, **kwargs: Any) -> None:
        """Traits are given by name. A ``folder`` that is given is used and left for the caller to remove."""
        super().__init__(**kwargs)
        self._given_folder = folder
        self._folder: RunFolder | None = None
        self._files: ClusterFiles | None = None
        self._named_arguments: list[str] = []
        self._runtime: Runtime | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._slots: Slots | None = None
        self._ports: HeldPorts | None = None
        self._started_in: int | None = None
        #: Called with every client that :meth:`client` returns, before anybody else has it.
        self.handing_out: Callable[[Client], object] = leave
        #: How often a start was tried again because a port was lost.
        self.retries = 0

    @default("profile")
    def _current_profile(self) -> str:
        return current_profile()

    @default("launcher")
    def _fast_launcher(self) -> str:
        return FORKSERVER if self.private else ""

    @default("ipcluster_cmd")
    def _ipcluster_of_this_python(self) -> list[str]:
        return [sys.executable, "-m", "ipyparallel.cluster"]

    def __enter__(self) -> BackgroundCluster:
        self.bring_up()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    # -- the process -------------------------------------------------------------------------------

    @property
    def command(self) -> list[str]:
        """The Popen command list for starting ipcluster. It ends in ``extra_args``."""
        where = [f"--profile={self.profile}"]
        if self.private:
            where = [f"--profile-dir={self._files.profile if self._files else '(private)'}"]
            where += [f"--cluster-id={self._files.cluster_id}"] if self._files else []
        name = FORKSERVER if self.network else self.launcher  # the local launcher where nobody forks, and knows lanes
        launcher = [f"--engines={name}"] if name else []
        return [
            *self.ipcluster_cmd,
            "start",
            *where,
            f"--n={self.n}",
            *launcher,
            *self._named_arguments,
            *self.extra_args,
        ]

    @property
    def process(self) -> subprocess.Popen[bytes] | None:
        """The Popen object of ipcluster; None before the first start."""
        return self._process

    @property
    def returncode(self) -> int | None:
        """The exit code of ipcluster; None while it runs and before it was started. 0 is not always a success."""
        return None if self.process is None else self.process.returncode

    def poll(self) -> int | None:
        """Look whether ipcluster has ended: its exit code, or None while it runs and before it was started."""
        return None if self.process is None else self.process.poll()

    def msg(self, message: str) -> None:
        """Print a message for the user, unless ``silent``."""
        if not self.silent:
            print(message)  # noqa: T201 - printing is what this is for

    def log(self) -> str:
        """Return what ipcluster wrote so far; it repeats what the controller and the engines log."""
        return tail(self._folder.output, sys.maxsize) if self._folder else ""

    # -- start and stop ----------------------------------------------------------------------------

    def start(self, n: int | None = None, check_after: float = 2) -> None:
        """Start ipcluster with ``n`` engines and return as soon as its controller answers.

        When it has not answered after ``check_after`` seconds but everything is alive, return as well:
        ``wait_for_engines`` waits for the rest. Raises :class:`ClusterStartError` as soon as ipcluster or its
        controller ends, and ClusterError when the cluster runs already. After any exception, KeyboardInterrupt
        included, nothing is left running.
        """
        if self._slots is not None:
            raise ClusterError("the cluster runs already: stop it first")
        if n is not None:
            self.n = n
        atexit.register(self.stop)
        self._started_in = os.getpid()
        try:
            self._launch()
            self._running().wait_for_controller(check_after, import_ahead)
        except BaseException:
            self.stop(kill_after=1)
            raise

    def _launch(self) -> None:
        if self.network and (refusal := network_refusal(self.launcher or LOCAL, private=self.private)):
            raise ClusterError(f"network=True: {refusal}")
        folder = self._folder = self._given_folder or RunFolder.guarded()
        folder.keep_guarded()
        arguments: list[str] = []
        forking = self.launcher == FORKSERVER and folder.guard is not None and can_fork(folder.forkserver)
        if self.private:
            self._files = ClusterFiles(folder.profile, folder.cluster_id)
            ports = self._ports = HeldPorts()
            quick = {"hub_period": QUICK_HUB_PERIOD} if self.spares else {}
            setup, config = self.engine_setup, self.cluster_config
            write_profile(folder.profile, setup, folder.cards, config, ports.numbers, forking=forking, **quick)
        else:
            self._files = ClusterFiles(
                profile_folder(self.profile), given_cluster_id(self.extra_args, folder.cluster_id)
            )
            self._named_arguments, arguments = named_profile_arguments(
                folder, self.engine_setup, self._files.profile, self.extra_args
            )
        environment = child_environment(folder, private=self.private)
        lanes = self.n if self.network else None
        self._runtime = Runtime(self.command, folder, self._files, environment, forking=forking, lanes=lanes)
        self._slots = Slots(self._runtime, arguments, self.spares)
        self.msg(f"Starting ipcluster: {' '.join(self.command)}")
        self._runtime.launch()
        self._process = self._runtime.process

    def bring_up(
        self, timeout: float = 60, *, retrying: Callable[[ClusterStartError], object] = lambda _: None
    ) -> None:
        """Start ipcluster and wait until all engines can be used, at most ``timeout`` seconds for everything.

        When the controller has lost a port that was not the user's choice, it is tried once more with other ports;
        ``retrying`` is called with the error first, and ``retries`` counts. Raises :class:`ClusterStartError`.
        After any exception nothing is left running.
        """
        deadline = time.monotonic() + timeout
        try:
            try:
                self._come_up(deadline)
            except ClusterStartError as error:
                if not (error.port_lost and self._chose_the_ports()):
                    raise
                retrying(error)
                self._come_up_again(deadline, error)
        except BaseException:
            self.stop(kill_after=1)
            raise

    def _come_up(self, deadline: float) -> None:
        self.start(check_after=deadline - time.monotonic())
        self.wait_for_engines(timeout=deadline - time.monotonic())

    def _come_up_again(self, deadline: float, first: ClusterStartError) -> None:
        self.retries += 1
        self.stop(kill_after=1)
        try:
            self._come_up(deadline)
        except ClusterStartError as second:
            second.add_note(f"This was the second try. The first one ended with: {first.cause}")
            raise

    def _chose_the_ports(self) -> bool:
        return self.private and not names_ports(self.extra_args, self.cluster_config.get("IPController", {}))

    def wait_for_engines(self, n: int | None = None, timeout: float = 60) -> None:
        """Wait until ``n`` engines (default: all) can be used in slots 0..n-1, at most ``timeout`` seconds.

        That is: they are registered, and each of the controller's schedulers has carried a task to each of them.
        Raises :class:`ClusterStartError` as soon as that cannot happen any more, because a process that it
        takes has ended.
        """
        deadline = time.monotonic() + timeout
        if not self._running().wait_for_controller(timeout):
            raise self._running().not_ready()
        self.slots.wait_for(self.n if n is None else n, deadline)
        self._release_ports()

    def _release_ports(self) -> None:
        if self._ports is not None:
            self._ports.release()

    def stop(self, kill_after: float = 5) -> None:
        """Stop the cluster within ``kill_after`` seconds: engines first, then ipcluster by an interrupt; kill the rest.

        Returns when every process of the cluster is gone, however it was started and whatever state it is in. A
        second call does nothing, nor does one in a forked child of the process that started the cluster.
        """
        if self._started_in != os.getpid():
            return
        if self._slots is not None and self._runtime is not None:
            self.msg("Stopping ipcluster")
            engines = self._slots.engines()
            try:
                for engine in engines:
                    self._slots.leaving(engine.heart)
            finally:
                self._runtime.stop([engine.process for engine in engines], kill_after=kill_after)
        atexit.unregister(self.stop)
        self._release_ports()
        self._slots, self._named_arguments, self._files = None, [], None
        if self._folder is not None and self._given_folder is None:
            self._folder.remove()

    def _running(self) -> Runtime:
        if self._runtime is None or self._slots is None:
            raise ClusterError("the cluster is not running: start it first")
        return self._runtime

    # -- using it ----------------------------------------------------------------------------------

    @property
    def slots(self) -> Slots:
        """The keeper of the engines: readiness and repair. Raises ClusterError when the cluster is not running."""
        slots = self._slots  # the monitor's thread asks for it, too, while the cluster stops
        self._running()
        if slots is None:
            raise ClusterError("the cluster was not running a moment ago")
        return slots

    @property
    def folder(self) -> RunFolder:
        """The private folder of the running cluster. Raises ClusterError when it is not running."""
        return self._running().folder

    @property
    def cluster_id(self) -> str:
        """The id in the names of the cluster's files. Raises ClusterError when it is not running."""
        return self._running().files.cluster_id

    @property
    def engines(self) -> tuple[Engine, ...]:
        """The engines by slot, as of the last ``wait_for_engines`` or ``restore``."""
        return self.slots.engines()

    def restore(self, n: int | None = None, timeout: float = 60) -> list[Repair]:
        """Make slots 0..n-1 hold one usable engine each under the ids 0..n-1; return what had to be done.

        A different ``n`` grows or shrinks the cluster. Raises :class:`RepairError` when that fails.
        """
        repairs = self.slots.restore(self.n if n is None else n, timeout)
        self.n = self.n if n is None else n
        return repairs

    def replace(self, slots: Iterable[int], timeout: float = 60) -> list[Repair]:
        """Put new engines into these slots, whatever the old ones do. Raises :class:`RepairError` when that fails."""
        return self.slots.replace(slots, timeout)

    @property
    def unforked(self) -> str:
        """Why engines were started one by one although they were to be forked; empty when they were not."""
        return self._running().unforked

    @property
    def heads(self) -> tuple[psutil.Process, ...]:
        """ipcluster and the forkserver: what either has started is the cluster's own, unless an engine is between."""
        return self._running().heads

    def owns(self, process: psutil.Process) -> bool:
        """Tell whether this process was started for this cluster: the very process, not another one with its pid."""
        return self._running().owns(process)

    @property
    def controller(self) -> psutil.Process | None:
        """The controller's process; None when it has ended, or runs elsewhere."""
        controller = self._running().controller
        return controller if controller is not None and controller.is_running() else None

    def how_ended(self, process: psutil.Process, patience: float = 0.02) -> int | None:
        """Return the exit code of a process that has just ended, minus the signal that ended it.

        None when nobody tells within ``patience`` seconds. May be called from any thread.
        """
        return ended_with(process, self.folder.logs, self.folder.output, patience)

    def roll_call(self) -> RollCall:
        """Find out who belongs to the running cluster, by role. Raises ClusterError when it is not running."""
        return RollCall(self._running(), self.slots)

    @property
    def lanes(self) -> Lanes | None:
        """The engines' networks, and ways to hurt them; None without ``network``, and when no cluster runs."""
        return None if self._slots is None or self._runtime is None else self._runtime.lanes

    @property
    def connection_file(self) -> str:
        """The path of the file with which clients connect: ``ipyparallel.Client(cluster.connection_file)``."""
        return str(self._running().files.client_file)

    def client(self, *, by_lane: bool = False, **kwargs: Any) -> Client:
        """Return a new ``ipyparallel.Client`` that is connected to this cluster; closing it is the caller's.

        With ``by_lane`` its network is the lane ``"client"``, and can be hurt. Raises ClusterError without ``network``.
        """
        connection = self._connection_by_lane() if by_lane else self.connection_file
        if self.private:
            kwargs.setdefault("ipython_dir", str(self.folder.ipython))
        return connected(connection, self.handing_out, **kwargs)

    def _connection_by_lane(self) -> dict[str, Any]:
        connection = self._running().files.client_connection()
        if self.lanes is None or connection is None:
            raise ClusterError("clients have a lane in a cluster with network=True only")
        return connection_by_lane(connection, self.lanes.client_ports())
