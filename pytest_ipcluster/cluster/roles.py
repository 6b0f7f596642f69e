"""Which process does what, as ipcluster's own cluster file tells it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_ipcluster.cluster.files import read_finished_json

__all__ = ["Role", "Roles", "read_roles"]


@dataclass(frozen=True, slots=True)
class Role:
    """A process that ipcluster started: its pid, or None where the launcher knows none, and the file it writes to."""

    name: str
    pid: int | None
    log: Path | None


@dataclass(frozen=True, slots=True)
class Roles:
    """What the cluster file says at one moment. ``engines`` are in the launcher's order, not in that of engine ids."""

    controller: Role | None = None
    engines: tuple[Role, ...] = ()

    def __iter__(self) -> Iterator[Role]:
        if self.controller is not None:
            yield self.controller
        yield from self.engines

    def engine_log(self, pid: int) -> Path | None:
        """Return the log of the engine with this pid."""
        return next((role.log for role in self.engines if role.pid == pid), None)


def read_roles(cluster_file: Path) -> Roles:
    """Return the roles in this cluster file; empty when it does not exist or is never written to its end."""
    content = read_finished_json(cluster_file) or {}
    controller = content.get("controller")
    sets = (content.get("engines") or {}).get("sets") or {}
    return Roles(
        _role("controller", controller.get("state") or {}) if controller else None,
        tuple(role for engine_set in sets.values() for role in _engines(engine_set)),
    )


def _engines(engine_set: dict[str, Any]) -> Iterator[Role]:
    """Yield one role per engine, or one for the whole set where a launcher starts it as one job (mpi, slurm)."""
    members = engine_set.get("engines")
    if members is None:
        yield _role("engines", engine_set)
        return
    for index, member in members.items():
        yield _role(f"engine (launched as number {index})", member)


def _role(name: str, state: dict[str, Any]) -> Role:
    pid, log = state.get("pid"), state.get("output_file")
    return Role(name, pid if isinstance(pid, int) and pid > 0 else None, Path(log) if log else None)
