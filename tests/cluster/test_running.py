"""A real cluster that runs: what is known of it, what it may touch, and how it is repaired."""

from __future__ import annotations

import json
import os
import signal
import stat
import time

import psutil
import pytest
from clusters import kill, pids
from jupyter_client.session import Session
from waiting import SOON, until

from pytest_ipcluster import ClusterError, RepairError
from pytest_ipcluster.cluster import liveness
from pytest_ipcluster.cluster import slots as slots_module
from pytest_ipcluster.cluster.autopsy import exit_code
from pytest_ipcluster.cluster.processes import MARK, children, is_alive, send_signal


@pytest.fixture(autouse=True)
def repaired_afterwards(cluster):
    yield
    cluster.restore(2)


def test_engines_are_known_by_slot(cluster):
    assert [engine.slot for engine in cluster.engines] == [0, 1]
    assert [engine.id for engine in cluster.engines] == [0, 1]


def test_the_pid_of_a_slot_is_that_of_the_engine_with_this_id(cluster):
    assert [engine.pid for engine in cluster.engines] == pids(cluster)


def test_an_engines_heart_is_its_uuid(cluster):
    client = cluster.client()
    client[:].execute("ident = get_ipython().kernel.ident").get(30)
    idents = client[:].pull("ident").get(30)
    client.close()
    assert [engine.ident for engine in cluster.engines] == idents
    assert [engine.heart.decode() for engine in cluster.engines] == idents


def test_an_engine_knows_its_nanny(cluster):
    for engine in cluster.engines:
        assert psutil.Process(engine.nanny_pid).ppid() == engine.pid


def test_an_engine_shows_its_log(cluster):
    assert "Completed registration" in cluster.engines[0].log()


#: A call in C that keeps the interpreter to itself: nothing else in the process gets to run Python.
HOLD = "__import__('ctypes').PyDLL(None).sleep(600)"


def test_an_engine_says_whether_it_works(cluster):
    with cluster.client() as client:
        engine = cluster.engines[0]
        until(lambda: engine.state == "idle")
        client[0].apply_async(eval, "any(0 for _ in iter(int, 1))")
        try:
            until(lambda: engine.task)
            until(lambda: engine.state == "busy")  # it computes for ever, and still answers
        finally:
            cluster.replace([0])


def test_an_engine_whose_interpreter_is_held_is_stuck(cluster):
    with cluster.client() as client:
        engine = cluster.engines[0]
        client[0].apply_async(eval, HOLD)
        until(lambda: engine.state == "stuck")  # from the moment on when the task holds it
        assert engine.task
        cluster.replace([0])


def test_an_engine_that_the_hub_has_dropped_is_a_zombie(cluster):
    engine = cluster.engines[1]
    assert cluster.slots.zombies(cluster.engines) == []
    with cluster.slots._runtime.hub() as hub:
        hub.unregister(1)
        assert 1 not in hub.engines(10)
    until(lambda: engine.state == "zombie")
    assert cluster.slots.zombies(cluster.engines) == [engine]
    cluster.restore()
    until(lambda: (engine.state, cluster.engines[1].state) == ("dead", "idle"))


def test_with_a_paused_hub_an_engine_is_what_it_would_be_otherwise(cluster):
    hub = cluster.controller
    send_signal(hub, signal.SIGSTOP)
    try:
        assert cluster.engines[0].state == "idle"
    finally:
        send_signal(hub, signal.SIGCONT)


def test_an_engine_says_whether_it_runs(cluster):
    engine = cluster.engines[0]
    until(lambda: engine.state == "idle")
    send_signal(engine.process, signal.SIGSTOP)
    until(lambda: engine.state == "paused")
    send_signal(engine.process, signal.SIGCONT)
    until(lambda: engine.state == "idle")
    send_signal(engine.process, signal.SIGKILL)
    until(lambda: engine.state == "dead")


def test_the_cluster_owns_its_processes_and_no_others(cluster):
    assert all(cluster.owns(engine.process) for engine in cluster.engines)
    assert not cluster.owns(psutil.Process())
    assert not cluster.owns(psutil.Process(os.getppid()))


def test_everything_of_the_cluster_is_in_sessions_of_its_own(cluster):
    assert cluster.process is not None
    assert os.getsid(cluster.process.pid) == cluster.process.pid != os.getsid(0)


def test_only_the_owner_can_read_what_connects_to_the_cluster(cluster):
    connection = cluster.folder.profile / "security"
    assert stat.S_IMODE(connection.stat().st_mode) == 0o700
    assert stat.S_IMODE(os.stat(cluster.connection_file).st_mode) == 0o600


