"""What the leak guard keeps in a long session."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest

from pytest_ipcluster.leakguard import LeakGuard


@pytest.fixture
def cluster(tmp_path):
    """A cluster without processes, whose engines the test sets."""
    folder = SimpleNamespace(path=tmp_path, mark="of nobody", guard=None)
    return SimpleNamespace(process=object(), folder=folder, heads=(), engines=())


def test_pids_of_engines_that_were_replaced_are_forgotten(cluster):
    guard = LeakGuard("warn")
    guard.follow(SimpleNamespace(cluster=cluster))
    for pid in (11, 12):
        cluster.engines = (SimpleNamespace(pid=pid, slot=0, process=psutil.Process(), nanny=None),)
        assert guard._strays() == set()
        assert guard._roles == {pid: "engine 0"}
