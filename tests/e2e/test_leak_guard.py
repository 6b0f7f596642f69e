"""What tests and clusters leave behind is told, with what it is, and the next test does not find it."""

from __future__ import annotations

import re

import pytest

COMMON = """
import os, socket, subprocess, sys, threading, time
import pytest, zmq
from pytest_ipcluster.cluster.processes import find, is_alive

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]

def leave(command):
    import subprocess
    return subprocess.Popen(command).pid

def is_there(pid):
    process = find(pid)
    return process is not None and is_alive(process)

PIDS = {}
"""

LEAVE_A_PROCESS = """
def test_leaves_a_process(ipcluster_client):
    PIDS["left"] = ipcluster_client[1].apply_sync(leave, SLEEP)

def test_after_it(ipcluster):
    assert is_there(PIDS["left"]) is {there}
"""

LEAVE_A_CLIENT = """
def test_leaves_a_client(ipcluster):
    PIDS["client"] = ipcluster.client()
"""

# Nothing of this is a leak of a test.
CLEAN = """
@pytest.fixture(scope="class")
def server(ipcluster):
    client = ipcluster.client()
    pid = client[0].apply_sync(leave, SLEEP)
    yield pid
    client[0].apply_sync(lambda pid: __import__("os").kill(pid, 9), pid)
    client.close()

class TestWiderFixture:
    def test_one(self, server): assert is_there(server)
    def test_two(self, server): assert is_there(server)

def test_first_has_a_client_of_its_own(ipcluster):
    client = ipcluster.client()
    client[:].apply_sync(os.getpid)
    client.close()

def test_ends_the_context_that_clients_share(ipcluster):
    zmq.Context.instance().destroy(linger=0)

def test_then_has_a_client_of_its_own(ipcluster):
    client = ipcluster.client()
    client[:].apply_sync(os.getpid)
    client.close()

def test_uses_everything(ipcluster_view, ipcluster_lbview, heart_failure):
    data = bytes(1_000_000)
    assert ipcluster_view.apply_sync(len, data) == [len(data)] * 2
    assert ipcluster_lbview.map_sync(len, [data] * 4) == [len(data)] * 4

def test_kills(ipcluster_client, heart_failure):
    heart_failure.kill("all").wait_all()

def test_after_the_kill(ipcluster_view):
    ipcluster_view.apply_sync(os.getpid)

def test_process_that_ends(ipcluster_client):
    ipcluster_client[0].apply_sync(leave, ["true"])

@pytest.mark.ipcluster(n=3)
def test_grows(ipcluster_view):
    ipcluster_view.apply_sync(os.getpid)
"""


def warnings_of(result: pytest.RunResult) -> list[str]:
    """Return the tests that were warned about."""
    text = result.stdout.str()
    summary = text[text.find("warnings summary") :]
    return [name for name in re.findall(r"^test_it\.py::(\w+)$", summary, re.MULTILINE) if "Leak" in summary]


def test_a_test_that_leaves_a_process_fails_and_the_process_is_ended(run):
    result = run(COMMON + LEAVE_A_PROCESS.format(there=False))
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_leaves_a_process*",
            "E*LeakError: the test has left behind:",
            "* process pid *: *python* -c import time; time.sleep(600) (its parent: pid * (engine 1); its age: * s)",
            "*--ipcluster-leaks=warn*",
        ]
    )


def test_a_process_that_the_last_test_leaves_is_told_before_the_cluster_ends_it(run):
    result = run(COMMON + "def test_only(ipcluster_client): ipcluster_client[0].apply_sync(leave, SLEEP)")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["E*LeakError: the test has left behind:", "* process pid *"])


def test_a_process_that_hides_is_found(run):
    hidden = """
def hide(command):
    import os, subprocess
    if os.fork() == 0:
        child = subprocess.Popen(command, env={}, start_new_session=True)
        os._exit(0)
    os.wait()

def test_hides_a_process(ipcluster_client):
    ipcluster_client[0].apply_sync(hide, SLEEP)

def test_after_it(ipcluster_client): pass
"""
    result = run(COMMON + hidden)
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["* process pid *time.sleep(600)*(the warden*"])


def test_with_warn_what_is_left_is_a_warning_and_the_process_is_ended_as_well(run):
    result = run(COMMON + LEAVE_A_PROCESS.format(there=False), "--ipcluster-leaks=warn")
    result.assert_outcomes(passed=2, warnings=1)
    result.stdout.fnmatch_lines(["*IpclusterLeakWarning: the test has left behind:", "  * process pid *(engine 1)*"])
    assert warnings_of(result) == ["test_leaves_a_process"]


def test_with_off_nothing_is_looked_at(run):
    source = COMMON + LEAVE_A_PROCESS.format(there=True) + LEAVE_A_CLIENT
    result = run(source, "--ipcluster-leaks=off")
    result.assert_outcomes(passed=3)


def test_a_client_that_is_left_open_is_a_warning_with_its_thread_and_its_sockets(run):
    result = run(COMMON + LEAVE_A_CLIENT + "    pytest.fail()\n\ndef test_after_it(ipcluster): pass")
    result.assert_outcomes(failed=1, passed=1, warnings=1)
    assert warnings_of(result) == ["test_leaves_a_client"]
    result.stdout.fnmatch_lines(
        [
            "*Captured ipcluster teardown*",
            "the test has left behind:",
            "  thread 'Thread-*' (ident *, ipyparallel.*Thread)",
            "  socket 127.0.0.1:* -> 127.0.0.1:*",
            "  descriptor anon_inode:*eventfd*, * of them",
            "*client.close()*",
        ]
    )


