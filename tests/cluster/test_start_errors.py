"""A cluster that cannot start says so as soon as that is certain, with its log, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import time

import pytest
from clusters import left_of

from pytest_ipcluster import BackgroundCluster, ClusterStartError
from pytest_ipcluster.cluster import slots
from pytest_ipcluster.cluster.processes import send_signal

# Long enough that no test passes because its time ran out; the limit of the issue is 3 s after the cause.
PATIENCE = 60


def come_up(cluster: BackgroundCluster) -> None:
    cluster.start(check_after=PATIENCE)
    cluster.wait_for_engines(timeout=PATIENCE)


@pytest.fixture
def fails(new_cluster):
    """Start a cluster that cannot start, and return the error; nothing may be left of it."""

    def fails(**kwargs) -> ClusterStartError:
        cluster = new_cluster(n=2, **kwargs)
        begun = time.monotonic()
        with pytest.raises(ClusterStartError) as caught:
            come_up(cluster)
        assert time.monotonic() - begun < PATIENCE / 2
        cluster.stop()
        assert left_of(cluster) == []
        if cluster.extra_args:
            assert caught.value.command[-1] == cluster.extra_args[-1]
        return caught.value

    return fails


@pytest.fixture
def taken_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def ports(free: list[int], *, taken: int, position: int) -> str:
    """Return a --ports argument of these ports, but at this position one that is taken."""
    numbers = [*free[:position], taken, *free[position + 1 :]]
    return f"--ports={','.join(map(str, numbers))}"


def test_an_ipcluster_that_is_not_there(fails):
    error = fails(ipcluster_cmd=["/no/such/ipcluster"])
    assert "'/no/such/ipcluster' cannot be run: No such file or directory" in str(error)
    assert "install ipyparallel" in error.advice


def test_an_argument_that_ipcluster_does_not_know(fails):
    error = fails(extra_args=["--nosuch"])
    assert error.returncode == 2
    assert "ipcluster ended with exit code 2: argument --nosuch" in error.cause
    assert "--help-all" in error.advice


def test_an_argument_that_is_given_twice(fails):
    error = fails(extra_args=["--n=3"])
    assert "ipcluster ended with exit code" in error.cause
    assert "only accepts one value" in error.cause


def test_a_value_that_ipcluster_does_not_accept(fails):
    error = fails(extra_args=["--delay=abc"])
    assert error.returncode not in (None, 0)
    assert "'abc'" in error.cause


def test_an_argument_that_the_controller_does_not_know(fails):
    error = fails(extra_args=["--", "--nosuch"])
    assert error.returncode is None
    assert "the controller" in error.cause
    assert "--nosuch" in error.log
    assert "--help-all" in error.advice


def test_a_value_that_the_controller_does_not_accept(fails):
    error = fails(extra_args=["--", "--HeartMonitor.period=abc"])
    assert "expected an int, not the str 'abc'" in error.cause
    assert "correct the value" in error.advice


@pytest.mark.parametrize("arguments", [["--Cluster.nosuch=1"], ["--", "--HeartMonitor.nosuch=1"]])
def test_an_argument_that_would_be_ignored(fails, arguments):
    error = fails(extra_args=arguments)
    assert "Config option `nosuch` not recognized by" in error.cause
    assert "correct the name" in error.advice


def test_a_launcher_that_does_not_exist(fails):
    error = fails(launcher="no.such.Launcher")
    assert error.returncode not in (None, 0)
    assert "no" in error.log


def test_an_engine_that_dies_at_import(fails):
    error = fails(extra_args=["--EngineLauncher.engine_args=['--IPEngine.startup_command=import os; os._exit(3)']"])
    assert "engine" in error.cause
    assert "os._exit(3)" in error.log
    assert "engines import and run" in error.advice


def test_an_engine_that_dies_before_it_logs_anything(fails):
    error = fails(extra_args=["--EngineLauncher.engine_cmd=['/bin/false']"])
    assert "engine" in error.cause


def test_an_engine_command_that_is_not_there(fails):
    error = fails(extra_args=["--EngineLauncher.engine_cmd=['/no/such/engine']"])
    assert "'/no/such/engine'" in error.cause
    assert "install what is missing" in error.advice


def test_an_mpiexec_that_is_not_there(fails):
    error = fails(launcher="mpi", extra_args=["--MPILauncher.mpi_cmd=['/no/such/mpiexec']"])
    assert "'/no/such/mpiexec'" in error.cause
    assert "install what is missing" in error.advice


def test_engines_for_whose_loss_ipcluster_ends_everything(fails):
    arguments = ["--IPClusterStart.early_shutdown=30", "--EngineLauncher.engine_cmd=['/bin/false']"]
    error = fails(extra_args=arguments)
    assert error.returncode in (None, 0)  # it takes this for an orderly end
    assert "engine" in error.cause
    assert error.log


def test_a_hub_whose_file_is_gone_again(new_cluster):
    cluster = new_cluster(n=1)
    cluster.start(check_after=PATIENCE)
    os.remove(cluster.connection_file)
    with pytest.raises(ClusterStartError, match="the controller has written no connection file"):
        cluster.slots.wait_for(1, time.monotonic() + PATIENCE)


def test_a_hub_that_falls_silent(new_cluster):
    cluster = new_cluster(n=1)
    cluster.start(check_after=PATIENCE)
    send_signal(cluster.controller, signal.SIGSTOP)
    with pytest.raises(ClusterStartError, match="the hub did not answer"):
        cluster.slots.wait_for(2, time.monotonic() + 0.5)
    cluster.stop(kill_after=1)


def test_engines_that_cannot_load_the_agent(fails):
    error = fails(extra_args=["--EngineLauncher.engine_args=['--IPKernelApp.extensions=[]']"])
    assert "without the plugin's agent" in error.cause


@pytest.mark.parametrize(
    ("file", "cause"),
    [
        ("ipcluster_config.py", "/profile_lab/ipcluster_config.py can't be executed: NameError"),
        ("ipcontroller_config.py", "controller"),
        ("ipengine_config.py", "engine"),
    ],
)
def test_a_configuration_file_that_cannot_be_executed(fails, given_ports, monkeypatch, tmp_path, file, cause):
    profile = tmp_path / "profile_lab"
    profile.mkdir()
    (profile / file).write_text("c = get_config()\nc.no.such = no_such_name\n")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    arguments = [] if file == "ipcluster_config.py" else given_ports  # with that one nothing is started
    error = fails(private=False, profile="lab", extra_args=arguments)
    assert cause in error.cause
    assert "name 'no_such_name' is not defined" in error.cause
    assert "NameError" in error.log


# The controller takes the ports in this order: see init_hub in ipyparallel.controller.app.
@pytest.mark.parametrize("position", [0, 2, 9, 17], ids=["registration", "engines' mux", "clients' mux", "monitor"])
def test_a_port_that_is_taken(fails, taken_port, held_ports, position):
    error = fails(extra_args=["--", ports(held_ports, taken=taken_port, position=position)])
    assert "Address already in use" in error.cause
    assert str(taken_port) in error.log
    assert "let the system choose the ports" in error.advice


def test_engines_that_do_not_come_in_time(new_cluster, monkeypatch):
    monkeypatch.setattr(slots, "_ANSWER", PATIENCE)
    cluster = new_cluster(n=1)
    come_up(cluster)
    with pytest.raises(ClusterStartError, match=r"1 of 2 engines were registered [\d.]+ s after the start: \[0\]"):
        cluster.slots.wait_for(2, deadline=time.monotonic())


def test_the_error_has_a_page_with_everything(fails):
    error = fails(extra_args=["--nosuch"])
    for part in ("exit code: 2", "command:", "--nosuch", "the last lines it wrote:", "    | ", "try: "):
        assert part in str(error)
