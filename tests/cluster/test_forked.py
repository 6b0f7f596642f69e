"""What we fork ourselves: its exit code, whoever is there to tell it."""

from __future__ import annotations

import json
import subprocess
import sys

import psutil
import pytest
from clusters import kill
from waiting import until

from pytest_ipcluster.cluster import runtime
from pytest_ipcluster.cluster.forked import FORKSERVER_LOG, ForkedChild, ends

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a forkserver")


@pytest.fixture
def cluster(new_cluster):
    cluster = new_cluster()
    cluster.bring_up()
    return cluster


def spawn(cluster, *arguments: str) -> subprocess.Popen[bytes]:
    return cluster._runtime.spawn_module("ipyparallel.engine", arguments, cluster.folder.logs / "more.log", {})


def waiting(cluster) -> subprocess.Popen[bytes]:
    return spawn(cluster, "--file=/never/there", "--IPEngine.wait_for_url_file=600")


def forkserver_of(cluster) -> psutil.Process:
    return cluster.heads[1]


def test_the_forkserver_tells(cluster):
    assert spawn(cluster, "--version").wait(30) == 0
    child = waiting(cluster)
    assert isinstance(child, ForkedChild)
    assert child.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.01)
    child.kill()
    assert child.wait(30) == -9


def test_the_warden_tells_when_the_forkserver_is_gone(cluster):
    child = waiting(cluster)
    kill(forkserver_of(cluster))
    assert child.poll() is None
    child.kill()
    assert child.wait(30) == -9


def test_the_warden_may_be_a_moment_late_to_tell(cluster, monkeypatch):
    child, guard = waiting(cluster), cluster.folder.guard
    kill(forkserver_of(cluster))
    monkeypatch.setattr(guard, "exit_code", lambda _pid: None)
    child.kill()
    until(lambda: not child._process.is_running())
    assert child.poll() is None  # it has been reaped, and nobody has said yet how it ended
    monkeypatch.undo()
    assert child.wait(30) == -9


def test_only_what_was_told_after_the_fork_counts(cluster):
    child = waiting(cluster)
    log = cluster.folder.logs / FORKSERVER_LOG
    with log.open("a") as lines:
        lines.write(json.dumps({"ended": child.pid, "code": 3}) + "\n")
    guard, told = cluster.folder.guard, log.stat().st_size
    assert ForkedChild([], child.pid, guard, None, log, told)._told() is None
    assert ForkedChild([], child.pid, guard, None, log, 0)._told() == 3


def test_an_end_that_comes_before_the_answer_to_the_fork_is_seen(cluster, monkeypatch):
    real = runtime.fork

    def slow(*args, **kwargs):
        child = real(*args, **kwargs)
        until(lambda: child.pid in ends(cluster.folder.logs / FORKSERVER_LOG))
        return child

    monkeypatch.setattr(runtime, "fork", slow)
    assert spawn(cluster, "--version").wait(30) == 0


def test_nobody_tells_when_both_are_gone(cluster):
    child = waiting(cluster)
    kill(forkserver_of(cluster), cluster.folder.guard.process)
    child.kill()
    assert child.wait(30) == 255


def test_engines_are_started_when_the_forkserver_is_gone(cluster):
    kill(forkserver_of(cluster))
    kill(cluster.engines[0].process)
    cluster.restore(2)
    assert [engine.process.cmdline()[2] for engine in cluster.engines] == ["ipyparallel.engine"] * 2
    with cluster.client() as client:
        assert client[:].apply_sync(int) == [0, 0]


def test_a_forkserver_that_steps_aside_is_told_with_its_reason(new_cluster, tmp_path, monkeypatch):
    hook = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    (tmp_path / "sitecustomize.py").write_text(hook)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    cluster = new_cluster()
    cluster.bring_up()
    assert cluster.engines[0].process.cmdline()[2] == "ipyparallel.engine"
    until(
        lambda: cluster.unforked.startswith("the forkserver has ended: something that is imported has started threads")
    )


def test_engines_that_were_forked_need_no_reason(cluster):
    assert cluster.unforked == ""


def test_nothing_is_kept_open_for_a_replacement(cluster):
    descriptors = psutil.Process().num_fds()
    for _ in range(3):
        kill(cluster.engines[0].process)
        cluster.restore(1)
    until(lambda: psutil.Process().num_fds() <= descriptors)


def test_ends_are_read_from_where_the_process_began(tmp_path):
    log = tmp_path / "log"
    assert ends(log) == {}
    log.write_text('{"ended": 7, "code": -9}\nsomething else\n{"ended": 8, "co')
    assert ends(log) == {7: -9}
    begun = log.stat().st_size
    with log.open("a") as more:
        more.write('de": 0}\n{"ended": 7, "code": 3}\n')
    assert ends(log) == {7: 3, 8: 0}
    assert ends(log, begun) == {7: 3}
