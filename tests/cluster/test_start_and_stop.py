"""However a cluster runs and whatever state it is in: when ``stop`` returns, nothing of it is alive."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from clusters import kill, left_of, pids
from waiting import until

from pytest_ipcluster import ClusterError, RepairError
from pytest_ipcluster.cluster.hub import Hub, HubSilentError
from pytest_ipcluster.cluster.processes import descendants, environment, find, send_signal


@pytest.fixture
def started(new_cluster):
    def started(**kwargs):
        cluster = new_cluster(**kwargs)
        cluster.start()
        cluster.wait_for_engines()
        return cluster

    return started


def controller(cluster) -> psutil.Process:
    return find(cluster._runtime.roles().controller.pid)


def test_start_returns_when_the_controller_answers(new_cluster):
    cluster = new_cluster()
    cluster.start(check_after=60)
    client = cluster.client()
    client.close()


def test_start_returns_after_check_after_when_all_is_alive_but_silent(new_cluster):
    cluster = new_cluster()
    cluster.start(check_after=0)
    assert cluster.poll() is None
    cluster.wait_for_engines()


def test_start_takes_the_number_of_engines(new_cluster):
    cluster = new_cluster()
    cluster.start(3)
    cluster.wait_for_engines()
    assert cluster.n == 3
    assert len(cluster.engines) == 3


def test_a_stopped_cluster_is_gone_with_its_folder(started):
    cluster = started()
    folder = cluster.folder.path
    cluster.stop(kill_after=60)  # on a full machine too it ends by itself
    assert left_of(cluster) == []
    assert not folder.exists()
    assert cluster.returncode == 0
    assert cluster.poll() == 0


def test_a_second_stop_does_nothing(started):
    cluster = started()
    cluster.stop()
    cluster.stop()


def test_a_stopped_cluster_can_be_started_again(started):
    cluster = started()
    first = cluster.engines[0].pid
    cluster.stop()
    cluster.start()
    cluster.wait_for_engines()
    assert pids(cluster) == [cluster.engines[0].pid] != [first]


def test_a_stopped_cluster_says_that_it_is_not_running(started):
    cluster = started()
    cluster.stop()
    with pytest.raises(ClusterError, match="start it first"):
        cluster.restore()


def test_busy_and_paused_engines_do_not_hold_up_the_stop(started):
    cluster = started(n=3)
    client = cluster.client()
    client[:2].apply_async(time.sleep, 600)
    until(lambda: all(client.queue_status(i)["tasks"] + client.queue_status(i)["queue"] > 0 for i in (0, 1)))
    client.close()
    send_signal(cluster.engines[2].process, signal.SIGSTOP)
    begun = time.monotonic()
    cluster.stop(kill_after=60)
    assert time.monotonic() - begun < 30  # one busy engine alone would take ipcluster 5 s, and the paused one 60 s here
    assert left_of(cluster) == []


@pytest.mark.parametrize("kill_after", [0, 0.01])
def test_a_stop_without_grace_leaves_nothing_either(started, kill_after):
    cluster = started()
    cluster.stop(kill_after=kill_after)
    assert left_of(cluster) == []


def test_engines_that_were_added_are_stopped_too(started):
    cluster = started()
    cluster.restore(2)
    cluster.stop()
    assert left_of(cluster) == []


def test_nothing_is_left_after_ipcluster_was_killed(started):
    cluster = started()
    kill(find(cluster.process.pid))
    cluster.stop()
    assert left_of(cluster) == []


def test_nothing_is_left_after_the_controller_was_killed(started):
    cluster = started()
    kill(controller(cluster))
    cluster.stop()
    assert left_of(cluster) == []


def test_nothing_is_left_of_a_frozen_cluster(started):
    cluster = started()
    for process in [*descendants(find(cluster.process.pid)), find(cluster.process.pid)]:
        send_signal(process, signal.SIGSTOP)
    cluster.stop(kill_after=0.5)
    assert left_of(cluster) == []


def test_the_end_of_the_block_stops_the_cluster(new_cluster):
    with new_cluster() as cluster:
        assert len(cluster.engines) == 1
    assert left_of(cluster) == []


def test_an_exception_in_the_block_stops_the_cluster(new_cluster):
    with pytest.raises(ZeroDivisionError), new_cluster() as cluster:
        raise ZeroDivisionError
    assert left_of(cluster) == []


def test_an_interrupted_start_leaves_nothing(new_cluster, monkeypatch):
    cluster = new_cluster()

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pytest_ipcluster.cluster.runtime.Runtime.wait_for_controller", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cluster.start()
    assert left_of(cluster) == []


def test_the_end_of_the_interpreter_stops_the_cluster(tmp_path):
    code = """
