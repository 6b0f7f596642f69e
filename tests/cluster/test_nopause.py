"""One pause is left out, and whatever else there is of time stays as it is."""

from __future__ import annotations

import inspect
import time

import pytest
from ipyparallel.controller import app

from pytest_ipcluster.cluster.nopause import PAUSE, start_without_the_pause


@pytest.fixture
def slept(monkeypatch) -> list[float]:
    """How long the controller's module has slept since it was told to do without its pause."""
    slept: list[float] = []
    monkeypatch.setattr(app, "time", time)  # which puts it back afterwards
    start_without_the_pause()
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


def test_the_pause_is_left_out(slept):
    app.time.sleep(PAUSE)
    assert slept == []


def test_other_sleeps_are_not(slept):
    app.time.sleep(2 * PAUSE)
    assert slept == [2 * PAUSE]


@pytest.mark.usefixtures("slept")
def test_all_else_is_that_of_the_module():
    assert app.time is not time
    assert {name for name, value in vars(time).items() if vars(app.time)[name] is not value} == {"sleep"}


def test_the_controller_has_this_pause_and_no_other_use_for_time():
    """If this fails there is a new ipyparallel, which may need none of this any more."""
    assert f"time.sleep({PAUSE})" in inspect.getsource(app.IPController.init_hub)
    assert inspect.getsource(app).count("time.") == 1
