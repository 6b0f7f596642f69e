"""What a user sees of a run: how it fails, how it ends, and what it leaves."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from waiting import comes_about, until

from pytest_ipcluster.cluster.processes import environment, is_alive

COUNT_STARTS = """
import pytest, pathlib
from pytest_ipcluster.cluster import runtime

@pytest.fixture(scope="session", autouse=True)
def count_starts():
    original = runtime.Runtime.launch
    def counted(self):
        with open("starts", "a") as file:
            file.write("start\\n")
        original(self)
    runtime.Runtime.launch = counted
    yield
    runtime.Runtime.launch = original
"""


def starts(pytester: pytest.Pytester) -> int:
    return len((pytester.path / "starts").read_text().splitlines())


def test_a_cluster_that_cannot_start_errs_each_test_once_and_is_tried_once(run, pytester):
    result = run(
        """
        def test_one(ipcluster_client): pass
        def test_two(ipcluster_view): pass
        def test_three(heart_failure): pass
        def test_four(): pass
        """,
        "--ipcluster-args=-- --nosuch",
        conftest=COUNT_STARTS,
    )
    result.assert_outcomes(errors=3, passed=1)
    assert starts(pytester) == 1
    told = re.findall(
        r"^E +pytest_ipcluster.errors.ClusterStartError: the cluster did not start: .*--nosuch",
        str(result.stdout),
        re.MULTILINE,
    )
    assert len(told) == 3
    result.stdout.fnmatch_lines(
        ["*exit code: ipcluster was still running", "*command: * -- --nosuch", "*try: correct the arguments*"]
    )


def test_a_start_that_takes_too_long_is_ended_at_its_timeout(run):
    result = run("def test_it(ipcluster): pass", "--ipcluster-start-timeout=0.2")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["E*ClusterStartError: *the controller has not answered * s after the start*"])


def test_engines_that_could_not_be_forked_are_told_at_the_end(run, monkeypatch, pytester):
    monkeypatch.setenv("PYTHONPATH", str(pytester.path))
    a_thread = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
    result = run("def test_it(ipcluster): pass", sitecustomize=a_thread)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*the forkserver has ended: something that is imported has started threads*"])


def test_a_session_starts_one_cluster_for_all_shapes_that_differ_in_number(run, pytester):
    result = run(
        """
        import pytest
        def test_two(ipcluster): assert len(ipcluster.engines) == 2
        @pytest.mark.ipcluster(n=1)
        def test_one(ipcluster): assert len(ipcluster.engines) == 1
        def test_two_again(ipcluster): assert len(ipcluster.engines) == 2
        def test_asked_for(request): assert len(request.getfixturevalue("ipcluster").engines) == 2
        """,
        conftest=COUNT_STARTS,
    )
    result.assert_outcomes(passed=4)
    assert starts(pytester) == 1


def test_other_arguments_make_another_cluster(run, pytester):
    result = run(
        """
        import pytest
        def test_plain(ipcluster_client): assert ipcluster_client._task_scheme == "leastload"
        @pytest.mark.ipcluster(n=1, extra_args=["--", "--TaskScheduler.scheme_name=pure"])
        def test_other(ipcluster_client): assert ipcluster_client._task_scheme == "pure"
        """,
        "--ipcluster-n=1",
        conftest=COUNT_STARTS,
    )
    result.assert_outcomes(passed=2)
    assert starts(pytester) == 2


def test_a_failing_expectation_shows_the_hearts_history(run):
    result = run(
        """
        def test_nothing_happens(heart_failure):
            with heart_failure.expect(slot=1, within=0.2):
                heart_failure.resume(0)
        def test_it_is_killed(heart_failure):
            with heart_failure.expect(slot=0, cause="missed heartbeats"):
                heart_failure.kill(0)
        """
    )
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "E * no failure handler fired for slot 1 within 0.2 s",
            "E * what happened to the hearts:",
            "E * fault * slot 0 * resume pid *",
            "E * the cause of the failure of slot 0 was 'killed', not 'missed heartbeats'",
            "E * fault * slot 0 * kill pid *",
            "E * verdict * slot 0 * killed by signal 9*",
            "E * failed * slot 0 * its connection broke and its process is gone*",
        ]
    )


def test_a_handler_that_raises_fails_the_test_with_its_own_traceback_and_only_that_test(run):
    result = run(
        """
        def broken_handler(heart):
            raise LookupError("the program's own mistake")
        def test_it(heart_monitor, heart_failure):
            heart_monitor.add_heart_failure_handler(broken_handler)
            heart_failure.kill(0)
            while not any(event.kind == "failed" for event in heart_failure.events): pass
        def test_failing_by_itself(heart_monitor, heart_failure):
            heart_monitor.add_heart_failure_handler(broken_handler)
            heart_failure.kill(0)
            while not any(event.kind == "failed" for event in heart_failure.events): pass
            assert False, "itself"
        def test_next(ipcluster_client): pass
        """
    )
    result.assert_outcomes(failed=2, passed=1)
    result.stdout.fnmatch_lines(
        [
            "*def broken_handler(heart):",
            '>*raise LookupError("the program\'s own mistake")',
            "E*AssertionError: itself",
            "*heart handler*",
            "*LookupError: the program's own mistake",
        ]
    )


def test_configuration_comes_from_a_fixture_that_users_override(run):
    result = run(
        """
        import pytest
        @pytest.fixture(scope="session")
        def ipcluster_config():
            from traitlets.config import Config
            config = Config()
            config.TaskScheduler.scheme_name = "pure"
            config.IPKernelApp.exec_lines = ["told = 'by config'"]
            return config
        def test_controller(ipcluster_client): assert ipcluster_client._task_scheme == "pure"
        @pytest.mark.ipcluster(n=1)
        def test_engine(ipcluster):
            client = ipcluster.client()
            assert client[0].pull("told", block=True) == "by config"
            client.close()
        """
    )
    result.assert_outcomes(passed=2)


def test_environment_and_ini_reach_the_cluster(run, pytester, monkeypatch):
    monkeypatch.setenv("PYTEST_IPCLUSTER_N", "1")
    pytester.makeini("[pytest]\nipcluster_heart_period = 50\nipcluster_heart_misses = 5\n")
    result = run(
        """
        def test_it(ipcluster, heart_monitor):
            assert (len(ipcluster.engines), heart_monitor.period, heart_monitor.misses) == (1, 50, 5)
        """
    )
    result.assert_outcomes(passed=1)


def test_the_users_profile_is_used_when_it_is_named(run, pytester, given_ports, monkeypatch):
    profile = pytester.path / "ipython" / "profile_lab"
    profile.mkdir(parents=True)
    (profile / "ipcontroller_config.py").write_text("c = get_config()\nc.HeartMonitor.period = 100\n")
    (profile / "ipcluster_config.py").write_text("c = get_config()\nc.Cluster.delay = 0\n")
    monkeypatch.setenv("IPYTHONDIR", str(profile.parent))
    result = run(
        """
        def test_it(ipcluster, heart_failure):
            assert "--profile=lab" in ipcluster.command
            heart_failure.kill(0).wait()
        def test_next(ipcluster_client):
            assert ipcluster_client.ids == [0, 1]
        """,
        "--ipcluster-profile=lab",
        f"--ipcluster-args={' '.join(given_ports)}",
    )
    result.assert_outcomes(passed=2)
    assert sorted(path.name for path in profile.iterdir() if path.is_file()) == [
        "ipcluster_config.py",
        "ipcontroller_config.py",
    ]


def test_every_worker_of_xdist_has_a_cluster_of_its_own(run, pytester):
    result = run(
        """
        import os, pytest
        @pytest.mark.parametrize("i", range(4))
        def test_it(ipcluster, ipcluster_client, heart_failure, i):
            with open(os.environ["PYTEST_XDIST_WORKER"], "a") as file:
                file.write(f"{ipcluster.process.pid}\\\\n")
            heart_failure.kill(1).wait()
        """,
        "-n2",
        "--dist=each",
    )
    result.assert_outcomes(passed=8)
    pids = [set((pytester.path / worker).read_text().split()) for worker in ("gw0", "gw1")]
    assert [len(pid) for pid in pids] == [1, 1]
    assert pids[0] != pids[1]


def test_loading_the_plugin_imports_nothing_heavy_and_starts_nothing(run):
    result = run(
        """
        import sys, threading
        def test_it(pytestconfig):
            heavy = {"zmq", "traitlets", "tornado", "psutil", "IPython", "ipyparallel"}
            assert pytestconfig.pluginmanager.hasplugin("ipcluster")
            assert heavy & set(sys.modules) == set()
            assert [thread.name for thread in threading.enumerate()] == ["MainThread"]
        """
    )
    result.assert_outcomes(passed=1)


# What is started in the background of a shell script ignores Ctrl-C, and so would every process that it starts.
INTERRUPTIBLE = """
import signal, sys, pytest
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(pytest.console_main())
"""

INTERRUPTED = """
import os, signal, sys, time, pathlib