def test_everything_listens_on_loopback(cluster):
    family = {process.pid for process in cluster.folder.guard.process.children(recursive=True)}
    listening = [
        connection.laddr.ip
        for connection in psutil.net_connections("tcp")
        if connection.pid in family and connection.status == psutil.CONN_LISTEN
    ]
    assert set(listening) == {"127.0.0.1"}


@pytest.mark.usefixtures("cluster")
def test_the_environment_of_the_tests_is_not_marked():
    assert MARK not in os.environ


def test_starting_a_running_cluster_is_refused(cluster):
    with pytest.raises(ClusterError, match="runs already"):
        cluster.start()


def test_the_connection_file_is_the_clients(cluster):
    with open(cluster.connection_file) as file:
        assert "mux" in json.load(file)


def test_a_dead_engine_is_replaced_under_its_id(cluster):
    before = cluster.engines
    kill(before[1].process)
    repairs = cluster.restore()
    assert [(repair.slot, repair.reason) for repair in repairs] == [(1, "the engine was dead")]
    assert cluster.engines[0] == before[0]
    assert cluster.engines[1].ident != before[1].ident
    assert [engine.pid for engine in cluster.engines] == pids(cluster)


def test_all_engines_can_be_replaced_at_once(cluster):
    kill(*(engine.process for engine in cluster.engines))
    assert [repair.slot for repair in cluster.restore()] == [0, 1]
    assert [engine.pid for engine in cluster.engines] == pids(cluster)


def test_an_engine_is_replaced_beside_a_dead_one_which_stays_known_and_dead(cluster):
    dead, other = cluster.engines
    kill(dead.process)
    cluster.replace([1])
    until(lambda: [engine.state for engine in cluster.engines] == ["dead", "idle"])
    assert cluster.engines[0] == dead
    assert cluster.engines[1] != other
    assert [(repair.slot, repair.reason) for repair in cluster.restore()] == [(0, "the engine was dead")]
    assert [engine.pid for engine in cluster.engines] == pids(cluster)


def test_a_slot_that_is_given_up_while_its_engine_is_dead_is_forgotten(cluster):
    cluster.restore(3)
    lost = cluster.engines[2]
    kill(lost.process)
    cluster.slots.wait_dropped(lost.ident, patience=30.0)
    assert cluster.restore(2) == []
    assert len(cluster.engines) == 2


def test_an_engine_that_died_with_its_nanny_is_replaced(cluster):
    engine = cluster.engines[0]
    kill(engine.nanny, engine.process)
    cluster.restore()
    assert [engine.pid for engine in cluster.engines] == pids(cluster)


def test_nobody_looks_for_children_of_an_engine_that_is_gone(cluster, monkeypatch):
    engine, asked = cluster.engines[0], []
    kill(engine.process)
    until(lambda: not engine.process.is_running())
    monkeypatch.setattr(slots_module, "descendants", lambda root: set(asked.append(root) or ()))
    cluster.restore()
    assert asked == []


def test_nothing_is_kept_of_engines_that_were_replaced(cluster):
    roll = cluster.roll_call()

    def kept() -> dict[str, int]:
        roll.missing()
        runtime, slots = cluster._runtime, cluster.slots
        return {
            "Popen objects": len(runtime.children),
            "processes": len(runtime._known),
            "processes of the roll": len(roll._seen),
            "logs": len(slots._starts.logs),
            "proofs": len(slots._proven),
        }

    cluster.replace([0, 1])  # from here on all engines are those that were started by the repair
    before = kept()
    for _ in range(3):
        cluster.replace([0, 1])
        roll.missing()
    assert kept() == before


def test_of_an_engine_that_was_replaced_it_is_known_how_it_ended(cluster):
    cluster.replace([0])
    engine = cluster.engines[0]
    kill(engine.process)
    cluster.restore()
    assert exit_code(engine.process, cluster._runtime, 10.0) == -signal.SIGKILL


def test_an_engine_whose_nanny_is_paused_is_replaced(cluster):
    engine = cluster.engines[0]
    send_signal(engine.nanny, signal.SIGSTOP)
    kill(engine.process)
    cluster.restore()
    assert [engine.pid for engine in cluster.engines] == pids(cluster)


def test_a_paused_engine_is_resumed_and_stays(cluster):
    before = cluster.engines
    send_signal(before[0].process, signal.SIGSTOP)
    until(lambda: before[0].state == "paused")
    assert [(repair.slot, repair.reason) for repair in cluster.restore()] == [(0, "the engine was paused")]
    assert cluster.engines == before
    assert [engine.pid for engine in cluster.engines] == pids(cluster)


def test_an_engine_that_is_dying_is_replaced(cluster):
    send_signal(cluster.engines[1].process, signal.SIGKILL)  # and it takes its time to go
    assert [(repair.slot, repair.reason) for repair in cluster.restore()] == [(1, "the engine was dead")]
    assert [engine.pid for engine in cluster.engines] == pids(cluster)


