"""How a process ended is told by whoever was told, and one death by its cause."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import psutil
import pytest
from clusters import kill
from waiting import until

from pytest_ipcluster.cluster.autopsy import (
    exit_code,
    in_words,
    launcher_told,
    post_mortem,
    sort_out,
    zombie_told,
)
from pytest_ipcluster.cluster.forked import FORKSERVER_LOG
from pytest_ipcluster.cluster.processes import is_alive
from pytest_ipcluster.cluster.rollcall import Member

SHUTTING_DOWN = "[IPClusterStart] WARNING | Controller stopped. Shutting down."
#: A limit; what is measured is what is told, not when.
SOON = 30.0


# -- in words ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "exit code 0"),
        (3, "exit code 3"),
        (-9, "killed by SIGKILL"),
        (-signal.SIGSEGV, "killed by SIGSEGV"),
        (-60, "killed by signal 60"),
        (None, "nobody could tell how"),
    ],
)
def test_a_code_in_words(code, words):
    assert in_words(code) == words


# -- who tells -----------------------------------------------------------------------------------


def stat(state: str, status: int, name: str = "python") -> str:
    return f"17 ({name}) {state} 1 " + "0 " * 47 + f"{status}\n"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (stat("Z", 3 << 8), 3),
        (stat("Z", 9), -9),
        (stat("Z", 11 | 0x80), -11),  # with a core dump
        (stat("Z", 0, name="a) Z 1 (b"), 0),
        (stat("S", 3 << 8), None),
        ("", None),
    ],
)
def test_the_kernel_tells_of_a_zombie(text, code):
    assert zombie_told(text) == code


@pytest.mark.parametrize(
    ("output", "code"),
    [
        ("[x] LocalEngineLauncher python stopped: {'exit_code': 3, 'pid': 17, 'identifier': '0'}", 3),
        ("[x] Controller stopped: {'exit_code': <Negsignal.SIGKILL: -9>, 'pid': 17, 'identifier': 'c'}", -9),
        ("[x] Controller stopped: {'exit_code': -9, 'pid': 17, 'identifier': 'c'}", -9),
        ("[x] engine set stopped 1: {'engines': {'0': {'exit_code': 1, 'pid': 17, 'identifier': '0'}}}", 1),
        ("[x] stopped: {'exit_code': 3, 'pid': 170, 'identifier': '0'}", None),
        ("[x] stopped: {'exit_code': None, 'pid': 17, 'identifier': '0'}", None),
        ("{'exit_code': 1, 'pid': 17, 'identifier': '0'}\n{'exit_code': 2, 'pid': 17, 'identifier': '0'}", 2),
        ("", None),
    ],
)
def test_a_launcher_tells_in_the_output_of_ipcluster(output, code):
    assert launcher_told(output, 17) == code


@pytest.fixture
def runtime(tmp_path):
    """What is asked of a cluster that has no warden."""
    (tmp_path / "output").touch()
    return SimpleNamespace(folder=SimpleNamespace(output=tmp_path / "output", logs=tmp_path, guard=None), children=())


def ended(code: str) -> subprocess.Popen[bytes]:
    """Return a child that has ended and was not reaped."""
    child = subprocess.Popen([sys.executable, "-c", code])
    process = psutil.Process(child.pid)
    until(lambda: not is_alive(process))
    return child


@pytest.mark.parametrize(("code", "told"), [("import os; os._exit(3)", 3), ("import os; os.kill(os.getpid(), 9)", -9)])
def test_of_a_zombie_it_is_known_at_once(runtime, code, told):
    child = ended(code)
    assert exit_code(psutil.Process(child.pid), runtime, 0) == told
    child.wait()


def test_of_our_own_child_it_is_known_after_it_was_reaped(runtime):
    child = ended("import os; os._exit(3)")
    process = psutil.Process(child.pid)
    child.wait()
    assert exit_code(process, runtime, 0) is None
    runtime.children = (child,)
    assert exit_code(process, runtime, 0) == 3


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("output", "stopped: {{'exit_code': 7, 'pid': {pid}, 'identifier': '0'}}"),
        (FORKSERVER_LOG, '{{"ended": {pid}, "code": 7}}\n'),
    ],
    ids=["ipcluster", "forkserver"],
)
def test_who_has_started_it_is_waited_for_and_heard_at_once(runtime, tmp_path, file, line):
    child = ended("")
    process = psutil.Process(child.pid)
    child.wait()
    (tmp_path / file).touch()
    told = []
    asking = threading.Thread(target=lambda: told.append(exit_code(process, runtime, 10 * SOON)), daemon=True)
    asking.start()
    asking.join(0.2)  # most likely it has looked, and waits
    (tmp_path / file).write_text(line.format(pid=child.pid))
    asking.join(SOON)
    assert told == [7]


def test_when_nobody_tells_it_is_not_known(runtime):
    child = ended("")
    process = psutil.Process(child.pid)
    child.wait()
    assert exit_code(process, runtime, 0.05) is None


@pytest.fixture
def autopsy(runtime, monkeypatch):
    """Return a function that has a thread ask how a child ended: its pid, the thread, and what that was told.

    Little patience with everybody, and very much with a forkserver.
    """
    monkeypatch.setattr("pytest_ipcluster.cluster.autopsy._TOLD_WITHIN", 0.05)
    monkeypatch.setattr("pytest_ipcluster.cluster.autopsy._HELD_UP", 10 * SOON)
    roll = SimpleNamespace(runtime=runtime, members=(), strike=lambda _: None)
    runtime.broken = ""

    def begin(role, forkserver):
        runtime.forkserver = forkserver
        child = ended("")
        member = Member(role, psutil.Process(child.pid), slot=0)
        child.wait()
        told = []
        asking = threading.Thread(target=lambda: told.append(post_mortem(roll, [member])[0][0].how), daemon=True)
        asking.start()
        return child.pid, asking, told

    return begin


RUNS, HAS_ENDED = SimpleNamespace(poll=lambda: None), SimpleNamespace(poll=lambda: 0)


def test_a_forkserver_that_is_held_up_is_waited_for(autopsy, tmp_path):
    (tmp_path / FORKSERVER_LOG).touch()
    pid, asking, told = autopsy("engine", RUNS)
    asking.join(0.5)  # many times what others are given
    (tmp_path / FORKSERVER_LOG).write_text(f'{{"ended": {pid}, "code": -9}}\n')
    asking.join(SOON)
    assert told == ["killed by SIGKILL"]


@pytest.mark.parametrize(("role", "forkserver"), [("engine", None), ("engine", HAS_ENDED), ("nanny", RUNS)])
def test_nobody_is_waited_for_who_does_not_tell(autopsy, role, forkserver):
    _, asking, told = autopsy(role, forkserver)
    asking.join(SOON)
    assert told == ["nobody could tell how"]


# -- what took what along ------------------------------------------------------------------------


def members(*roles: str) -> list[Member]:
    """Return members by role; "engine 1" and "nanny 1" are those of slot 1."""
    found = []
    for number, role in enumerate(roles):
        name, _, slot = role.partition(" ") if role[:6] in ("engine", "nanny ") else (role, "", "")
        found.append(Member(name, SimpleNamespace(pid=number), slot=int(slot) if slot else None))
    return found


def sorted_out(*roles: str, output: str = "") -> tuple[list[str], list[str]]:
    dead = members(*roles)
    causes, followers = sort_out(dead, output)
    return [roles[dead.index(one)] for one in causes], [roles[dead.index(one)] for one in followers]


def test_a_nanny_follows_its_engine():
    assert sorted_out("engine 1", "nanny 1") == (["engine 1"], ["nanny 1"])
    assert sorted_out("nanny 1", "engine 1") == (["engine 1"], ["nanny 1"])


def test_a_nanny_does_not_follow_the_engine_of_another():
    assert sorted_out("engine 0", "nanny 1") == (["engine 0", "nanny 1"], [])


def test_deaths_that_have_nothing_to_do_with_each_other_are_each_a_cause():
    assert sorted_out("task scheduler", "engine 0", "engine 1") == (["task scheduler", "engine 0", "engine 1"], [])


def test_everything_follows_the_controller():
    dead = ("ipcluster", "controller", "task scheduler", "engine 0", "nanny 0")
    causes, followers = sorted_out(*dead, output=SHUTTING_DOWN)
    assert causes == ["controller"]
    assert followers == ["ipcluster", "task scheduler", "engine 0", "nanny 0"]


def test_ipcluster_that_ended_without_the_controllers_doing_is_the_cause():
    assert sorted_out("ipcluster", "controller", "engine 0") == (["ipcluster"], ["controller", "engine 0"])


def test_everything_follows_the_warden():
    dead = ("warden", "ipcluster", "controller")
    assert sorted_out(*dead, output=SHUTTING_DOWN) == (["warden"], ["ipcluster", "controller"])


# -- a real cluster ------------------------------------------------------------------------------


@pytest.fixture
def roll(cluster):
    yield cluster.roll_call()
    cluster.slots._runtime.broken = ""
    cluster.restore(2)


def test_a_death_is_told_once_with_its_followers_yet_to_die(roll, cluster):
    engine = cluster.engines[0]
    kill(engine.process)
    (death,), _ = post_mortem(roll, roll.missing())
    assert (death.role, death.slot, death.pid, death.how) == ("engine", 0, engine.pid, "killed by SIGKILL")
    assert "Completed registration" in death.log
    kill(engine.nanny)
    assert roll.missing() == []


def test_a_nanny_that_dies_alone_is_told(roll, cluster):
    nanny = cluster.engines[1].nanny
    kill(nanny)
    (death,), followers = post_mortem(roll, roll.missing())
    assert (death.who, death.how) == (f"the nanny of slot 1 (pid {nanny.pid})", "killed by SIGKILL")
    assert followers == ()
    assert [repair.reason for repair in cluster.restore()] == ["the engine's nanny was dead"]


def test_an_engine_that_we_have_started_is_told_too(roll, cluster):
    kill(cluster.engines[1].process)
    cluster.restore()
    roll.strike(roll.missing())
    os.kill(cluster.engines[1].pid, signal.SIGSEGV)
    until(lambda: cluster.engines[1].state == "dead")
    (death,), _ = post_mortem(roll, roll.missing())
    assert (death.who, death.how) == (f"the engine in slot 1 (pid {cluster.engines[1].pid})", "killed by SIGSEGV")


def test_a_scheduler_that_dies_is_beyond_repair(roll, cluster):
    scheduler = next(member for member in roll.members if member.role == "task scheduler")
    roll.strike([scheduler])  # it is not killed: the cluster is shared
    post_mortem(roll, [scheduler])
    told = f"the task scheduler (pid {scheduler.process.pid}) has ended"
    assert cluster.slots._runtime.lost() == told
