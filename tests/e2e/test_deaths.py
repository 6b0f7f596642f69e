"""Whoever dies in a real cluster without a test's asking for it fails that test; the next one finds all well again."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

HELP = """
import os, pathlib, signal
import psutil, pytest
from pytest_ipcluster.cluster.processes import send_signal, wait_gone

def end(cluster, role, signum=signal.SIGKILL, slot=None):
    "End who has this role, and write down who that was."
    found = cluster.roll_call().members
    victim = next(member.process for member in found if (member.role, member.slot) == (role, slot))
    with open("ended", "a") as file:
        print(victim.pid, file=file)
    send_signal(victim, signum)
    wait_gone([victim], 30)

def works(client):
    assert set(client[:].apply_async(os.getpid).get(30)) == {client.load_balanced_view().apply_async(os.getpid).get(30)}
"""

# A test that ends somebody, and the one after it.
PAIR = """
def test_{name}(ipcluster): end(ipcluster, {role!r})
def test_after_{name}(ipcluster_client, heart_failure):
    works(ipcluster_client)
    heart_failure.assert_not_fired()
"""

SCHEDULERS = [
    "iopub relay",
    "direct scheduler",
    "control scheduler",
    "task scheduler",
    "broadcast scheduler",
    "broadcast scheduler (leaf 0)",
    "broadcast scheduler (leaf 1)",
    "heart monitor of the hub",
]


def name_of(role: str) -> str:
    return re.sub(r"\W+", "_", role)


def pairs(*roles: str) -> str:
    return HELP + "".join(PAIR.format(name=name_of(role), role=role) for role in roles)


def told(result: pytest.RunResult, pytester: pytest.Pytester) -> list[str]:
    """Return each death as the errors tell it, with the pids that were ended, in order, as numbers from 1."""
    lines = re.findall(
        r"^(?:E +pytest_ipcluster\S+| +)(?: |$)((?:the|ipcluster) .* died .*)$", str(result.stdout), re.MULTILINE
    )
    pids = (pytester.path / "ended").read_text().split()
    return [re.sub(r"pid (\d+)", lambda match: f"pid {pids.index(match[1]) + 1}", line) for line in lines]


def test_what_no_repair_brings_back_fails_the_test_and_the_next_has_another_cluster(run, pytester):
    many = f"""
def test_many(ipcluster):
    for role in {SCHEDULERS}: end(ipcluster, role)
def test_after_many(ipcluster_client): works(ipcluster_client)
"""
    result = run(pairs("direct scheduler", "controller", "ipcluster", "warden") + many, "--ipcluster-n=1")
    result.assert_outcomes(passed=5, failed=5)
    first, many = told(result, pytester)[:4], told(result, pytester)[4:]
    assert first == [
        "the direct scheduler (pid 1) died during test_it.py::test_direct_scheduler: killed by SIGKILL",
        "the controller (pid 2) died during test_it.py::test_controller: killed by SIGKILL",
        "ipcluster (pid 3) died during test_it.py::test_ipcluster: killed by SIGKILL",
        "the warden (pid 4) died during test_it.py::test_warden: killed by SIGKILL",
    ]
    # In the order of their pids, which begin again from the lowest at times.
    assert sorted(many) == sorted(
        f"the {role} (pid {pid}) died during test_it.py::test_many: killed by SIGKILL"
        for pid, role in enumerate(SCHEDULERS, 5)
    )


def test_an_engine_or_a_nanny_that_dies_undeclared_fails_the_test_and_is_replaced_for_the_next(run, pytester):
    result = run(
        HELP
        + """
def test_engine(ipcluster): end(ipcluster, "engine", slot=0)
def test_after_engine(ipcluster_client): works(ipcluster_client)

def test_nanny(ipcluster): end(ipcluster, "nanny", slot=0)
def test_after_nanny(ipcluster, ipcluster_client):
    works(ipcluster_client)
    assert ipcluster.engines[0].nanny.is_running()

def test_replacement(ipcluster): end(ipcluster, "engine", signal.SIGSEGV, slot=0)
def test_after_replacement(ipcluster_client): works(ipcluster_client)

def test_stopped_by_itself(ipcluster):
    ipcluster.stop()
    ipcluster.start()
    ipcluster.wait_for_engines()
def test_after_restart(ipcluster): end(ipcluster, "engine", slot=0)
""",
        "--ipcluster-n=1",
    )
    result.assert_outcomes(passed=4, failed=4)
    assert told(result, pytester) == [
        "the engine in slot 0 (pid 1) died during test_it.py::test_engine: killed by SIGKILL",
        "the nanny of slot 0 (pid 2) died during test_it.py::test_nanny: killed by SIGKILL",
        "the engine in slot 0 (pid 3) died during test_it.py::test_replacement: killed by SIGSEGV",
        "the engine in slot 0 (pid 4) died during test_it.py::test_after_restart: killed by SIGKILL",
    ]
    result.stdout.fnmatch_lines(
        ["*the last lines it wrote:", "*| * Completed registration with id 0", "*try: heart_failure.kill*"]
    )


def test_what_a_test_asks_for_may_die(run):
    result = run(
        HELP
        + """
