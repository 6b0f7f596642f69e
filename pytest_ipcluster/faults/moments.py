"""The right moment for a fault: when a task runs, as the engine itself tells, and not before."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_ipcluster.cluster.processes import is_alive

if TYPE_CHECKING:
    from pytest_ipcluster.cluster.engines import Engine

__all__ = ["Running", "wait_until_running"]

#: Seconds between two looks at what the engines work on.
_TURN = 0.001


@dataclass(frozen=True, slots=True)
class Running:
    """A task that an engine has begun to work on: the id of its message, and the engine."""

    task: str
    engine: Engine

    @property
    def slot(self) -> int:
        """The slot of the engine."""
        return self.engine.slot


def wait_until_running(
    engines: Callable[[], Iterable[Engine]], result: Any, timeout: float, slots: Sequence[int] | None = None
) -> Running:
    """Return when one of the tasks of ``result``, an AsyncResult, runs on an engine, in one of these slots if given.

    Raises AssertionError when they are all done before that was seen, and after ``timeout`` seconds; it says what the
    engines work on.
    """
    tasks = tuple(result.msg_ids)
    deadline = time.monotonic() + timeout
    while (running := _find(engines(), tasks, slots)) is None:
        done = result.done()
        if done or time.monotonic() >= deadline:
            raise AssertionError(_complaint(tuple(engines()), tasks, "" if done else f" within {timeout:g} s"))
        time.sleep(_TURN)  # memory that another process writes to has no notice
    return running


def _find(engines: Iterable[Engine], tasks: tuple[str, ...], slots: Sequence[int] | None) -> Running | None:
    for engine in engines:
        task = engine.task
        # A broadcast scheduler gives the message for each engine an id of its own, made of the original's.
        if task and task.startswith(tasks) and (slots is None or engine.slot in slots) and is_alive(engine.process):
            return Running(task, engine)
    return None


def _complaint(engines: Sequence[Engine], tasks: Sequence[str], limit: str) -> str:
    why = f"no engine has begun to work on it{limit}" if limit else "it was done before that was seen"
    work = ", ".join(f"slot {engine.slot} works on {engine.task or 'nothing'}" for engine in engines)
    return f"task {', '.join(tasks)}: {why}; {work}"