def wait():
    pathlib.Path("there").touch()
    for _ in range(6000):
        time.sleep(0.01)  # in pieces: a signal that comes just before it does not wake it

{test}
"""


@pytest.mark.parametrize(
    "test",
    [
        "def test_it(ipcluster_client): wait()",
        "def test_it(heart_failure): heart_failure.pause(0); wait()",
        "import pytest\n@pytest.fixture\ndef slow(ipcluster):\n    yield\n    wait()\ndef test_it(slow): pass",
    ],
    ids=["in a test", "with a fault", "in a teardown"],
)
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_leaves_nothing(pytester, test, times):
    process = start(pytester, INTERRUPTED.format(test=test))
    until_it_comes_to_this((pytester.path / "there").exists, process)
    interrupt(process, times)
    if times > 1:  # the second may fall into the very act of cleaning up, and then the warden does it
        comes_about(lambda: left_by(process) == [], 6.0)
    assert left_by(process) == []


@pytest.mark.parametrize("sign", ["output", "security", "cards"])
def test_ctrl_c_during_the_start_leaves_nothing(pytester, sign):
    """``sign`` is what exists in the private folder when the interrupt comes: ever later in the start."""
    process = start(pytester, "def test_it(ipcluster_client): pass", "--ipcluster-n=4")
    patterns = {"output": "log/ipcluster.log", "security": "ipython/*/security/*client.json", "cards": "cards/*.json"}
    until_it_comes_to_this(lambda: list(Path(process.temp).glob(f"ipcluster-*/{patterns[sign]}")), process)
    interrupt(process, 1)
    assert left_by(process) == []


def start(pytester: pytest.Pytester, source: str, *arguments: str) -> subprocess.Popen[str]:
    pytester.makepyfile(test_it=source)
    temp = pytester.mkdir("t")
    command = [sys.executable, "-c", INTERRUPTIBLE, "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "TMPDIR": str(temp), "PYTEST_IPCLUSTER_RUN": str(temp)}
    process = subprocess.Popen(
        command, cwd=pytester.path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    process.temp = temp
    return process


def until_it_comes_to_this(reached, process: subprocess.Popen[str]) -> None:
    def has() -> object:
        assert process.poll() is None, process.communicate()[0]
        return reached()

    until(has)


def interrupt(process: subprocess.Popen[str], times: int) -> None:
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05 if times > 1 else 0)  # two keys cannot be pressed at once
    output, _ = process.communicate(timeout=60)
    assert re.search(r"KeyboardInterrupt|no tests ran|Interrupted", output), output


def left_by(process: subprocess.Popen[str]) -> list[str]:
    """Return the processes and the folders that are left of a run."""
    processes = [str(p) for p in psutil.process_iter() if _carries(p, str(process.temp))]
    return processes + [str(path) for path in Path(process.temp).glob("ipcluster-*")]


def _carries(process: psutil.Process, value: str) -> bool:
    return environment(process).get("PYTEST_IPCLUSTER_RUN") == value and is_alive(process)
