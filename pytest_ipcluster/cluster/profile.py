"""The private folder of a cluster, its IPython profile, and the configuration that carries our defaults.

Our defaults live in the profile's configuration files and not on the command line, because ipcluster's command
line overrides its files, and refuses an argument that is given twice: so whatever the user passes wins, without
our looking at it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_ipcluster.cluster.guard import Guard
from pytest_ipcluster.cluster.processes import MARK
from pytest_ipcluster.errors import ClusterStartError
from pytest_ipcluster.launchers import FORKSERVER
from pytest_ipcluster.network.routes import ROUTES

__all__ = [
    "QUICK_HUB_PERIOD",
    "EngineSetup",
    "RunFolder",
    "child_environment",
    "named_profile_arguments",
    "write_profile",
]

#: What we change in ipyparallel's defaults, and why.
_DEFAULTS: dict[str, dict[str, dict[str, object]]] = {
    "ipcluster_config.py": {
        # What ipcluster knows alone, namely how each engine ended, it tells at this level only (logging.DEBUG).
        "Application": {"log_level": 10},
        # With the default of 30 s, ipcluster tears the whole cluster down when a test kills all engines early.
        "IPClusterStart": {"early_shutdown": 0},
        # Both only make the start slower: they are meant for launchers that need time to breathe.
        "Cluster": {"delay": 0.0},
        "LocalEngineSetLauncher": {"delay": 0.0},
    },
    "ipcontroller_config.py": {},
    "ipengine_config.py": {},
}

#: An engine counts as registered at the hub's second heartbeat, so this period (milliseconds) governs the start, and
#: even more the repair: who keeps spare engines has the shorter one. ipyparallel's is 3 s.
_HUB_PERIOD, QUICK_HUB_PERIOD = 50, 20

#: An engine that the hub has dropped never comes back, so a paused one may be silent for so many milliseconds before.
_HUB_PATIENCE = 30_000

#: What it comes to when the warden lacks something.
_WITHOUT = {
    "pidfd": "the end of pytest is noticed by its pipe, or half a second later",
    "child subreaper": "a process is found by its parents or its mark, and not when it has lost both",
}

#: What every engine loads at its start: its heart, and the stock that it goes back to between tests.
_EXTENSIONS = ("pytest_ipcluster.hearts.agent", "pytest_ipcluster.cluster.renewal")


@dataclass(frozen=True, slots=True)
class EngineSetup:
    """What every engine is told at its start: where to send its heartbeats, and which folders are importable there.

    ``ping`` and ``pong`` are ZMQ addresses, or empty for an engine without a heart of ours; ``key_file`` is the path of
    the file with the keys that its heart needs, empty for none.
    """

    ping: str = ""
    pong: str = ""
    importable: tuple[str, ...] = ()
    key_file: str = ""


class RunFolder:
    """A folder (mode 0700) below the system's temporary folder that holds everything a cluster of ours writes.

    ``RunFolder.guarded()`` is one that a warden keeps, which also removes it when this process dies.
    """

    def __init__(self, guard: Guard | None = None) -> None:
        self.guard = guard
        # The name is short: the path of a socket in it must stay below 104 bytes.
        self.path = guard.folder if guard else Path(tempfile.mkdtemp(prefix="ipcluster-"))
        self.mark = guard.mark if guard else secrets.token_hex(16)
        self.cluster_id = secrets.token_hex(4)
        self.ipython = self.path / "ipython"
        self.profile = self.ipython / "profile_default"
        self.cards = self.path / "cards"
        self.key_file = self.path / "heart.keys"
        self.stacks = self.path / "stacks"
        self.logs = self.path / "log"
        self.output = self.logs / "ipcluster.log"
        self.forkserver = self.path / "fork"
        for folder in (self.ipython, self.profile, self.cards, self.stacks, self.logs):
            folder.mkdir(mode=0o700)

    @classmethod
    def guarded(cls, grace: float = 1.0, boss: int | None = None) -> RunFolder:
        """Return a new folder with a warden; without one where there are no POSIX processes, signals and pipes.

        Once this process is gone, ipcluster has ``grace`` seconds to end by itself. Raises ClusterError when the
        warden does not answer.
        """
        return cls(Guard(grace=grace, boss=boss) if os.name == "posix" else None)

    @property
    def limits(self) -> list[str]:
        """What this system does not offer to see that nothing is left behind, a line each; empty on Linux."""
        if self.guard is None:
            return ["no warden here: nothing ends the cluster when pytest is killed"]
        return [f"no {what} here: {_WITHOUT[what]}" for what in self.guard.missing]

    def keep_guarded(self) -> None:
        """Give the folder a new warden when its own has died. Raises ClusterError when that does not answer."""
        if self.guard is not None and not self.guard.alive:
            self.guard.dismiss()
            self.guard = Guard(self.mark, self.path, self.guard.grace, self.guard.boss)

    def heart_urls(self) -> tuple[str, str]:
        """Return addresses for pings and pongs that only this user can reach.

        Unix sockets in this folder; loopback TCP on a port of the system's choice where those do not exist or
        the path is too long.
        """
        if os.name != "posix" or len(os.fsencode(self.path / "ping")) > 100:
            return "tcp://127.0.0.1:*", "tcp://127.0.0.1:*"
        return f"ipc://{self.path / 'ping'}", f"ipc://{self.path / 'pong'}"

    def remove(self) -> None:
        """End the warden and whatever it finds, and remove the folder; no error when it is gone already."""
        if self.guard is not None:
            self.guard.dismiss()
        shutil.rmtree(self.path, ignore_errors=True)


def write_profile(
    folder: Path,
    setup: EngineSetup,
    cards: Path,
    extra: Mapping[str, Any],
    ports: Sequence[int] = (),
    *,
    forking: bool = False,
    hub_period: int = _HUB_PERIOD,
) -> None:
    """Write the three configuration files of a private profile.

    ``extra`` (class name to trait name to value, plain literals) is the user's and stands behind our defaults. With
    ``forking`` the controller is the forkserver's, too. ``hub_period`` is that of the hub's heartbeat, in milliseconds.
    """
    for name, defaults in _DEFAULTS.items():
        lines = ["c = get_config()"]
        if ports and name == "ipcontroller_config.py":
            lines.append(f"c.IPController.ports = {list(ports)}")
        if forking and name == "ipcluster_config.py":
            lines.append(f"c.Cluster.controller_launcher_class = {FORKSERVER!r}")
        if name == "ipcontroller_config.py":
            lines.append(f"c.HeartMonitor.period = {hub_period}")
            lines.append(f"c.HeartMonitor.max_heartmonitor_misses = {_HUB_PATIENCE // hub_period}")
        for section, traits in [*defaults.items(), *extra.items()]:
            lines += [f"c.{section}.{trait} = {_literal(section, trait, value)}" for trait, value in traits.items()]
        if name == "ipengine_config.py":
            lines += _agent_lines(setup, cards)
        (folder / name).write_text("\n".join(lines) + "\n")


def _literal(section: str, trait: str, value: object) -> str:
    """Return the source text of a plain value; raise TypeError for one that has none."""
    if hasattr(value, "to_dict"):  # a traitlets LazyConfigValue, for example after c.Class.trait.append(...)
        raise TypeError(f"c.{section}.{trait}: give the whole value, not a change of it ({value!r})")
    allowed = (type(None), bool, int, float, str, bytes, list, tuple, dict, set)
    if not isinstance(value, allowed):
        raise TypeError(f"c.{section}.{trait} = {value!r}: only plain values can be written to a configuration file")
    return repr(value)


def _agent_lines(setup: EngineSetup, cards: Path) -> list[str]:
    return [
        *(f"c.IPKernelApp.extensions.append({name!r})" for name in _EXTENSIONS),
        f"c.HeartAgent.ping = {setup.ping!r}",
        f"c.HeartAgent.pong = {setup.pong!r}",
        f"c.HeartAgent.key_file = {setup.key_file!r}",
        f"c.HeartAgent.cards = {str(cards)!r}",
        f"c.HeartAgent.stacks = {str(cards.with_name('stacks'))!r}",
        f"c.HeartAgent.importable = {list(setup.importable)!r}",
    ]


def named_profile_arguments(
    folder: RunFolder, setup: EngineSetup, profile: Path, given: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Return the arguments that the user's own profile needs: for ipcluster, and for an engine that we start ourselves.

    The profile's files are not ours to write, so the little that faults and hearts depend on goes to the command
    line, except for what the user's own arguments (``given``) say already.
    """
    config = folder.path / "ipengine_config.py"
    config.write_text("\n".join(["c = get_config()", *_agent_lines(setup, folder.cards)]) + "\n")
    engine = [*_engine_arguments(profile), f"--config={config}"]
    wanted = {
        "--cluster-id": folder.cluster_id,
        "--IPClusterStart.early_shutdown": "0",
        "--EngineLauncher.engine_args": repr(engine),
    }
    names = {argument.split("=", 1)[0] for argument in given}
    return [f"{name}={value}" for name, value in wanted.items() if name not in names], engine


