"""How things stand when a time limit is almost up: what waits where, how everybody is, and where each Python is."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pytest_ipcluster.cluster.stacks import read_stacks
from pytest_ipcluster.errors import ClusterError
from pytest_ipcluster.faults.reach import BALANCED, DIRECT

if TYPE_CHECKING:
    from pytest_ipcluster.cluster.hub import Unfinished
    from pytest_ipcluster.faults.lookout import Lookout
    from pytest_ipcluster.faults.reach import Call
    from pytest_ipcluster.network.lanes import Where

__all__ = ["overdue_report"]

#: Seconds for the hub to say which task is where, and for all engines to write down their stacks.
_ANSWERS, _WRITES = 0.3, 0.5

#: How many calls are listed, and how many lines of each stack: what comes after them is the engine's own loop.
_LISTED, _FRAMES = 20, 15


def overdue_report(calls: Sequence[Call], lookout: Lookout) -> str:
    """Return the report as lines of text; it takes less than a second."""
    lines = ["what waits:", *_waiting(calls, lookout)]
    lines += ["who is how:", *(f"  {line}" for line in lookout.states())]
    if (lanes := lookout.roll.runtime.lanes) is not None and lanes.hurt:
        lines += [f"whose network is hurt: {', '.join(_owner(slot) for slot in lanes.hurt)}"]
    for engine, stack in read_stacks(lookout.roll, _WRITES):
        lines += [f"where the engine in slot {engine.slot} (pid {engine.pid}) is:"]
        lines += [f"  {line}" for line in _innermost(stack)]
    return "\n".join(lines)


def _owner(slot: Where) -> str:
    return f"the engine in slot {slot}" if isinstance(slot, int) else "clients by lane"


def _innermost(stack: str) -> list[str]:
    """Return the innermost calls of the thread that was asked, which is the one that runs tasks."""
    lines = stack.splitlines()
    begin = next((number for number, line in enumerate(lines) if line.startswith("Current thread")), 0)
    return lines[begin : begin + _FRAMES]


def _waiting(calls: Sequence[Call], lookout: Lookout) -> Iterable[str]:
    places, unfinished = lookout.look().places, _unfinished(lookout)
    for call in calls[:_LISTED]:
        slots = [places[ident].slot for ident in call.engines if ident in places]
        aimed = f" to {slots}" if slots else ""
        age = time.monotonic() - call.sent
        yield f"  {call.lane}: {call.what}{aimed}, sent {age:.2f} s ago; {_where(call, unfinished)}"
    if len(calls) > _LISTED:
        yield f"  and {len(calls) - _LISTED} more"


def _unfinished(lookout: Lookout) -> Unfinished | None:
    try:
        with lookout.roll.runtime.hub() as hub:
            return hub.unfinished(_ANSWERS, direct=True)
    except ClusterError:  # it does not answer, or has ended
        return None


def _where(call: Call, unfinished: Unfinished | None) -> str:
    """Say where the hub has this call."""
    if call.lane not in (DIRECT, BALANCED):
        return "which is not known to the hub"
    if unfinished is None:
        return "the hub does not answer"
    if call.id in unfinished.waiting:
        return "it waits for an engine"
    if call.id in unfinished.direct:
        return "the hub has it at its engine"
    number = next((number for number, tasks in unfinished.given.items() if call.id in tasks), None)
    return "the hub does not know it, or has seen its end" if number is None else f"the hub has it at engine {number}"
