"""Errors travel: a process pool and whoever reports a run elsewhere pickle them."""

from __future__ import annotations

import pickle

import ipyparallel.error
import pytest

from pytest_ipcluster import errors
from pytest_ipcluster.errors import CallOverdueError, ClusterStartError, Death, EngineLost, LeakError
from pytest_ipcluster.faults.deadman import _as_composite, _as_remote

DEATH = Death("engine", 1, 4711, "killed by SIGKILL", "last words")

ERRORS = [
    ClusterStartError("no port", command=["ipcluster"], returncode=1, log="log", advice="wait", port_lost=True),
    errors.UnexpectedDeathError([DEATH], when="in test_it"),
    EngineLost(DEATH, waiting="apply", at=1.5),
    CallOverdueError("apply", "report"),
    LeakError("left", ["a process"]),
    errors.RepairError("why"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_is_pickled_with_all_that_it_says(error):
    error.add_note("a note")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_one_that_is_ipyparallels_as_well_is_pickled_as_ours():
    lost = _as_remote(EngineLost(DEATH, waiting="apply", at=1.5))
    several = ipyparallel.error.CompositeError("several", [("EngineLost", "text", "text", {})])
    for error in (lost, _as_composite([lost], several)):
        assert isinstance(error, ipyparallel.error.RemoteError | ipyparallel.error.CompositeError)
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is EngineLost
        assert str(again) == again.message
        assert again.death == DEATH
