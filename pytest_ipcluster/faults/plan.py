"""Random faults, one after the other, by a seed: the same seed does the same to the same engines in the same order.

What is drawn does not depend on what happens, and each fault is taken back before the next one is injected, so that
chance decides nothing that the seed does not. After Jepsen's nemesis, whose last act is always to heal
(https://github.com/jepsen-io/jepsen).
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_ipcluster.faults.kinds import Fault, HeartFailure

__all__ = ["KINDS", "Plan", "Step", "steps"]

#: What a plan can do to an engine.
KINDS = ("kill", "pause", "crash")

#: The ways to crash among which it chooses.
_CRASHES = ("exit", "segfault", "abort")

#: Seconds for the verdict on a fault.
_VERDICT = 30.0

#: Seconds for the last fault to be taken back.
_HEALING = 120.0


@dataclass(frozen=True, slots=True)
class Step:
    """One fault of a plan: so many seconds after the one before is undone, of this kind, in this slot.

    It is undone ``hold`` seconds after its verdict. ``how`` is the way to crash, empty for other kinds.
    """

    number: int
    after: float
    kind: str
    slot: int
    how: str
    hold: float

    def __str__(self) -> str:
        what = f"{self.kind} ({self.how})" if self.how else self.kind
        return f"{self.number}. after {self.after:.3f} s: {what} slot {self.slot}, for {self.hold:.3f} s"


def steps(seed: object, n: int, *, rate: float = 1.0, kinds: Sequence[str] = ("kill", "pause")) -> Iterator[Step]:
    """Yield the steps that this seed means for ``n`` engines, without end; ``rate`` is in faults a second, on average.

    Raises ValueError for an unknown kind, none at all, and a rate that is not more than 0.
    """
    if not kinds or not set(kinds) <= set(KINDS):
        raise ValueError(f"kinds={kinds!r}: expected one or more of {', '.join(map(repr, KINDS))}")
    if not rate > 0:
        raise ValueError(f"rate={rate!r}: expected more than 0 faults a second")
    return _drawn(random.Random(str(seed)), n, rate, kinds)


def _drawn(chance: random.Random, n: int, rate: float, kinds: Sequence[str]) -> Iterator[Step]:
    number = 0
    while True:
        number += 1
        after, hold = chance.expovariate(2 * rate), chance.expovariate(2 * rate)
        kind, slot, how = chance.choice(kinds), chance.randrange(n), chance.choice(_CRASHES)
        yield Step(number, after, kind, slot, how if kind == "crash" else "", hold)


class Plan:
    """A plan that is carried out, in a thread, while its ``with`` block runs; at the end of the block all is healed.

    ``count`` is how many steps it has at most. ``inject`` carries out one of them; ``healed`` waits, when that is
    undone, until the engines are heard again. ``replay`` says how to get the same plan again.
    """

    def __init__(
        self,
        planned: Iterable[Step],
        count: int | None,
        inject: Callable[[Step], Fault],
        healed: Callable[[Fault], object],
        *,
        seed: object,
        replay: str,
    ) -> None:
        self.seed = seed
        self.replay = replay
        self._planned = islice(planned, count)
        self._inject = inject
        self._healed = healed
        self._done: list[tuple[Step, HeartFailure]] = []
        self._errors: list[BaseException] = []
        self._healing = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ipcluster-plan", daemon=True)

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps that have been carried out, each with its verdict."""
        return tuple(step for step, _ in self._done)

    @property
    def failures(self) -> tuple[HeartFailure, ...]:
        """The verdicts on them, in order."""
        return tuple(failure for _, failure in self._done)

    def wait(self, timeout: float = 60.0) -> None:
        """Wait until the last step is done and healed; raise AssertionError after ``timeout`` seconds.

        A plan without ``count`` has no last step.
        """
        if not self._over.wait(timeout):
            raise AssertionError(f"the plan was not over after {timeout:g} s:\n{self}")

    def __enter__(self) -> Plan:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Heal. Raise what went wrong with the plan itself, unless the block has raised by itself."""
        self._healing.set()
        self._thread.join(_HEALING)
        if self._thread.is_alive():
            self._errors.append(TimeoutError(f"the last fault was not taken back within {_HEALING:g} s"))
        if self._errors and error is None:
            raise self._errors[0]

    def __str__(self) -> str:
        done = [f"{step}: {failure.cause}" for step, failure in self._done]
        return "\n".join([f"to replay: {self.replay}", *(done or ["nothing was done"])])

    def _run(self) -> None:
        try:
            for step in self._planned:
                if self._healing.wait(step.after):
                    return
                self._carry_out(step)
        except BaseException as error:  # it belongs to the test
            self._errors.append(error)
        finally:
            self._over.set()

    def _carry_out(self, step: Step) -> None:
        with self._inject(step) as fault:
            self._done.append((step, fault.wait(_VERDICT)))
            self._healing.wait(step.hold)
        self._healed(fault)
