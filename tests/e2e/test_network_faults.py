"""heart_failure on a cluster whose engines have networks of their own, and the three moments that take one."""

from __future__ import annotations

import os
import time

import ipyparallel
import pytest
from waiting import SOON, until

from pytest_ipcluster import EngineLost, RepairError

pytestmark = [pytest.mark.ipcluster(network=True), pytest.mark.usefixtures("as_new")]


def test_an_isolated_engine_is_not_heard_and_works_on_after_the_healing(ipcluster, ipcluster_client, heart_failure):
    with heart_failure.expect(slot=1, cause="missed heartbeats", within=SOON):
        fault = heart_failure.isolate(1)
    task = ipcluster_client[1].apply_async(os.getpid)
    assert ipcluster_client[0].apply_async(os.getpid).get(SOON) == ipcluster.engines[0].pid
    assert not task.ready()
    heart_failure.heal(1)
    assert fault.undone_at is not None
    assert task.get(SOON) == ipcluster.engines[1].pid
    assert ipcluster.lanes.hurt == ()


def test_at_the_end_of_the_block_an_isolated_engine_is_back(ipcluster, ipcluster_client, heart_failure):
    before = ipcluster.engines
    with heart_failure.isolate("all") as fault:
        fault.wait_all(SOON)
    assert ipcluster.engines == before
    assert ipcluster_client[:].apply_async(os.getpid).get(SOON) == [engine.pid for engine in before]


def test_one_channel_alone_is_cut_off_with_its_heart_beating(ipcluster_client, heart_failure):
    with heart_failure.isolate(0, channels="mux") as fault:
        assert fault.sees == ""
        task = ipcluster_client[0].apply_async(os.getpid)
        load_balanced = ipcluster_client.load_balanced_view(targets=[0]).apply_async(len, "abc")
        assert load_balanced.get(SOON) == 3
        assert not task.ready()
    task.get(SOON)
    heart_failure.assert_not_fired()


def test_an_engine_that_the_hub_drops_meanwhile_is_replaced_when_it_is_healed(ipcluster, heart_failure):
    old = ipcluster.engines[1]
    with heart_failure.isolate(1), ipcluster.slots._runtime.hub() as hub:
        hub.unregister(1)
        assert 1 not in hub.engines(SOON)
    assert ipcluster.engines[1].pid != old.pid
    assert "zombie" in [event.kind for event in heart_failure.events]


@pytest.mark.parametrize("hurt", ["isolate", "delay", "mute"])
def test_who_comes_after_an_engine_that_was_hurt_is_not_hurt_by_the_end_of_the_fault(ipcluster, heart_failure, hurt):
    fault = getattr(heart_failure, hurt)(1, *([0.05] if hurt == "delay" else []))
    with heart_failure.kill(1):
        pass
    new = ipcluster.engines[1]
    with heart_failure.isolate(1) as second:
        fault.undo()
        assert second.wait(SOON).heart == new.heart
        assert ipcluster.lanes.hurt == (1,)
    assert ipcluster.engines[1] == new
    about = [event.kind for event in heart_failure.events if event.heart == new.heart]
    assert about.count("unmuted") == 1


@pytest.mark.parametrize("jitter", [0.0, 0.05])
def test_a_delayed_answer_comes_later_than_one_that_is_not(
    ipcluster_client, heart_failure, heart_monitor, monkeypatch, jitter
):
    monkeypatch.setattr(heart_monitor, "misses", 15)  # with a delayed heart it would be twenty; who starves misses some
    with heart_failure.delay(0, 1.0, jitter):
        late = ipcluster_client[0].apply_async(os.getpid)
        ipcluster_client[1].apply_async(os.getpid).get(SOON)
        assert not late.ready()
        late.get(SOON)
    heart_failure.assert_not_fired()


@pytest.mark.parametrize("name", ["reset", "half_open", "cut"])
def test_what_loses_messages_is_over_for_the_next_test(heart_failure, name):
    fault = getattr(heart_failure, name)(1)
    assert (fault.kind, fault.slots, fault.sees) == (name, (1,), "")


# -- the three moments ---------------------------------------------------------------------------------


def test_an_engine_dies_before_its_task_arrives(ipcluster_client, heart_failure, raises_remote):
    heart_failure.isolate(1, channels="mux", direction="down")
    task = ipcluster_client[1].apply_async(time.sleep, 600)
    heart_failure.kill(1)
    with raises_remote((ipyparallel.error.EngineError, EngineLost)):
        task.get(SOON)


def test_an_engine_dies_in_the_middle_of_its_reply(ipcluster, ipcluster_client, heart_failure, raises_remote):
    passed = ipcluster.lanes.state(1)["mux"]["up"]["passed"]
    ipcluster.lanes.rate(1, 200_000, channels="mux", direction="up")
    task = ipcluster_client[1].apply_async(bytes, 5_000_000)
    until(lambda: ipcluster.lanes.state(1)["mux"]["up"]["passed"] > passed + 10_000)
    heart_failure.kill(1)
    with raises_remote((ipyparallel.error.EngineError, EngineLost)):
        task.get(SOON)


def test_an_engine_dies_during_its_registration(ipcluster, heart_failure):
    old = ipcluster.engines[1]
    heart_failure.pause(role="heart monitor of the hub")  # the hub takes nobody in whose heart it has not heard
    with pytest.raises(RepairError, match="the new engines did not register in time"):
        ipcluster.replace([1], timeout=1.0)
    heart_failure.resume(role="heart monitor of the hub")
    ipcluster.restore()
    assert ipcluster.engines[1].pid != old.pid
