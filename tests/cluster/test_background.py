"""``BackgroundCluster`` before it is started: everything that its old page names, and what a user may set."""

from __future__ import annotations

import importlib
import queue
import sys
import threading

import pytest
from IPython.core.application import BaseIPythonApplication
from traitlets import TraitError
from traitlets.config import Application, Config

from pytest_ipcluster import BackgroundCluster, ClusterError
from pytest_ipcluster.cluster import clients


@pytest.fixture
def no_singletons():
    yield
    for kind in (BackgroundCluster, BaseIPythonApplication, Application):
        kind.clear_instance()


def test_the_command_ends_in_the_users_arguments():
    cluster = BackgroundCluster(profile="work", n=3, extra_args=["--log-level=DEBUG", "--", "--sqlitedb"])
    assert cluster.command[-3:] == ["--log-level=DEBUG", "--", "--sqlitedb"]


def test_the_command_names_profile_and_number():
    command = BackgroundCluster(profile="work", n=3).command
    assert command == [sys.executable, "-m", "ipyparallel.cluster", "start", "--profile=work", "--n=3"]


def test_the_command_names_the_launcher():
    assert "--engines=mpi" in BackgroundCluster(launcher="mpi").command


def test_ipcluster_itself_can_be_chosen():
    assert BackgroundCluster(ipcluster_cmd=["/opt/bin/ipcluster"]).command[:2] == ["/opt/bin/ipcluster", "start"]


@pytest.mark.usefixtures("no_singletons")
def test_the_profile_is_default_without_an_application():
    assert BackgroundCluster().profile == "default"


@pytest.mark.usefixtures("no_singletons")
def test_the_profile_is_that_of_the_current_application():
    BaseIPythonApplication.instance(profile="mine")
    assert BackgroundCluster().profile == "mine"


@pytest.mark.usefixtures("no_singletons")
def test_a_foreign_application_is_not_asked_for_a_profile():
    Application.instance()
    assert BackgroundCluster().profile == "default"


def test_traits_can_be_configured():
    config = Config()
    config.BackgroundCluster.n = 5
    config.BackgroundCluster.extra_args = ["--debug"]
    cluster = BackgroundCluster(config=config)
    assert (cluster.n, cluster.extra_args) == (5, ["--debug"])


@pytest.mark.parametrize("n", [0, -1, 2.5, "four"])
def test_a_number_of_engines_that_is_none_is_refused(n):
    with pytest.raises(TraitError, match="n"):
        BackgroundCluster(n=n)


def test_messages_are_printed(capsys):
    BackgroundCluster().msg("hello")
    assert capsys.readouterr().out == "hello\n"


def test_a_silent_cluster_prints_nothing(capsys):
    BackgroundCluster(silent=True).msg("hello")
    assert capsys.readouterr().out == ""


def test_before_the_start_there_is_nothing():
    cluster = BackgroundCluster()
    assert (cluster.process, cluster.poll(), cluster.returncode, cluster.created, cluster.log()) == (
        None,
        None,
        None,
        None,
        "",
    )


def test_stopping_before_the_start_does_nothing():
    BackgroundCluster().stop()


@pytest.mark.parametrize("ask", ["engines", "slots", "connection_file", "folder"])
def test_what_needs_a_running_cluster_says_so(ask):
    with pytest.raises(ClusterError, match="start it first"):
        getattr(BackgroundCluster(), ask)


@pytest.mark.usefixtures("no_singletons")
def test_there_can_be_one_instance_for_all():
    assert not BackgroundCluster.initialized()
    instance = BackgroundCluster.instance(n=3)
    assert BackgroundCluster.instance() is instance
    BackgroundCluster.clear_instance()
    assert not BackgroundCluster.initialized()


def test_what_is_imported_ahead_is_not_imported_where_an_interrupt_arrives(monkeypatch):
    imported: queue.SimpleQueue[tuple[str, threading.Thread]] = queue.SimpleQueue()
    monkeypatch.setattr(importlib, "import_module", lambda name: imported.put((name, threading.current_thread())))
    clients.import_ahead()
    for wanted in clients._WANTED_SOON:
        name, thread = imported.get(timeout=10)
        assert name == wanted
        assert thread is not threading.main_thread()
        assert thread.daemon
