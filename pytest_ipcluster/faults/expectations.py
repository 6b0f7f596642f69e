"""What a test expects of the failure handlers, and the words that tell it otherwise. Nothing here waits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_ipcluster.faults.kinds import CAUSES, HeartFailure

__all__ = ["Expectation", "check_cause"]


def check_cause(cause: str | None) -> None:
    """Raise ValueError for a cause that no failure can have."""
    if cause is not None and cause not in CAUSES:
        raise ValueError(f"cause {cause!r}: expected one of {', '.join(map(repr, CAUSES))}")


@dataclass(slots=True)
class Expectation:
    """One failure, of this slot (any, when None), for this cause (any, when None), within so many seconds of ``since``.

    ``since`` is on the clock of ``time.monotonic()``. ``failure`` is what came, after the ``expect`` block has
    ended.
    """

    slot: int | None
    cause: str | None
    within: float
    since: float
    failure: HeartFailure | None = None

    @property
    def who(self) -> str:
        """The slot in words."""
        return "any slot" if self.slot is None else f"slot {self.slot}"

    def concerns(self, failure: HeartFailure) -> bool:
        """Tell whether this failure is of the slot and the time that are meant."""
        return failure.verdict_at >= self.since and self.slot in (None, failure.slot)

    def complaint(self, failures: Sequence[HeartFailure]) -> str:
        """Say what is wrong with these failures; empty when exactly the expected one is among them."""
        mine = [failure for failure in failures if self.concerns(failure)]
        if not mine:
            return f"no failure handler fired for {self.who} within {self.within:g} s"
        if len(mine) > 1:
            return f"the failure handlers fired {len(mine)} times for {self.who}, not once"
        late = mine[0].verdict_at - self.since
        if late > self.within:
            return f"the failure handlers for {self.who} fired after {late:.3f} s, not within {self.within:g} s"
        if self.cause is not None and mine[0].cause != self.cause:
            return f"the cause of the failure of {self.who} was {mine[0].cause!r}, not {self.cause!r}"
        return ""
