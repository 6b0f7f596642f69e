"""How an engine learns of its lane: the controller's ports in what it is told are replaced by the lane's.

Standard library only, since every ipcluster imports it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = [
    "CHANNELS",
    "CLIENT_CHANNELS",
    "CONNECTION",
    "ROUTES",
    "connection_by_lane",
    "environment_by_lane",
    "lane_of",
]

#: The environment variable that tells ipcluster's launchers which file has the ports of all lanes, by slot.
ROUTES = "PYTEST_IPCLUSTER_LANES"

#: The environment variable by which ipyparallel tells an engine where its controller is.
CONNECTION = "IPP_CONNECTION_INFO"

#: What a lane has a listener for: the controller's own words for its ports.
CHANNELS = ("registration", "control", "mux", "task", "iopub", "hb_ping", "hb_pong", "broadcast")


#: The same for the lane of clients.
CLIENT_CHANNELS = ("registration", "control", "mux", "task", "iopub", "notification", "broadcast")


def lane_of(identifier: str) -> dict[str, int] | None:
    """Return the ports of the lane of the engine that ipcluster calls so; None where there is none."""
    path = os.environ.get(ROUTES)
    if not path:
        return None
    lanes = json.loads(Path(path).read_text(encoding="utf-8"))
    return dict(lanes[identifier]) if identifier in lanes else None


def connection_by_lane(connection: Mapping[str, Any], lane: Mapping[str, int]) -> dict[str, Any]:
    """Return what an engine or a client connects with, the lane's ports in place of the controller's.

    An engine chooses one of several ports for broadcasts by its id. All of them are the same here: the lane knows
    which one it stands for.
    """
    ports: dict[str, Any] = {name: port for name, port in lane.items() if name in connection}
    if isinstance(connection.get("broadcast"), list):
        ports["broadcast"] = [lane["broadcast"]] * len(connection["broadcast"])
    return {**connection, **ports, "interface": "tcp://127.0.0.1"}


def environment_by_lane(environment: Mapping[str, str], identifier: str) -> dict[str, str]:
    """Return the environment of the engine that ipcluster calls so, its connection by its lane if it has one."""
    lane = lane_of(identifier)
    if lane is None:
        return dict(environment)
    connection = connection_by_lane(json.loads(environment[CONNECTION]), lane)
    return {**environment, CONNECTION: json.dumps(connection)}
