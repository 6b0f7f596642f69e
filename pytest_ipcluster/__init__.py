"""A real IPython Parallel cluster for tests, watched by heart, with failures on request.

The public names below are loaded the first time they are used: importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_ipcluster.cluster.background import BackgroundCluster
    from pytest_ipcluster.cluster.profile import EngineSetup
    from pytest_ipcluster.cluster.remote import raises_remote
    from pytest_ipcluster.errors import (
        CallOverdueError,
        ClusterError,
        ClusterLostError,
        ClusterStartError,
        ClusterStopError,
        ControllerLost,
        Death,
        EngineLost,
        FaultError,
        IpclusterLeakWarning,
        LeakError,
        RepairError,
        SchedulerLost,
        UnexpectedDeathError,
    )
    from pytest_ipcluster.faults.vigil import Deadman
    from pytest_ipcluster.hearts.heart import Heart
    from pytest_ipcluster.hearts.keys import HeartKeys, MonitorKeys
    from pytest_ipcluster.hearts.monitor import HeartMonitor
    from pytest_ipcluster.hearts.process import MonitorProcess
    from pytest_ipcluster.hearts.thread import MonitorThread

__version__ = "0.1.0"

__all__ = [
    "BackgroundCluster",
    "CallOverdueError",
    "ClusterError",
    "ClusterLostError",
    "ClusterStartError",
    "ClusterStopError",
    "ControllerLost",
    "Deadman",
    "Death",
    "EngineLost",
    "EngineSetup",
    "FaultError",
    "Heart",
    "HeartKeys",
    "HeartMonitor",
    "IpclusterLeakWarning",
    "LeakError",
    "MonitorKeys",
    "MonitorProcess",
    "MonitorThread",
    "RepairError",
    "SchedulerLost",
    "UnexpectedDeathError",
    "__version__",
    "raises_remote",
]

_HOMES = {
    "BackgroundCluster": "pytest_ipcluster.cluster.background",
    "CallOverdueError": "pytest_ipcluster.errors",
    "ClusterError": "pytest_ipcluster.errors",
    "ClusterLostError": "pytest_ipcluster.errors",
    "ClusterStartError": "pytest_ipcluster.errors",
    "ClusterStopError": "pytest_ipcluster.errors",
    "ControllerLost": "pytest_ipcluster.errors",
    "Deadman": "pytest_ipcluster.faults.vigil",
    "Death": "pytest_ipcluster.errors",
    "EngineLost": "pytest_ipcluster.errors",
    "EngineSetup": "pytest_ipcluster.cluster.profile",
    "FaultError": "pytest_ipcluster.errors",
    "Heart": "pytest_ipcluster.hearts.heart",
    "HeartKeys": "pytest_ipcluster.hearts.keys",
    "HeartMonitor": "pytest_ipcluster.hearts.monitor",
    "IpclusterLeakWarning": "pytest_ipcluster.errors",
    "LeakError": "pytest_ipcluster.errors",
    "MonitorKeys": "pytest_ipcluster.hearts.keys",
    "MonitorProcess": "pytest_ipcluster.hearts.process",
    "MonitorThread": "pytest_ipcluster.hearts.thread",
    "RepairError": "pytest_ipcluster.errors",
    "SchedulerLost": "pytest_ipcluster.errors",
    "UnexpectedDeathError": "pytest_ipcluster.errors",
    "raises_remote": "pytest_ipcluster.cluster.remote",
}


def __getattr__(name: str) -> object:
    """Load a public name from its home module on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
