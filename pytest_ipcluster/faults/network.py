"""Faults of an engine's network, and of its heartbeat alone: the process itself is never touched."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from pytest_ipcluster.errors import FaultError
from pytest_ipcluster.faults.kinds import MISSED, Fault, Kind
from pytest_ipcluster.faults.targets import Target
from pytest_ipcluster.faults.verdicts import Verdicts

if TYPE_CHECKING:
    from pytest_ipcluster.cluster.engines import Engine
    from pytest_ipcluster.faults.kinds import Victim
    from pytest_ipcluster.network.lanes import Lanes

__all__ = ["NETWORK", "NetworkFaults"]

#: What :meth:`NetworkFaults.heal` takes back.
NETWORK = ("isolate", "delay", "reset", "half_open", "cut")

#: Which connections of an engine: by ipyparallel's names for its channels, see ``Lanes``; None is all of them.
Channels = str | Iterable[str] | None


class NetworkFaults(Verdicts, ABC):
    """The faults that need no signal. All but ``mute`` need a cluster with ``network=True``.

    ``channels`` and ``direction`` are as for :class:`Lanes`; left out they mean all and both.
    """

    #: Chooses how much each message is delayed.
    _chance: random.Random

    def mute(self, slot: Target) -> Fault:
        """Have the heart monitor hear these engines no more; they work, and the controller hears them."""
        return self._hit(Kind("mute", MISSED, self._mute, self._hear_again, lasting=True), slot, "engine")

    def unmute(self, slot: Target) -> Fault:
        """Hear muted engines again; their hearts soon return."""
        return self._take_back(Kind("unmute", "", self._speak), slot, ("mute",))

    def isolate(self, slot: Target, *, channels: Channels = None, direction: str | None = None) -> Fault:
        """Cut engines off: what is sent waits, and arrives after the healing, as in a partition of the network.

        With all channels their hearts fall silent, too. With some of them, or one direction, only these are cut.
        """
        whole = channels is None and direction is None
        lanes = self._lanes()

        def inject(victim: Victim) -> None:
            lanes.freeze(_slot(victim), channels=channels, direction=direction)
            if whole:
                self._mute(victim)

        kind = Kind("isolate", MISSED if whole else "", inject, self._reconnect, lasting=True)
        return self._hit(kind, slot, "engine")

    def delay(
        self,
        slot: Target,
        seconds: float,
        jitter: float = 0.0,
        *,
        channels: Channels = None,
        direction: str | None = None,
    ) -> Fault:
        """Have everything arrive so many seconds later, give or take the jitter, in order."""
        seed, lanes = self._chance.randrange(2**32), self._lanes()
        hurt = partial(lanes.delay, seconds=seconds, jitter=jitter, channels=channels, direction=direction, seed=seed)
        return self._hurt("delay", slot, hurt, lasting=True)

    def reset(self, slot: Target, *, channels: Channels = None) -> Fault:
        """Break the connections that there are, for both ends; they are made again. What is on its way is lost."""
        lanes = self._lanes()
        return self._hurt("reset", slot, partial(lanes.reset, channels=channels))

    def half_open(self, slot: Target, *, channels: Channels = None, direction: str = "down") -> Fault:
        """Break connections for the engine only, or with ``direction="up"`` for the controller only."""
        lanes = self._lanes()
        return self._hurt("half_open", slot, partial(lanes.half_open, channels=channels, direction=direction))

    def cut(self, slot: Target, after: int = 0, *, channels: Channels = None, direction: str | None = None) -> Fault:
        """Break each connection, once, when exactly so many bytes more have passed: in the middle of a message."""
        lanes = self._lanes()
        return self._hurt("cut", slot, partial(lanes.cut, after=after, channels=channels, direction=direction))

    def heal(self, slot: Target) -> Fault:
        """Undo everything that was done to the networks of these engines.

        An engine that the hub has dropped meanwhile is treated as after a pause.
        """
        self._lanes()
        return self._take_back(Kind("heal", "", self._mend), slot, NETWORK)

    # -- how they are done -------------------------------------------------------------------------

    @abstractmethod
    def _hit(self, kind: Kind, slot: Target | None, role: str) -> Fault:
        """Choose whom to hit, declare the fault, then do it."""

    @abstractmethod
    def _see_to_zombies(self, engines: Sequence[Engine]) -> None:
        """Do what is to be done about those that the hub has dropped."""

    def _hurt(self, name: str, slot: Target, hurt: Callable[[int], object], *, lasting: bool = False) -> Fault:
        """Do something to lanes that hearts don't notice."""
        kind = Kind(name, "", lambda victim: hurt(_slot(victim)), self._reconnect, lasting=lasting)
        return self._hit(kind, slot, "engine")

    def _take_back(self, kind: Kind, slot: Target, names: Sequence[str]) -> Fault:
        """Do what undoes faults of these names, and take note in them."""
        fault = self._hit(kind, slot, "engine")
        for other in self._faults:
            if other.kind in names:
                other.settle(fault.slots)
        return fault

    def _lanes(self) -> Lanes:
        lanes = self._cluster.lanes
        if lanes is None:
            raise FaultError("these engines have no networks of their own: mark the test ipcluster(network=True)")
        return lanes

    def _mute(self, victim: Victim) -> None:
        for engine in self._present([victim]):
            self._hearts.call(self._hearts.monitor.mute, engine.heart)

    def _unmute(self, victims: Sequence[Victim]) -> None:
        for engine in self._present(victims):
            self._hearts.call(self._hearts.monitor.unmute, engine.heart)

    def _hear_again(self, victims: Sequence[Victim]) -> None:
        """Hear hearts again that no other fault mutes."""
        self._unmute([victim for victim in self._free(victims, "mute") if not self._is_cut_off(victim)])

    def _is_cut_off(self, victim: Victim) -> bool:
        return any(fault.kind == "isolate" and fault.sees and victim in fault.acts_on for fault in self._faults)

    def _reconnect(self, victims: Sequence[Victim]) -> None:
        """Undo one fault of lanes. Healing undoes all of them, so those that still act are done again."""
        for engine in self._present(victims):
            self._lanes().heal(engine.slot)
            for other in self._faults:
                if other.how.lasting and other.kind in NETWORK and engine in other.acts_on:
                    other.how.inject(engine)
        self._hear_again(victims)
        self._see_to_zombies(self._present(victims))

    def _speak(self, victim: Victim) -> None:
        """Hear a heart again, unless its engine is cut off."""
        if not self._is_cut_off(victim):
            self._unmute([victim])

    def _mend(self, victim: Victim) -> None:
        """Undo everything that was done to a lane."""
        self._lanes().heal(_slot(victim))
        self._unmute(self._free([victim], "mute"))
        self._see_to_zombies(self._present([victim]))


def _slot(victim: Victim) -> int:
    assert victim.slot is not None
    return victim.slot