def test_killed(heart_failure): heart_failure.kill(0)
def test_terminated(heart_failure): heart_failure.terminate(0)
def test_paused(heart_failure): heart_failure.pause(0)
def test_all(heart_failure): heart_failure.kill("all").wait_all(30)
def test_expected_exit(ipcluster_client, heart_failure):
    with heart_failure.expect(0, cause="exited", within=30):
        ipcluster_client[0].apply_async(os._exit, 3)
def test_expected_kill(ipcluster, heart_failure):
    with heart_failure.expect(within=30):
        os.kill(ipcluster.engines[1].pid, signal.SIGKILL)
def test_replaced(ipcluster): ipcluster.replace([0])
@pytest.mark.ipcluster(n=1)
def test_shrunk(ipcluster): pass
@pytest.mark.ipcluster(n=1, extra_args=["--", "--TaskScheduler.scheme_name=pure"])
def test_another_cluster(ipcluster_client): works(ipcluster_client)
def test_stopped(ipcluster): pass
"""
    )
    result.assert_outcomes(passed=10)


def test_who_is_killed_by_a_tests_last_act_has_died_in_that_test(run):
    """It takes a process a moment to die; whoever ends the remains of the engine comes after that."""
    result = run(
        HELP
        + """
def test_last(ipcluster): os.kill(ipcluster.engines[0].pid, signal.SIGKILL)
def test_after(ipcluster_client): works(ipcluster_client)
""",
        "--ipcluster-n=1",
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*the engine in slot 0 (pid *) died during test_it.py::test_last: killed by SIGKILL"])


#: Runs for half a minute at most, and leaves one processor to nobody who must wait for his turn.
BURNER = """
import os, time
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
end = time.monotonic() + 30
while time.monotonic() < end:
    pass
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux has a class of processes that run when nobody else wants to"
)
def test_who_is_long_in_dying_has_died_in_the_test_that_killed_it(run):
    """On a full machine it takes seconds, in which the next test would begin."""
    with subprocess.Popen([sys.executable, "-c", BURNER]) as burner:
        result = run(
            HELP
            + """
def test_last(ipcluster):
    pid = ipcluster.engines[0].pid
    for thread in map(int, os.listdir(f"/proc/{pid}/task")):
        os.sched_setaffinity(thread, {min(os.sched_getaffinity(0))})
        os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
    os.kill(pid, signal.SIGKILL)
def test_after(ipcluster_client): works(ipcluster_client)
""",
            "--ipcluster-n=1",
        )
        burner.kill()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*the engine in slot 0 (pid *) died during test_it.py::test_last: killed by SIGKILL"])


def test_what_a_test_does_not_ask_for_may_not(run):
    result = run(
        HELP
        + """
def test_exit(ipcluster, ipcluster_client, raises_remote):
    from ipyparallel.error import EngineError
    from pytest_ipcluster import EngineLost
    with raises_remote((EngineError, EngineLost)):  # whoever is first to tell
        ipcluster_client[0].apply_async(os._exit, 3).get(30)
    wait_gone([ipcluster.engines[0].process], 30)  # its nanny knows when its pipe is closed, a moment earlier
def test_another_than_was_asked_for(ipcluster, ipcluster_client, heart_failure):
    heart_failure.kill(0)
    end(ipcluster, "engine", slot=1)
def test_missed_heartbeats_are_no_death(ipcluster, ipcluster_client, heart_failure):
    with heart_failure.expect(0, cause="missed heartbeats", within=30):
        heart_failure.pause(0)
    end(ipcluster, "engine", slot=0)
def test_failing_by_itself(ipcluster, ipcluster_client):
    end(ipcluster, "engine", slot=0)
    assert False, "itself"
def test_after_all(ipcluster_client): pass
"""
    )
    result.assert_outcomes(passed=1, failed=4)
    result.stdout.fnmatch_lines(
        [
            "E *the engine in slot 0 (pid *) died during test_it.py::test_exit: exit code 3",
            "E *the engine in slot 1 (pid *) died during *::test_another_than_was_asked_for: killed by SIGKILL",
            "E *the engine in slot 0 (pid *) died during *::test_missed_heartbeats_are_no_death: killed by SIGKILL",
            "E *AssertionError: itself",
            "*- Captured ipcluster call -*",
            "the engine in slot 0 (pid *) died during test_it.py::test_failing_by_itself: killed by SIGKILL",
        ]
    )


def test_each_worker_of_xdist_watches_its_own_cluster(run):
    result = run(
        HELP + "def test_it(ipcluster): end(ipcluster, 'engine', slot=0)\ndef test_next(ipcluster_client): pass",
        "-n2",
        "--dist=each",
        "--ipcluster-n=1",
    )
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(["*the engine in slot 0 (pid *) died during test_it.py::test_it: killed by SIGKILL"])
