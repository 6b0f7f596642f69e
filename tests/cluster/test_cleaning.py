"""Which engines count as clean. The clients here are made up, for what must be shown are answers that do not come."""

from __future__ import annotations

import time

import pytest

from pytest_ipcluster.cluster.cleaning import clean_engines

FOREVER = 1e9


class Task:
    """A task that answers after so many tries, and whose output may get lost."""

    def __init__(self, *, ready: bool = True, successful: bool = True, heard: bool = True) -> None:
        self._ready, self._successful, self._heard = ready, successful, heard

    def wait(self, timeout: float) -> None:
        if not self._ready:
            time.sleep(min(timeout, 0.01))  # the real one waits for an answer that does not come

    def ready(self) -> bool:
        return self._ready

    def successful(self) -> bool:
        return self._successful

    def wait_for_output(self, timeout: float) -> bool:
        assert 0 <= timeout < FOREVER
        return self._heard


class Client:
    """A client of one engine, which does these tasks one after the other."""

    ids = (7,)

    def __init__(self, *tasks: Task) -> None:
        self._tasks = list(tasks)
        self.aborted: list[int] = []

    def __getitem__(self, number: int) -> Client:
        assert number == 7
        return self

    def apply_async(self, function: object) -> Task:
        assert callable(function)
        return self._tasks.pop(0) if len(self._tasks) > 1 else self._tasks[0]

    def abort(self, *, targets: int, block: bool) -> None:
        assert block is False
        self.aborted.append(targets)


def test_an_engine_that_answers_is_clean():
    client = Client(Task())
    assert clean_engines(client, 1) == []
    assert client.aborted == []


def test_an_engine_that_does_not_answer_is_told_to_abort_and_is_stuck():
    client = Client(Task(ready=False))
    assert clean_engines(client, 0.05) == [7]
    assert client.aborted == [7]


def test_a_task_that_was_aborted_with_the_queue_is_sent_again():
    assert clean_engines(Client(Task(successful=False), Task()), 1) == []


def test_an_engine_that_fails_every_task_is_stuck():
    assert clean_engines(Client(Task(successful=False)), 1) == [7]


@pytest.mark.parametrize("lost", [1, 3])
def test_output_that_was_lost_before_the_client_could_hear_it_is_asked_for_again(lost):
    assert clean_engines(Client(*[Task(heard=False)] * lost, Task()), 10) == []


def test_an_engine_that_is_never_heard_is_stuck():
    assert clean_engines(Client(Task(heard=False)), 0.05) == [7]
