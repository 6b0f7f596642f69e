"""Who belongs to a running cluster, by role, and who of them is no longer there.

The controller's children all have the controller's command line. What tells them apart are the ports that they listen
on, compared with the connection files.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from pytest_ipcluster.cluster.engines import Engine
from pytest_ipcluster.cluster.files import read_json
from pytest_ipcluster.cluster.forked import FORKSERVER_LOG
from pytest_ipcluster.cluster.processes import find, is_alive, is_doomed, wait_gone
from pytest_ipcluster.cluster.runtime import PROXY_LOG, Runtime
from pytest_ipcluster.cluster.slots import Slots

__all__ = ["PROXY", "UNKNOWN_CHILD", "Member", "RollCall", "child_roles", "port_roles"]

#: The role of the process that carries what engines and controller send each other.
PROXY = "lanes' proxy"

#: The role of a child of the controller whose ports tell nothing.
UNKNOWN_CHILD = "a process of the controller"

#: Seconds for one that has been killed to come to its end.
_GOING = 10.0

#: The state of a listening socket in /proc/net/tcp.
_LISTENING = b"0A"


@dataclass(frozen=True, slots=True)
class Member:
    """A process of the cluster, what it is there for, and the log that it writes to. ``slot`` is that of an engine."""

    role: str
    process: psutil.Process
    log: Path | None = None
    slot: int | None = None


class RollCall:
    """The processes of one running cluster, each until it is struck off.

    All are looked up at the beginning, when the cluster is ready; engines and their nannies also later, whenever a slot
    has a new one. Only processes of this host that were started for this cluster are called.
    """

    def __init__(self, runtime: Runtime, slots: Slots) -> None:
        self.runtime = runtime
        self.slots = slots
        self._seen: set[psutil.Process] = set()  # the engines that were in the slots at the last look
        self._looking = threading.Lock()  # a test may repair from a thread of its own
        self._members: dict[psutil.Process, Member] = {}
        for member in self._parts():
            self._enter(member)
        self._notice_engines()

    @property
    def members(self) -> tuple[Member, ...]:
        """Everybody who has not been struck off."""
        self._notice_engines()
        return tuple(self._members.values())

    def missing(self) -> list[Member]:
        """Return the members that have ended, in the order in which they were entered.

        Who has been killed and is still going is waited for: its end belongs to whoever asks now, not to the next.
        """
        members = self.members
        wait_gone([member.process for member in members if is_doomed(member.process)], _GOING)
        return [member for member in members if not is_alive(member.process)]

    def strike(self, members: Iterable[Member]) -> None:
        """Take these off the roll: their end is known, or of no interest."""
        for member in members:
            self._members.pop(member.process, None)

    def strike_slot(self, heart: bytes) -> None:
        """Take the engine with this heart off the roll, and its nanny, which goes when the engine does."""
        self._notice_engines()
        for engine in self.slots.engines():
            if engine.heart == heart:
                self.strike(_members_of(engine))

    def _enter(self, member: Member) -> None:
        if member.role == "warden" or self.runtime.owns(member.process):
            self._members[member.process] = _with_lasting_log(member, self.runtime.folder.logs)

    def _notice_engines(self) -> None:
        with self._looking:
            engines = self.slots.engines()
            for engine in engines:
                if engine.process not in self._seen:
                    for member in _members_of(engine):
                        self._enter(member)
            # Who has left its slot is gone, and never back.
            self._seen = {engine.process for engine in engines}

    def _parts(self) -> Iterator[Member]:
        """Yield what a cluster has besides engines, those first that take the others along when they end."""
        output = self.runtime.folder.output
        if (guard := self.runtime.folder.guard) is not None:
            yield Member("warden", guard.process)
        if (ipcluster := find(self.runtime.process.pid)) is not None:
            yield Member("ipcluster", ipcluster, output)
        lanes, logs = self.runtime.lanes, self.runtime.folder.logs
        proxy = None if lanes is None else lanes.process
        for name, popen, log in (("forkserver", self.runtime.forkserver, FORKSERVER_LOG), (PROXY, proxy, PROXY_LOG)):
            if popen is not None and (process := find(popen.pid)) is not None and is_alive(process):
                yield Member(name, process, logs / log)
        role = self.runtime.roles().controller
        controller = find(role.pid) if role is not None and role.pid is not None else None
        if role is None or controller is None:
            return
        yield Member("controller", controller, role.log)
        for child, name in self._children(controller).items():
            yield Member(name, child, role.log)

    def _children(self, controller: psutil.Process) -> dict[psutil.Process, str]:
        files = self.runtime.files
        names = port_roles(files.client_connection() or {}, read_json(files.engine_file) or {})
        try:
            children = [child for child in controller.children() if is_alive(child)]
        except psutil.NoSuchProcess:
            return {}
        return child_roles(listening_ports(children), names)


def _members_of(engine: Engine) -> Iterator[Member]:
    yield Member("engine", engine.process, engine.log_file, engine.slot)
    if engine.nanny is not None:
        yield Member("nanny", engine.nanny, engine.log_file, engine.slot)


def _with_lasting_log(member: Member, folder: Path) -> Member:
    """Give the member's log a second name in our folder: ipcluster removes the log of what has ended badly.

    Where that is not possible, as between two file systems, the log stays what it is.
    """
    if member.log is None or member.log.parent == folder:
        return member
    lasting = folder / f"kept-{member.log.name}"
    try:
        with contextlib.suppress(FileExistsError):
            os.link(member.log, lasting)
    except OSError:
        return member
    return Member(member.role, member.process, lasting, member.slot)


def port_roles(client: Mapping[str, Any], engine: Mapping[str, Any]) -> dict[int, str]:
    """Return which part of the controller listens on which port, as the two connection files tell.

    The ports of the hub itself are left out: its children have inherited them.
    """
    both = {"iopub": "iopub relay", "mux": "direct scheduler", "control": "control scheduler", "task": "task scheduler"}
    roles = {side[key]: name for key, name in both.items() for side in (client, engine) if key in side}
    roles |= {engine[key]: "heart monitor of the hub" for key in ("hb_ping", "hb_pong") if key in engine}
    if "broadcast" in client:
        roles[client["broadcast"]] = "broadcast scheduler"
    roles |= {port: f"broadcast scheduler (leaf {leaf})" for leaf, port in enumerate(engine.get("broadcast", ()))}
    return roles


def child_roles(listening: Mapping[psutil.Process, set[int]], names: Mapping[int, str]) -> dict[psutil.Process, str]:
    """Tell the controller's children apart by the ports on which only one of them listens."""
    shared = Counter(port for ports in listening.values() for port in ports)
    found = {}
    for process, ports in listening.items():
        told = {names[port] for port in ports if port in names and shared[port] == 1}
        found[process] = told.pop() if len(told) == 1 else UNKNOWN_CHILD
    return found


