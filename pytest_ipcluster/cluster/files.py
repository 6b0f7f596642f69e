"""The files that a cluster writes into its profile: where they are and what they say."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_ipcluster.errors import ClusterError

__all__ = ["ClusterFiles", "current_profile", "given_cluster_id", "profile_folder", "read_finished_json", "read_json"]

#: How often a file that is not complete is read, and the seconds in between: writing one takes half a millisecond.
_READS, _AGAIN = 20, 0.001


def profile_folder(name: str) -> Path:
    """Return the folder of the user's IPython profile of this name, whether it exists or not."""
    home = os.environ.get("IPYTHONDIR") or "~/.ipython"
    return Path(home).expanduser() / f"profile_{name}"


def current_profile() -> str:
    """Return the name of the current IPython application's profile, ``"default"`` where there is none."""
    # An application can only exist if its module was imported; importing it to ask would cost half a second.
    module = sys.modules.get("IPython.core.application")
    application = getattr(module, "BaseIPythonApplication", None)
    if application is None or not application.initialized():
        return "default"
    # A foreign singleton raises MultipleInstanceError, an application without profiles AttributeError.
    with contextlib.suppress(Exception):
        return str(application.instance().profile)
    return "default"


def given_cluster_id(arguments: Sequence[str], otherwise: str) -> str:
    """Return the cluster id that the user's own arguments give, the last of them."""
    given = [argument.split("=", 1)[1] for argument in arguments if argument.startswith("--cluster-id=")]
    return given[-1] if given else otherwise


@dataclass(frozen=True, slots=True)
class ClusterFiles:
    """The files of the cluster with this id in this profile folder."""

    profile: Path
    cluster_id: str

    def create_folders(self) -> None:
        """Make the folders that ipcluster would make, so that they can be watched before it runs.

        Only in a profile that exists, or in the default one; any other is for ipcluster to make or to refuse.
        """
        if not self.profile.is_dir() and self.profile.name != "profile_default":
            return
        for name in ("security", "log"):
            (self.profile / name).mkdir(mode=0o700, parents=True, exist_ok=True)

    def _named(self, stem: str, end: str) -> Path:
        return self.profile / "security" / "-".join(part for part in (stem, self.cluster_id, end) if part)

    @property
    def client_file(self) -> Path:
        """The file with which clients connect."""
        return self._named("ipcontroller", "client.json")

    @property
    def engine_file(self) -> Path:
        """The file with which engines connect."""
        return self._named("ipcontroller", "engine.json")

    @property
    def cluster_file(self) -> Path:
        """ipcluster's own account of what it has started."""
        return self.profile / "security" / f"cluster-{self.cluster_id}.json"

    @property
    def logs(self) -> Path:
        """The folder of the logs that ipcluster's launchers write."""
        return self.profile / "log"

    def client_connection(self) -> dict[str, Any] | None:
        """Return the content of the client's connection file; None until it has been written."""
        return read_json(self.client_file)

    def engine_connection(self) -> dict[str, Any]:
        """Return the content of the engines' connection file. Raises ClusterError when there is none."""
        content = read_json(self.engine_file)
        if content is None:
            raise ClusterError(f"the controller has written no connection file {self.engine_file.name}: does it run?")
        return content

    def remove(self) -> None:
        """Remove the files that carry this cluster's id; nothing when it has none, for then they may be anybody's."""
        if not self.cluster_id:
            return
        for folder in ("security", "log"):
            for path in (self.profile / folder).glob(f"*{self.cluster_id}*"):
                path.unlink(missing_ok=True)


def read_finished_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON file's content; one that is just being written is read again, for as long as that may take."""
    for _ in range(_READS):
        if (content := read_json(path)) is not None or not path.exists():
            return content
        time.sleep(_AGAIN)  # a file says nothing when it is complete
    return None


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON file's content; None when it is not there or, as ipyparallel writes it in place, not complete."""
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None
