"""What is done to a run to end it, and when: each waits for its moment, makes sure of it, and acts."""

from __future__ import annotations

import signal
from collections.abc import Callable

from inner import Run

from pytest_ipcluster.cluster.processes import is_alive


def by_itself(run: Run) -> None:
    """Only see the cluster come up: the run ends without our doing."""
    run.up()


def not_up(run: Run) -> None:
    """Only see the run end: its cluster never comes up."""


def nothing_started(run: Run) -> None:
    """See that the run ends without having started anything."""
    assert run.hear("finish") == {"word": "finish", "children": [], "temp": []}


def in_a_test(run: Run) -> None:
    """Wait until the run is in the body of its test."""
    run.up()
    run.hear("here")


def send(signum: int) -> Callable[[Run], None]:
    """Send pytest a signal in the middle of a test."""

    def act(run: Run) -> None:
        in_a_test(run)
        run.send(signum)

    return act


def ctrl_c(run: Run) -> None:
    """Press Ctrl-C in the middle of a test: the terminal sends the signal to pytest's whole process group."""
    in_a_test(run)
    run.send_group(signal.SIGINT)


def ctrl_c_twice(run: Run) -> None:
    """Press it again in the teardown of the session."""
    ctrl_c(run)
    run.hear("in the teardown")
    run.send_group(signal.SIGINT)


def ctrl_c_thrice(run: Run) -> None:
    """Press it once more while the cluster stops."""
    ctrl_c_twice(run)
    in_the_stop(run)
    run.send_group(signal.SIGINT)


def kill_group(run: Run) -> None:
    """Kill pytest and whatever is in its process group."""
    in_a_test(run)
    run.send_group(signal.SIGKILL)


def in_the_start(pattern: str, signum: int) -> Callable[[Run], None]:
    """Send pytest a signal as soon as this file exists, when its cluster is not up yet."""

    def act(run: Run) -> None:
        run.until_file(pattern)
        assert run.main.children(), "nothing was being started"
        run.send_group(signum)
        run.look()

    return act


def kill_in_the_stop(run: Run) -> None:
    """Kill pytest when the first process of the cluster has been stopped."""
    run.up()
    in_the_stop(run)
    run.send(signal.SIGKILL)


def in_the_stop(run: Run) -> None:
    """Wait until the run is in the middle of its cluster's stop: the engines are gone, and ipcluster may be."""
    run.hear("in the stop")
    run.until(lambda: not any(map(is_alive, run.engines)), "the engines had ended")
    assert run.cluster(), "all was stopped"


def kill_ipcluster(run: Run) -> None:
    """Kill ipcluster, and let the run end by itself."""
    in_a_test(run)
    run.kill(run.ipclusters[0])
    run.go()


def kill_hub(run: Run) -> None:
    """Kill the controller, and let the run end by itself."""
    in_a_test(run)
    run.kill(run.hubs()[0])
    run.go()


def kill_warden(run: Run) -> None:
    """Kill the process that would clean up after pytest, and let the run end by itself."""
    in_a_test(run)
    run.kill(run.warden())
    run.go()


def kill_forkserver(run: Run) -> None:
    """Kill the process that has forked the controller and the engines, and let the run end by itself."""
    in_a_test(run)
    run.kill(run.forkserver())
    run.go()


def kill_with_busy_engines(run: Run) -> None:
    """Kill pytest while every engine is in a task that never ends."""
    run.up()
    for _ in run.engines:
        run.hear("busy")
    run.send(signal.SIGKILL)


def kill_with_frozen_tree(run: Run) -> None:
    """Stop every process of the cluster by SIGSTOP, the warden excepted, and kill pytest."""
    in_a_test(run)
    run.freeze(run.cluster() - {run.ipclusters[0].parent()})
    run.send(signal.SIGKILL)


def kill_with_fork(run: Run) -> None:
    """Kill pytest when a child that it has forked holds every descriptor that it holds itself."""
    run.up()
    child = run.note(run.hear("forked")["child"])
    assert run.descriptors(run.main) <= run.descriptors(child)
    run.spare(child)
    run.send(signal.SIGKILL)


def fork_and_go(run: Run) -> None:
    """Let the run end by itself while a child that it has forked lives on."""
    run.up()
    run.spare(run.note(run.hear("forked")["child"]))
    run.go()


def kill_with_escapee(run: Run) -> None:
    """Kill pytest when a task has started a process that is not its engine's child, and carries no mark."""
    run.up()
    escapee = run.note(run.hear("escaped")["pid"])
    assert escapee.environ() == {}
    assert not set(escapee.parents()) & set(run.cluster())
    run.send(signal.SIGKILL)


def become_another_program(run: Run) -> None:
    """See pytest become another program that goes on."""
    run.up()
    run.hear("another")
    run.spare(run.main)


def workers_by_themselves(run: Run) -> None:
    """Only see the clusters of two workers of pytest-xdist come up: the run ends without our doing."""
    run.up(clusters=2)


def ctrl_c_in_workers(run: Run) -> None:
    """Press Ctrl-C in the middle of the tests of two workers of pytest-xdist: it goes to the workers, too."""
    in_two_tests(run)
    run.send_group(signal.SIGINT)


def kill_above_workers(run: Run) -> None:
    """Kill pytest-xdist's main process in the middle of the tests of two workers.

    The workers themselves do not count as left: it takes execnet five seconds to end them.
    """
    in_two_tests(run)
    workers = run.main.children()
    assert len(workers) == 2
    for worker in workers:
        run.spare(worker)
    run.send(signal.SIGKILL)


def in_two_tests(run: Run) -> None:
    """Wait until two workers of pytest-xdist are in the bodies of their tests."""
    run.up(clusters=2)
    run.hear("here")
    run.hear("here")