def listening_ports(processes: Iterable[psutil.Process]) -> dict[psutil.Process, set[int]]:
    """Return the TCP ports on which each process listens; none for one that has ended."""
    processes = list(processes)
    if sys.platform != "linux":
        return {process: _ports_told_by_psutil(process) for process in processes}
    # psutil reads the kernel's whole list of connections, and again for each process: half a second on a busy machine.
    sockets = {name: port for process in processes[:1] for name, port in _listening_sockets(process.pid)}
    return {process: {sockets[name] for name in _open_files(process.pid) if name in sockets} for process in processes}


def _ports_told_by_psutil(process: psutil.Process) -> set[int]:
    connections = getattr(process, "net_connections", None) or process.connections  # the name before psutil 6
    try:
        return {one.laddr.port for one in connections("tcp") if one.status == psutil.CONN_LISTEN}
    except psutil.Error:
        return set()


def _listening_sockets(pid: int) -> Iterator[tuple[str, int]]:
    """Yield the listening TCP sockets that this process could have, each as its name in /proc and its port.

    In the kernel's tables they stand before all others, which may be many thousands and are not read.
    """
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/net/{table}", "rb") as lines:  # or it has ended
            next(lines)  # the heading
            for fields in itertools.takewhile(lambda fields: fields[3] == _LISTENING, map(bytes.split, lines)):
                yield f"socket:[{int(fields[9])}]", int(fields[1].rpartition(b":")[2], 16)


def _open_files(pid: int) -> Iterator[str]:
    folder = f"/proc/{pid}/fd"
    with contextlib.suppress(OSError):  # it has ended
        for descriptor in os.listdir(folder):
            with contextlib.suppress(FileNotFoundError):  # closed since
                yield os.readlink(f"{folder}/{descriptor}")
