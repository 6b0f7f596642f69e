"""The conftest.py of an inner run: its fixtures tell the outer run how far it is."""

from __future__ import annotations

import os

import pytest
from moments import tell, wait


@pytest.fixture(scope="session", autouse=True)
def session():
    """Torn down after the cluster."""
    yield
    tell("torn down")


@pytest.fixture(scope="session")
def stopping(ipcluster):  # noqa: ARG001 - only so that this one is torn down first
    """Torn down before the cluster."""
    yield
    tell("stopping")


@pytest.fixture
def up(ipcluster, ipcluster_client):
    """Every engine has run a task, and the outer run has seen the processes."""
    pids = ipcluster_client[:].apply_async(os.getpid).get(30)
    tell("up", engines=pids, ipcluster=ipcluster.process.pid)
    wait()