def test_a_client_that_is_left_open_fails_where_warnings_are_errors(run):
    result = run(COMMON + LEAVE_A_CLIENT, "-W", "error::pytest_ipcluster.IpclusterLeakWarning")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["E*IpclusterLeakWarning: the test has left behind:"])


def test_what_cleans_up_is_not_told(run):
    result = run(COMMON + CLEAN, "-W", "error", "-W", "ignore::DeprecationWarning")
    result.assert_outcomes(passed=CLEAN.count("def test_"))


def test_a_lost_controllers_children_are_no_leak_of_the_test(run):
    source = """
    def lose_the_controller(ipcluster):
        [controller] = (one.process for one in ipcluster.roll_call().members if one.role == "controller")
        controller.kill()
        controller.wait(30)

    def test_first(ipcluster): lose_the_controller(ipcluster)
    def test_restarted(ipcluster, ipcluster_client): lose_the_controller(ipcluster)
    def test_after(ipcluster_client): pass
    """
    result = run(source, "-W", "error::pytest_ipcluster.IpclusterLeakWarning")
    result.assert_outcomes(failed=2, passed=1)  # for the death alone
    assert "left behind" not in result.stdout.str()


LEFT_OF_THE_CLUSTER = """
import os, subprocess, sys, threading
import pytest
from pytest_ipcluster.cluster.processes import MARK
from pytest_ipcluster.cluster.profile import RunFolder

original = RunFolder.remove

def remove(self):
    original(self)
    self.path.mkdir()
    mark = {**os.environ, MARK: self.mark}
    self.left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env=mark)

RunFolder.remove = remove
"""


@pytest.mark.parametrize("mode", ["fail", "warn"])
def test_processes_and_folders_that_outlive_the_cluster_are_told_and_removed(run, pytester, monkeypatch, mode):
    temporary = pytester.mkdir("t")
    monkeypatch.setenv("TMPDIR", str(temporary))
    result = run("def test_it(ipcluster): pass", f"--ipcluster-leaks={mode}", "-rA", conftest=LEFT_OF_THE_CLUSTER)
    result.assert_outcomes(passed=1, errors=int(mode == "fail"), warnings=int(mode == "warn"))
    told = {"fail": "E*LeakError: the cluster has left behind:", "warn": "*LeakWarning: the cluster has left behind:"}
    result.stdout.fnmatch_lines([told[mode], "* process pid *time.sleep(600)*", f"* folder {temporary}/ipcluster-*"])
    assert list(temporary.glob("ipcluster-*")) == []


def test_where_no_test_is_left_to_fail_the_run_is_told_and_keeps_its_summary(run):
    source = COMMON + LEAVE_A_PROCESS.format(there=False)
    result = run(source, "-x", "-W", "error::pytest_ipcluster.IpclusterLeakWarning", conftest=LEFT_OF_THE_CLUSTER)
    result.assert_outcomes(passed=1, errors=1, warnings=1)
    result.stdout.fnmatch_lines(
        ["E*LeakError: the test has left behind:", "*LeakWarning: the cluster has left behind:"]
    )


@pytest.mark.parametrize(("mode", "code"), [("fail", 1), ("warn", 0)])
def test_a_run_that_ends_early_fails_for_what_the_cluster_has_left(run, mode, code):
    source = """
    import pytest
    def test_one(ipcluster): pass
    def test_two(ipcluster): pytest.exit("enough", 0)
    """
    result = run(source, f"--ipcluster-leaks={mode}", conftest=LEFT_OF_THE_CLUSTER)
    result.stdout.fnmatch_lines(["*LeakWarning: the cluster has left behind:"])
    assert result.ret == code


def test_what_the_plugin_has_opened_and_not_closed_is_told_at_the_end(run):
    conftest = """
    import os
    from pytest_ipcluster.keeper import Keeper

    original = Keeper.provide

    def provide(self, *arguments):
        Keeper.forgotten = os.pipe()
        return original(self, *arguments)

    Keeper.provide = provide
    """
    result = run("def test_it(ipcluster): pass\ndef test_other(ipcluster): pass", conftest=conftest)
    result.assert_outcomes(passed=2, warnings=1)
    result.stdout.fnmatch_lines(["*LeakWarning: the cluster has left behind:", "* descriptor pipe:*, 2 of them"])
    assert warnings_of(result) == ["test_other"]


def test_a_process_of_a_wider_fixture_is_told_when_the_fixtures_have_ended(run):
    source = (
        COMMON
        + """
@pytest.fixture(scope="module")
def server(ipcluster):
    client = ipcluster.client()
    yield client[0].apply_sync(leave, SLEEP)
    client.close()

def test_one(server): assert is_there(server)
def test_two(server): assert is_there(server)
"""
    )
    result = run(source)
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_two*", "E*LeakError: the cluster has left behind:"])
    assert "the test has left behind" not in result.stdout.str()
