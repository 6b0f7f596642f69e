"""Tasks that have no answer: by which ids they come to engines, and that none of them spoils a later test."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from catalogue import SOON, connected, victims
from ipyparallel import interactive
from pauses import stopped
from waiting import until

from pytest_ipcluster import EngineLost
from pytest_ipcluster.cluster import cleaning
from pytest_ipcluster.cluster.cleaning import clean_engines
from pytest_ipcluster.cluster.processes import is_paused, send_signal
from pytest_ipcluster.faults.reach import CONTROL, HUB, OUTPUT, Call, names_at_engines

WAYS: dict[str, Callable[[Any], Any]] = {
    "direct": lambda client: client[:],
    "balanced": lambda client: client.load_balanced_view(),
    "broadcast": lambda client: client.broadcast_view(),
    "coalescing": lambda client: client.broadcast_view(is_coalescing=True),
}
SCHEDULERS = {"direct": "direct scheduler", "balanced": "task scheduler"}
OTHER_SCHEDULER = "broadcast scheduler"


@interactive
def own_name(folder: str) -> str:
    """On an engine: tell, when that is allowed, by which id the task came here."""
    import pathlib
    import time

    from IPython import get_ipython

    while not (pathlib.Path(folder) / "go on").exists():
        time.sleep(0.005)  # a file that another process makes has no event here
    return get_ipython().kernel.get_parent()["header"]["msg_id"]


@interactive
def spoil() -> None:
    """On an engine: leave a name behind."""
    import time

    from IPython import get_ipython

    time.sleep(0.002)  # the work that it takes
    get_ipython().user_ns["spoiled"] = True


@interactive
def is_spoiled() -> bool:
    from IPython import get_ipython

    return "spoiled" in get_ipython().user_ns


# -- names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_tasks_are_known_by_the_ids_under_which_engines_get_them(bench, deadman, tmp_path, way):
    tasks = [WAYS[way](bench.client).apply_async(own_name, str(tmp_path)) for _ in range(2)]
    unanswered = deadman.take_unanswered()
    (tmp_path / "go on").touch()
    answers = [task.get(SOON) for task in tasks]
    names = answers if way == "balanced" else [name for answer in answers for name in answer]
    assert unanswered == set(names)
    assert len(unanswered) == (2 if way == "balanced" else 4)
    until(lambda: deadman.take_unanswered() == set())  # who waits for an answer may wake before it is booked


@pytest.mark.parametrize(
    "call",
    [
        Call("a", "abort_request", CONTROL, 0.0, ("engine",)),
        Call("a", "queue_request", HUB, 0.0),
        Call("a/output", "apply_request", OUTPUT, 0.0, ("engine",)),
    ],
    ids=lambda call: call.lane,
)
def test_what_is_no_task_is_not_among_them(call):
    assert list(names_at_engines(call)) == []


def test_those_of_a_client_that_was_closed_are_told_once(running, deadman, tmp_path):
    own = running.client()
    deadman.guard(own)
    [name] = own[0].apply_async(own_name, str(tmp_path)).msg_ids
    own.close()
    until(lambda: len(deadman._guarded) == 1)  # the thread has let go of it
    assert deadman.take_unanswered() == {name}
    assert deadman.take_unanswered() == set()
    (tmp_path / "go on").touch()


def test_those_that_were_given_up_are_among_them(running, bench, deadman):
    with stopped(running.engines[0].process):
        lost = bench.client[0].apply_async(abs, 1)
        with pytest.raises(EngineLost):
            lost.get(SOON)
        assert deadman.take_unanswered() == set(lost.msg_ids)


# -- a scheduler that is behind ------------------------------------------------------------------------


@pytest.fixture
def behind(running, monkeypatch) -> Iterator[Callable[[str], None]]:
    """Stop a scheduler for the first step of a cleaning that might overtake what has to pass through there."""
    stopped = []

    def behind(way: str) -> None:
        [scheduler] = victims(running, SCHEDULERS.get(way, OTHER_SCHEDULER))
        send_signal(scheduler, signal.SIGSTOP)
        stopped.append(scheduler)
        until(lambda: is_paused(scheduler))
        step = "_abort" if way == "balanced" else "_renew"
        plain = getattr(cleaning._Cleaning, step)

        def overtake(*args, **options):
            done = plain(*args, **options)
            if stopped:
                time.sleep(0.1)  # for what was sent to arrive; if it had not the test would see less, and not fail
                send_signal(stopped.pop(), signal.SIGCONT)
            return done

        monkeypatch.setattr(cleaning._Cleaning, step, overtake)

    yield behind
    for scheduler in stopped:
        send_signal(scheduler, signal.SIGCONT)


@pytest.mark.parametrize("way", WAYS)
def test_what_a_scheduler_had_not_carried_yet_does_not_spoil_a_clean_engine(running, bench, deadman, behind, way):
    behind(way)
    view = WAYS[way](bench.client)
    tasks = [view.apply_async(spoil) for _ in range(200)]
    with connected(running) as new:
        assert not clean_engines(new.client, running.slots, SOON, abandoned=deadman.take_unanswered())
        assert all(task.wait(SOON) for task in tasks)
        assert new.client[:].apply_async(is_spoiled).get(SOON) == [False, False]
