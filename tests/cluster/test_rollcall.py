"""Who belongs to a cluster is known by role, and who is missing by name."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import psutil
import pytest
from clusters import kill, pids
from waiting import until

from pytest_ipcluster.cluster.rollcall import UNKNOWN_CHILD, child_roles, listening_ports, port_roles

CLIENT = {"registration": 1, "notification": 2, "iopub": 10, "mux": 20, "control": 30, "task": 40, "broadcast": 50}
ENGINE = {
    "registration": 1,
    "iopub": 11,
    "mux": 21,
    "control": 31,
    "task": 41,
    "broadcast": [51, 52],
    "hb_ping": 60,
    "hb_pong": 61,
}
PARTS = [
    "iopub relay",
    "direct scheduler",
    "control scheduler",
    "task scheduler",
    "broadcast scheduler",
    "broadcast scheduler (leaf 0)",
    "broadcast scheduler (leaf 1)",
    "heart monitor of the hub",
]


def told(**listening):
    return list(child_roles(listening, port_roles(CLIENT, ENGINE)).values())


def test_a_child_is_told_by_the_ports_of_its_own():
    ports = ({1, 2, 3, 10, 11}, {1, 2, 3, 20, 21}, {1, 2, 3, 30, 31}, {40, 41}, {50, 99}, {51, 98}, {52}, {60, 61})
    assert told(**{f"child {number}": own for number, own in enumerate(ports)}) == PARTS


def test_a_port_that_several_children_have_tells_nothing():
    assert told(one={10, 11, 20}, other={20, 21}) == ["iopub relay", "direct scheduler"]
    assert told(one={10, 11}, other={10, 11}) == [UNKNOWN_CHILD, UNKNOWN_CHILD]


def test_a_child_with_the_ports_of_two_parts_or_of_none_is_just_one_of_the_controllers():
    assert told(one={10, 20}, other={1, 2, 3, 99}) == [UNKNOWN_CHILD, UNKNOWN_CHILD]


def test_parts_that_a_controller_has_not_are_not_missed():
    assert port_roles({}, {"mux": 5}) == {5: "direct scheduler"}


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_listening_ports_are_those_that_a_process_listens_on(address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as listening, socket.socket(family) as bound:
        listening.bind((address, 0))
        listening.listen()
        bound.bind((address, 0))
        me = psutil.Process()
        ports = listening_ports([me])[me]
        assert listening.getsockname()[1] in ports
        assert bound.getsockname()[1] not in ports


def test_a_process_that_has_ended_listens_on_nothing():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = psutil.Process(child.pid)
    child.communicate(b"\n")
    assert listening_ports([process]) == {process: set()}


@pytest.fixture
def roll(cluster):
    yield cluster.roll_call()
    cluster.restore(2)


def by_role(roll, role):
    return [member for member in roll.members if member.role == role]


def test_every_process_of_a_cluster_is_called_once_by_its_role(roll, cluster):
    roles = [(member.role, member.slot) for member in roll.members]
    assert roles[:4] == [("warden", None), ("ipcluster", None), ("forkserver", None), ("controller", None)]
    assert sorted(roles[4:12]) == sorted((part, None) for part in PARTS)
    assert roles[12:] == [("engine", 0), ("nanny", 0), ("engine", 1), ("nanny", 1)]
    family = {cluster.folder.guard.process, *cluster.folder.guard.process.children(recursive=True)}
    assert {member.process for member in roll.members} == family


def test_nobody_is_missing_in_a_whole_cluster(roll):
    assert roll.missing() == []


def test_an_engine_that_replaces_another_is_called_too(roll, cluster):
    before = [member.process for member in roll.members]
    kill(cluster.engines[1].process)
    assert next((member.role, member.slot) for member in roll.missing()) == ("engine", 1)
    cluster.restore()
    assert [member.process for member in by_role(roll, "engine") if member.process not in before] == [
        cluster.engines[1].process
    ]


def test_who_is_struck_off_is_not_missed(roll, cluster):
    engine = cluster.engines[0]
    roll.strike_slot(engine.heart)
    kill(engine.process, engine.nanny)
    assert roll.missing() == []
    assert [member.slot for member in by_role(roll, "engine")] == [1]


def test_the_log_of_an_engine_outlives_its_removal_by_ipcluster(new_cluster):
    cluster = new_cluster()
    cluster.start()
    cluster.wait_for_engines()
    (engine,) = by_role(cluster.roll_call(), "engine")
    client = cluster.client()
    client[0].apply_async(os._exit, 3)
    until(lambda: f"'exit_code': 3, 'pid': {engine.process.pid}" in cluster.log())
    client.close()
    until(lambda: not cluster.engines[0].log_file.exists())
    assert "Completed registration" in engine.log.read_text()


def test_what_was_not_started_for_this_cluster_is_not_called(roll, monkeypatch):
    monkeypatch.setattr(roll.runtime, "owns", lambda _: False)
    assert [member.role for member in type(roll)(roll.runtime, roll.slots).members] == ["warden"]


def test_engines_are_those_that_answer(roll, cluster):
    assert [member.process.pid for member in by_role(roll, "engine")] == pids(cluster)
