"""Which engine launchers there are, and which faults can be done to the engines of each.

Names are ipyparallel's own words (``local``, ``mpi``, ``slurm`` ...), read from the entry points that it and
third parties install, so a launcher of somebody else's is known as soon as it is installed, without importing it.
"""

from __future__ import annotations

__all__ = [
    "FAULTS",
    "FORKSERVER",
    "LOCAL",
    "LOCAL_LAUNCHERS",
    "capabilities",
    "check_launcher",
    "known_launchers",
    "network_refusal",
]

LOCAL = "local"
#: Local engines that are forked from a process that has imported everything; the local launcher where that can't be.
FORKSERVER = "forkserver"

#: What can be done to an engine on purpose, in the order in which messages list it.
FAULTS = ("kill", "terminate", "pause", "crash")

#: Launchers whose engines are processes of this host, each for itself.
LOCAL_LAUNCHERS = (FORKSERVER, LOCAL)

_GROUP = "ipyparallel.engine_launchers"

_CAPABILITIES = {
    LOCAL: frozenset(FAULTS),
    FORKSERVER: frozenset(FAULTS),
    # One rank that dies takes the whole MPI job along: nothing that ends a rank can be aimed at one engine.
    "mpi": frozenset({"pause"}),
}


def known_launchers() -> tuple[str, ...]:
    """Return the names of the installed engine launchers, in lower case and sorted."""
    from importlib.metadata import entry_points

    return tuple(sorted({entry.name.lower() for entry in entry_points(group=_GROUP)}))


def check_launcher(name: object) -> str:
    """Return the launcher's name as ``ipcluster start --engines`` understands it.

    A name is compared without regard to case, as ipyparallel does. An import path is not imported: whether it
    names a launcher shows when ``ipcluster`` starts. Raises ValueError, whose text says what is accepted.
    """
    if isinstance(name, str) and _is_import_path(name):
        return name.replace(":", ".")  # ipcluster takes the dotted spelling only
    known = known_launchers()
    if isinstance(name, str) and name.lower() in known:
        return name.lower()
    raise ValueError(f"one of {', '.join(known)}, or an import path such as package.module.Class")


def capabilities(name: str) -> frozenset[str]:
    """Return the faults that can be aimed at single engines which this launcher started.

    No fault for a launcher not known here: its engines may live on other hosts, out of a signal's reach.
    """
    return _CAPABILITIES.get(name.lower(), frozenset())


def network_refusal(name: str, *, private: bool) -> str:
    """Say why engines of this launcher can't have networks of their own; empty when they can."""
    if not private:
        return "takes a private profile: in one of your own, its files say how engines reach the controller"
    if name.lower() not in LOCAL_LAUNCHERS:
        return f"takes one of the launchers {', '.join(map(repr, LOCAL_LAUNCHERS))}, not {name!r}"
    return ""


def _is_import_path(name: str) -> bool:
    parts = name.replace(":", ".").split(".")
    return len(parts) > 1 and all(part.isidentifier() for part in parts)
