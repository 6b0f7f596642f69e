"""Every kind of fault on a real cluster: what it does, what the hearts make of it, and that the next test sees nothing.

These tests run in this very session: what one of them breaks, the next one finds repaired.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import nullcontext

import ipyparallel
import psutil
import pytest
from waiting import SOON, until

from pytest_ipcluster import EngineLost
from pytest_ipcluster.cluster.processes import is_alive, is_paused, wait_gone
from pytest_ipcluster.errors import FaultError
from pytest_ipcluster.hearts.crash import CRASH

#: What each way to crash looks like from outside: the cause, the signal and the exit code.
ENDS = {
    "exit": ("exited", None, 3),
    "segfault": ("killed", signal.SIGSEGV, None),
    "abort": ("killed", signal.SIGABRT, None),
    "oom": ("killed", signal.SIGKILL, None),
}

SCHEDULERS = ["direct scheduler", "task scheduler", "control scheduler", "broadcast scheduler (leaf 0)"]

pytestmark = [
    pytest.mark.skipif(not hasattr(signal, "SIGRTMIN"), reason="a crash takes real-time signals"),
    pytest.mark.usefixtures("as_new"),
]


def role(cluster, name: str) -> psutil.Process:
    [found] = (member.process for member in cluster.roll_call().members if member.role == name)
    return found


@pytest.mark.parametrize("how", sorted(ENDS))
def test_an_idle_engine_crashes_from_inside(heart_failure, how):
    cause, signum, code = ENDS[how]
    with heart_failure.expect(slot=1, cause=cause, within=SOON) as expected:
        fault = heart_failure.crash(1, how)
    assert (fault.kind, fault.sees, fault.signal) == ("crash", cause, signum)
    assert (expected.failure.signal, expected.failure.exit_code) == (signum, code)


@pytest.mark.parametrize("work", [(time.sleep, 600), (eval, "any(_ for _ in iter(int, 1))")], ids=["waits", "computes"])
def test_an_engine_crashes_in_the_middle_of_its_task(ipcluster_client, heart_failure, raises_remote, work):
    task = ipcluster_client[0].apply_async(*work)
    with heart_failure.during(task) as running:
        assert (running.slot, running.task) == (0, task.msg_ids[0])
        with heart_failure.expect(slot=0, cause="exited", within=SOON):
            heart_failure.crash(running.slot)
    with raises_remote((ipyparallel.error.EngineError, EngineLost)):
        task.get(SOON)


def sleep_through_the_first_order(begun: str) -> None:
    """On an engine: do what a signal does that comes just before a sleep, which is not to wake it."""
    obey = signal.getsignal(CRASH)
    signal.signal(CRASH, lambda *_: signal.signal(CRASH, obey))
    open(begun, "x").close()
    time.sleep(600)  # the task whose sleep is to be cut short by the order


def test_an_order_that_came_just_before_a_sleep_is_given_once_more(ipcluster_client, heart_failure, tmp_path):
    begun = tmp_path / "begun"
    ipcluster_client[0].apply_async(sleep_through_the_first_order, str(begun))
    until(begun.exists)
    with heart_failure.expect(slot=0, cause="killed", within=SOON):
        heart_failure.crash(0, "segfault")


def test_a_crash_in_another_way_is_refused(heart_failure):
    with pytest.raises(ValueError, match="how='boredom': expected one of 'exit', 'segfault', 'abort', 'oom'"):
        heart_failure.crash(0, "boredom")


def test_during_a_load_balanced_task_its_engine_is_found(ipcluster, ipcluster_lbview, heart_failure):
    task = ipcluster_lbview.apply_async(time.sleep, 600)
    with heart_failure.during(task) as running:
        assert running.engine in ipcluster.engines
        assert running.engine.task == task.msg_ids[0]
        heart_failure.kill(running.slot).wait(SOON)


def test_during_a_broadcast_task_an_engine_is_found(ipcluster_client, heart_failure):
    task = ipcluster_client.broadcast_view().apply_async(time.sleep, 600)
    with heart_failure.during(task, slot=1) as running:
        assert running.slot == 1
        heart_failure.kill(running.slot).wait(SOON)


def test_during_executed_code_an_engine_is_found(ipcluster_client, heart_failure):
    task = ipcluster_client[1].execute("import time; time.sleep(600)", block=False)
    with heart_failure.during(task) as running:
        assert running.slot == 1


def test_a_task_that_is_over_has_no_middle(ipcluster_client, heart_failure):
    task = ipcluster_client[1].apply_async(len, "abc")
    task.get(SOON)
    told = pytest.raises(AssertionError, match="it was done before that was seen; slot 0 works on nothing")
    with told, heart_failure.during(task):
        pytest.fail("the block was entered")


def test_a_task_that_waits_behind_another_one_does_not_run(ipcluster_client, heart_failure):
    ipcluster_client[1].apply_async(time.sleep, 600)
    task = ipcluster_client[1].apply_async(len, "abc")
    told = pytest.raises(AssertionError, match=r"no engine has begun to work on it within 0\.2 s; .*slot 1 works on ")
    with told, heart_failure.during(task, timeout=0.2):
        pytest.fail("the block was entered")


def test_an_idle_engine_works_on_nothing(ipcluster):
    assert [engine.task for engine in ipcluster.engines] == ["", ""]


def test_at_the_end_of_its_block_a_killed_engine_is_back(ipcluster, ipcluster_client, heart_failure):
    old = ipcluster.engines
    with heart_failure.kill(1) as fault:
        fault.wait(SOON)
    assert fault.undone_at is not None
    assert ipcluster.engines[0] == old[0]
    new = ipcluster.engines[1]
    assert new.pid != old[1].pid
    assert ipcluster_client[1].apply_async(os.getpid).get(SOON) == new.pid
    assert ("undone", 1) in [(event.kind, event.slot) for event in heart_failure.events]


def test_at_the_end_of_its_block_a_killed_pair_is_back(ipcluster, heart_failure):
    with heart_failure.kill("all") as fault:
        fault.wait_all(SOON)
    assert [engine.state for engine in ipcluster.engines] == ["idle", "idle"]


def test_at_the_end_of_its_block_a_paused_engine_goes_on(ipcluster, ipcluster_client, heart_failure):
    with heart_failure.pause(0) as fault:
        fault.wait(SOON)
    assert ipcluster.engines[0].state == "idle"
    fault.undo()  # once more changes nothing
    assert ipcluster_client[0].apply_async(len, "abc").get(SOON) == 3


def drop(cluster, slot: int) -> None:
    """Have the hub drop an engine, as it does with one that has not answered for long."""
    with cluster.slots._runtime.hub() as hub:
        hub.unregister(slot)
        assert slot not in hub.engines(SOON)


@pytest.mark.parametrize("how", ["resume", "undo"])
def test_an_engine_that_was_dropped_during_a_pause_is_replaced_when_it_goes_on(
    ipcluster, ipcluster_client, heart_failure, how
):
    old = ipcluster.engines[1]
    fault = heart_failure.pause(1)
    drop(ipcluster, 1)
    if how == "resume":
        heart_failure.resume(1)
    else:
        fault.undo()
    assert not is_alive(old.process)
    assert ipcluster_client[1].apply_async(os.getpid).get(SOON) == ipcluster.engines[1].pid
    kinds = [event.kind for event in heart_failure.events if event.slot == 1]
    assert kinds.index("fault") < kinds.index("zombie") < len(kinds) - 1 - kinds[::-1].index("undone")


@pytest.mark.parametrize("zombies", ["keep", "fail"])
def test_or_it_is_kept_or_fails_the_test(ipcluster, heart_failure, zombies):
    heart_failure._zombies = zombies
    old = ipcluster.engines[0]
    heart_failure.pause(0)
    drop(ipcluster, 0)
    told = pytest.raises(FaultError, match="the hub has dropped the engines in slots 0, though they live")
    with told if zombies == "fail" else nullcontext():
        heart_failure.resume(0)
    assert old.state == "zombie"


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_paused_scheduler_goes_on_at_the_end_of_the_block(heart_failure, name):
    with heart_failure.pause(role=name) as fault:
        [member] = fault.members
        assert (member.role, fault.engines, fault.slots) == (name, (), ())
        until(lambda: is_paused(member.process))
    until(lambda: not is_paused(member.process))
    with pytest.raises(ValueError, match="the fault 'pause' hit no engine"):
        fault.wait()


def test_a_paused_hub_goes_on_when_it_is_resumed(ipcluster_client, heart_failure):
    fault = heart_failure.pause(role="hub")
    heart_failure.resume(role="hub")
    assert fault.undone_at is not None
    assert [member.role for member in fault.members] == ["controller"]  # the record stays what it was
    assert ipcluster_client.queue_status()


@pytest.mark.parametrize("name", [*SCHEDULERS, "iopub relay", "heart monitor of the hub", "ipcluster"])
def test_a_killed_part_of_the_cluster_fails_no_test_and_is_back_for_the_next(ipcluster, heart_failure, name):
    process = role(ipcluster, name)
    heart_failure.kill(role=name)
    assert not wait_gone([process], SOON)


def test_a_killed_nanny_is_back_for_the_next(ipcluster, heart_failure):
    fault = heart_failure.kill(1, role="nanny")
    assert [member.process.pid for member in fault.members] == [ipcluster.engines[1].nanny_pid]


def test_a_terminated_scheduler_is_no_unasked_death(ipcluster, heart_failure):
    process = role(ipcluster, "task scheduler")
    heart_failure.terminate(role="task scheduler")
    assert not wait_gone([process], SOON)


def test_with_the_controller_all_engines_are_lost(heart_failure):
    heart_failure.kill_controller()
    for slot in (0, 1):
        failure = heart_failure._recorder.wait_for(lambda one, slot=slot: one.slot == slot, SOON)
        assert failure is not None
        assert failure.cause == "controller lost"


def test_another_role_is_refused(heart_failure):
    with pytest.raises(ValueError, match=r"role 'warden': expected one of 'ipcluster', 'controller', .*'nanny'"):
        heart_failure.kill(role="warden")


def test_a_fault_needs_somebody_to_hit(heart_failure):
    with pytest.raises(ValueError, match="which engines"):
        heart_failure.kill()


def test_an_engine_that_is_asked_to_shut_down_has_left(ipcluster, ipcluster_client, heart_failure):
    old = ipcluster.engines[1]
    assert not old.has_left
    with heart_failure.expect(slot=1, cause="left", within=SOON):
        ipcluster_client.shutdown(targets=[1], block=False)
    assert old.has_left


def test_an_engine_that_exits_by_itself_tells_its_code(ipcluster_client, heart_failure):
    with heart_failure.expect(slot=1, cause="exited", within=SOON) as expected:
        ipcluster_client[1].apply_async(os._exit, 17)
    assert expected.failure.exit_code == 17


# -- several faults, one within the other ---------------------------------------------------------------


def test_each_of_two_deadly_faults_undoes_its_own(ipcluster, heart_failure):
    before = [engine.pid for engine in ipcluster.engines]
    with heart_failure.kill(0):
        with heart_failure.kill(1):
            pass
        assert [engine.state for engine in ipcluster.engines[:2]] == ["dead", "idle"]
    assert [engine.state for engine in ipcluster.engines] == ["idle"] * ipcluster.n
    assert not {engine.pid for engine in ipcluster.engines[:2]} & set(before)


def test_two_deadly_faults_can_be_taken_back_in_the_order_they_came(ipcluster, heart_failure):
    first, second = heart_failure.kill(0), heart_failure.kill(1)
    first.undo()
    second.undo()
    assert [engine.state for engine in ipcluster.engines] == ["idle"] * ipcluster.n