def _engine_arguments(profile: Path) -> list[str]:
    """Return the arguments that the profile itself gives to engines, which the command line would replace.

    Raises ClusterStartError when its file can't be executed.
    """
    from traitlets.config.loader import ConfigFileNotFound, PyFileConfigLoader

    try:
        config = PyFileConfigLoader("ipcluster_config.py", path=str(profile)).load_config()
    except ConfigFileNotFound:
        return []
    except Exception as error:  # whatever code of the user's can raise
        raise _broken(profile / "ipcluster_config.py", error) from error
    return list(config.EngineLauncher.get("engine_args", []))


def _broken(file: Path, error: Exception) -> ClusterStartError:
    return ClusterStartError(
        f"{file} can't be executed: {type(error).__name__}: {error}",
        log="".join(traceback.format_exception(error)),
        advice="correct the file, or use another profile",
    )


def child_environment(folder: RunFolder, *, private: bool) -> dict[str, str]:
    """Return ipcluster's environment: ours, without other clusters' variables (``IPP_*``), with this cluster's mark.

    With ``private`` all of IPython's files go into the folder, so that the user's own IPython folder stays
    untouched. A configuration file that can't be executed ends the program that reads it.

    No test's name gets there, for engines outlive tests. That these are tests does, always in the same way: ipykernel
    looks for it, and leaves an engine's own output alone then, so that it reaches the log.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("IPP_", ROUTES))}
    environment[MARK] = folder.mark
    # Without this it would be written to the log, and the program would go on without the file.
    environment.setdefault("TRAITLETS_APPLICATION_RAISE_CONFIG_FILE_ERROR", "1")
    if "PYTEST_VERSION" in environment:
        environment["PYTEST_CURRENT_TEST"] = "ipcluster (of many tests)"
    if private:
        environment["IPYTHONDIR"] = str(folder.ipython)
    return environment
