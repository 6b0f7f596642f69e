"""Starting single engines beside those that ipcluster has started, and taking back those that are of no use."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pytest_ipcluster.cluster.diagnosis import tail
from pytest_ipcluster.cluster.engines import Engine
from pytest_ipcluster.cluster.hub import Hub
from pytest_ipcluster.cluster.processes import KILL, descendants, find, is_alive, send_signal, wait_gone
from pytest_ipcluster.cluster.runtime import Runtime
from pytest_ipcluster.cluster.spares import Spares
from pytest_ipcluster.errors import RepairError
from pytest_ipcluster.network.routes import CONNECTION, connection_by_lane

__all__ = ["Crew", "EngineStart", "EngineStarts", "take_back"]

_ENGINE = "ipyparallel.engine"


@dataclass(frozen=True, slots=True)
class EngineStart:
    """An engine that was started for a slot, and has yet to register."""

    slot: int
    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Raise RepairError when it has ended."""
        if self.process.poll() is not None:
            code = self.process.returncode
            raise RepairError(f"the new engine in slot {self.slot} ended with code {code}:\n{tail(self.log)}")


@dataclass(frozen=True, slots=True)
class Crew:
    """Whom a repair counts on: ``others``, which are to live on, and those that it has started."""

    others: Sequence[Engine]
    starts: list[EngineStart] = field(default_factory=list)

    def check(self) -> None:
        """Raise RepairError when one of them has ended."""
        for start in self.starts:
            start.check()
        for engine in self.others:
            if not is_alive(engine.process):
                raise RepairError(f"the engine in slot {engine.slot} (pid {engine.pid}) ended during the repair")

    def logs(self) -> str:
        """Return the ends of the new engines' logs."""
        return "\n".join(tail(start.log) for start in self.starts)


class EngineStarts:
    """Starts engines of one running cluster. ``arguments`` are given to each; ``spares`` are kept ready."""

    def __init__(self, runtime: Runtime, arguments: Sequence[str], spares: int) -> None:
        self._runtime = runtime
        self._arguments = list(arguments)
        self._spares = Spares(spares, runtime.folder.logs, self._fork_spare)
        self._count = 0
        #: The logs of the engines that were started here and have not been replaced, by pid.
        self.logs: dict[int, Path] = {}

    def start(self, slot: int) -> EngineStart:
        """Start one engine under this id, as ipcluster's local launcher would."""
        self._count += 1
        log = self._runtime.folder.logs / f"engine-{slot}-{self._count}.log"
        process = self._spares.take(slot, log, self._lane(slot)) or self._runtime.spawn_module(
            _ENGINE, [f"--IPEngine.id={slot}", *self._arguments], log, self._environment(self._lane(slot))
        )
        self.logs[process.pid] = log
        return EngineStart(slot, process, log)

    def fill_spares(self) -> None:
        """Have as many spares as there should be. They take a moment to get ready, which nobody waits for."""
        self._spares.fill()

    def _fork_spare(self, pipe: Path, log: Path) -> subprocess.Popen[bytes] | None:
        return self._runtime.fork_module(_ENGINE, self._arguments, log, self._environment(), pipe)

    def _environment(self, lane: Mapping[str, int] | None = None) -> dict[str, str]:
        """Return what ipcluster adds to the environment of engines; with a lane, of the one that connects by it."""
        files = self._runtime.files
        connection = files.engine_connection()
        if lane:
            connection = connection_by_lane(connection, lane)
        return {
            "IPP_PROFILE_DIR": str(files.profile),
            "IPP_CLUSTER_ID": files.cluster_id,
            CONNECTION: json.dumps(connection),
        }

    def _lane(self, slot: int) -> dict[str, int] | None:
        """Return the ports of this slot's lane; None in a cluster without lanes."""
        return None if self._runtime.lanes is None else self._runtime.lanes.ports(slot)


def take_back(hub: Hub, starts: Sequence[EngineStart], patience: float) -> None:
    """End engines that were started for nothing, within so many seconds; have the hub forget that they were coming."""
    processes = {process for start in starts if (process := find(start.process.pid)) is not None}
    for process in list(processes):
        processes |= descendants(process)
    for process in processes:
        send_signal(process, KILL)
    wait_gone(processes, patience)
    for start in starts:
        hub.unregister(start.slot)
