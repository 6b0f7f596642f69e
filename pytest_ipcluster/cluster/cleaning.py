"""Making engines as new for the next test: nothing queued, the first namespace again, ready for work."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import TYPE_CHECKING

from pytest_ipcluster.cluster.renewal import renew

if TYPE_CHECKING:
    from ipyparallel import AsyncResult, Client, DirectView

__all__ = ["clean_engines"]

#: The part of the patience after which an engine that has not answered is told to drop what is queued.
_HINT_AFTER = 0.25

#: Seconds to wait for the output of a task before another one is sent to be heard.
_HEARD_AFTER = 0.1


def clean_engines(client: Client, patience: float) -> list[int]:
    """Renew every engine; return the ids of those that have not come through within ``patience`` seconds.

    These are busy with something that an earlier test left. An engine that does not answer soon is told to abort
    its queue; not before, for ipyparallel's engine does that on a thread that has to share the queue with the one
    that works.
    """
    begun = time.monotonic()
    deadline = begun + patience
    tasks = {number: client[number].apply_async(renew) for number in client.ids}
    _wait(tasks.values(), begun + patience * _HINT_AFTER)
    for number, task in tasks.items():
        if not task.ready():
            client.abort(targets=number, block=False)
    _wait(tasks.values(), deadline)
    aborted = [number for number, task in tasks.items() if task.ready() and not task.successful()]
    tasks.update({number: client[number].apply_async(renew) for number in aborted})
    _wait(tasks.values(), deadline)
    return [
        number for number, task in tasks.items() if not (_succeeded(task) and _heard(client[number], task, deadline))
    ]


def _wait(tasks: Collection[AsyncResult], deadline: float) -> None:
    for task in tasks:
        task.wait(max(0.0, deadline - time.monotonic()))


def _succeeded(task: AsyncResult) -> bool:
    return bool(task.ready() and task.successful())


def _heard(view: DirectView, task: AsyncResult, deadline: float) -> bool:
    """Wait until the client hears what this engine publishes.

    The subscription of a new client takes a moment to reach every engine. Until then the output of a task is lost, and
    ``execute(block=True)`` waits for it for ever.
    """
    while not task.wait_for_output(_HEARD_AFTER):
        if time.monotonic() > deadline:
            return False
        task = view.apply_async(_nothing)
        task.wait(max(0.0, deadline - time.monotonic()))
    return True


def _nothing() -> None:
    """Make the engine publish that it is busy, and that it is idle again."""