def test_what_tasks_started_on_an_engine_goes_with_it(cluster):
    client = cluster.client()
    code = "import subprocess; pid = subprocess.Popen(['sleep', '600'], start_new_session=True).pid"
    client[1].execute(code).get(30)
    child = psutil.Process(client[1].pull("pid").get(30))
    client.close()
    cluster.replace([1])
    assert not is_alive(child)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
def test_a_cluster_without_a_part_of_its_controller_cannot_be_repaired(new_cluster, signum):
    with new_cluster() as cluster:
        parts = children(psutil.Process(cluster.slots._runtime.roles().controller.pid))
        send_signal(parts[-1], signum)
        until(lambda: parts[-1].status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_STOPPED))
        with pytest.raises(
            RepairError, match=rf"a part of the controller \(pid {parts[-1].pid}\) (has ended|is paused)"
        ):
            cluster.restore()


def test_an_engine_that_the_hub_has_dropped_is_replaced(cluster):
    zombie = cluster.engines[0]
    with cluster.slots._runtime.hub() as hub:
        hub.unregister(0)
        assert 0 not in hub.engines(10)
    repairs = cluster.restore()
    assert [repair.reason for repair in repairs] == ["the hub had dropped the engine"]
    assert zombie.state == "dead"
    assert [engine.pid for engine in cluster.engines] == pids(cluster)


def test_the_hub_is_waited_for_until_it_has_dropped_an_engine(cluster):
    lost = cluster.engines[1]
    kill(lost.process)
    cluster.slots.wait_dropped(lost.ident, patience=30.0)
    with cluster.slots._runtime.hub() as hub:
        assert lost.ident not in hub.engines(10).values()


def test_a_hub_that_does_not_drop_an_engine_is_not_waited_for_to_the_end(cluster):
    cluster.slots.wait_dropped(cluster.engines[1].ident, patience=0.1)
    assert not cluster.restore()


def test_a_busy_engine_can_be_replaced(cluster):
    client = cluster.client()
    client[1].apply_async(time.sleep, 600)
    before = cluster.engines
    assert [repair.slot for repair in cluster.replace([1])] == [1]
    client.close()
    assert cluster.engines[0] == before[0]
    assert [engine.pid for engine in cluster.engines] == pids(cluster)


def test_a_cluster_grows_and_shrinks(cluster):
    kept = cluster.engines
    cluster.restore(4)
    assert [engine.pid for engine in cluster.engines] == pids(cluster)
    assert cluster.engines[:2] == kept
    surplus = cluster.engines[2:]
    cluster.restore(2)
    assert cluster.engines == kept
    assert [engine.state for engine in surplus] == ["dead", "dead"]
    assert pids(cluster) == [engine.pid for engine in kept]


def test_repairing_a_whole_cluster_does_nothing(cluster):
    before = cluster.engines
    assert cluster.restore() == []
    assert cluster.engines == before


def test_an_engine_on_its_way_out_is_told_to_whom_it_concerns(cluster, monkeypatch):
    told = []
    monkeypatch.setattr(cluster.slots, "leaving", told.append)
    heart = cluster.engines[1].heart
    cluster.replace([1])
    assert told == [heart]


def test_a_new_engine_is_told_to_whom_it_concerns(cluster, monkeypatch):
    told = []
    monkeypatch.setattr(cluster.slots, "arrived", told.append)
    cluster.replace([1])
    assert told == [cluster.engines[1].heart]


def test_an_engine_that_dies_during_a_repair_ends_it_at_once(cluster, monkeypatch):
    start = cluster.slots._starts.start

    def start_and_kill_another(slot):
        kill(cluster.engines[0].process)
        return start(slot)

    monkeypatch.setattr(cluster.slots._starts, "start", start_and_kill_another)
    kill(cluster.engines[1].process)
    with pytest.raises(RepairError, match=r"the engine in slot 0 .* ended during the repair"):
        cluster.restore()


def test_a_repair_that_cannot_work_says_why(cluster, monkeypatch):
    monkeypatch.setattr(cluster.slots._starts, "_arguments", ["--no-such-argument"])
    with pytest.raises(RepairError, match=r"(?s)slot 1 ended with code \d+:.*no-such-argument"):
        cluster.replace([1])


def test_a_question_that_gets_lost_is_asked_again(cluster, monkeypatch):
    plain, lost = Session.send, []

    def send(self, stream, message, *args, **kwargs):
        if not lost and isinstance(message, dict) and message["header"]["msg_type"] == "abort_request":
            lost.append(message)
            return message
        return plain(self, stream, message, *args, **kwargs)

    monkeypatch.setattr(Session, "send", send)
    monkeypatch.setattr(liveness, "_PATIENCE", SOON)
    assert cluster.engines[0].state == "idle"
    assert len(lost) == 1