from pathlib import Path
from pytest_ipcluster import BackgroundCluster
cluster = BackgroundCluster(n=1, private=True)
cluster.start()
print(cluster.folder.path, flush=True)
"""
    given = {**os.environ, "PYTEST_IPCLUSTER_TEST": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=given, capture_output=True, text=True, timeout=60, check=True
    )
    assert not Path(ran.stdout.splitlines()[1]).exists()
    others = (process for process in psutil.process_iter() if process.pid != os.getpid())
    left = [process for process in others if environment(process).get("PYTEST_IPCLUSTER_TEST") == str(tmp_path)]
    assert left == []


def test_the_home_folder_is_not_touched(new_cluster, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("IPYTHONDIR", raising=False)
    with new_cluster() as cluster:
        cluster.restore(2)
        assert len(pids(cluster)) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("launcher", ["", "forkserver"])
def test_a_named_profile_is_used_and_left_as_it_was(new_cluster, given_ports, monkeypatch, tmp_path, launcher):
    profile = tmp_path / "profile_lab"
    profile.mkdir()
    (profile / "ipcontroller_config.py").write_text("c = get_config()\nc.HeartMonitor.period = 100\n")
    (profile / "ipengine_config.py").write_text("c = get_config()\nc.IPKernelApp.exec_lines = ['lab = 42']\n")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    lab = new_cluster(private=False, profile="lab", n=1, launcher=launcher, extra_args=given_ports)
    with lab as cluster:
        assert "--profile=lab" in cluster.command
        cluster.restore(2)
        assert len(cluster.heads) == (2 if launcher and sys.platform == "linux" else 1)
        client = cluster.client()
        assert client[:].pull("lab", block=True) == [42, 42]
        client.close()
        identifier = cluster.cluster_id
    assert [path.name for path in profile.rglob("*") if identifier in path.name] == []


def test_a_cluster_id_of_the_user_is_obeyed(new_cluster, given_ports, monkeypatch, tmp_path):
    (tmp_path / "profile_lab").mkdir()
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    cluster = new_cluster(private=False, profile="lab", extra_args=["--cluster-id=mine", *given_ports])
    cluster.start(check_after=60)
    assert cluster.cluster_id == "mine"
    assert Path(cluster.connection_file).name == "ipcontroller-mine-client.json"


def test_the_controllers_configuration_reaches_it(new_cluster):
    from traitlets.config import Config

    config = Config()
    config.TaskScheduler.scheme_name = "pure"
    with new_cluster(cluster_config=config) as cluster:
        client = cluster.client()
        assert client._task_scheme == "pure"
        client.close()


def test_a_lost_controller_is_noticed_without_waiting_for_its_answer(started, monkeypatch):
    cluster = started()
    kill(controller(cluster))

    def silent(_: Hub, timeout: float) -> None:
        assert timeout < 1
        raise HubSilentError("the hub is gone")

    monkeypatch.setattr(Hub, "engines", silent)
    with pytest.raises(RepairError, match=r"the controller .*has ended|ipcluster has ended"):
        cluster.restore()


def test_a_cluster_file_that_is_just_being_written_is_no_loss(started):
    cluster = started()
    cluster._files.cluster_file.write_text('{"controller": {"sta')
    assert cluster.restore() == []
