"""Faults and what takes them back, in any order and on top of each other: who is hurt is who some fault still acts on.

A Hypothesis machine injects, undoes, resumes, unmutes, heals and replaces engines that are no processes, beside a model
that only knows which fault acts on which slot.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pytest_ipcluster.cluster.engines import Engine
from pytest_ipcluster.faults import injector as injector_module
from pytest_ipcluster.faults.injector import FaultInjector
from pytest_ipcluster.report.events import EventLog

N = 3

SLOTS = st.sets(st.integers(0, N - 1), min_size=1)

#: What each lasting fault does to an engine.
HURTS = {"pause": {"stopped"}, "mute": {"muted"}, "isolate": {"frozen", "muted"}, "delay": {"slow"}}


class World:
    """Engines that can be hurt, and what is the matter with each: stopped, muted, frozen, slow."""

    def __init__(self) -> None:
        self.hurt: dict[int, set[str]] = {slot: set() for slot in range(N)}
        self.engines = tuple(_engine(slot, 1000 + slot) for slot in range(N))
        self.controller = None
        self.slots = SimpleNamespace(zombies=lambda _: [])
        self.lanes = SimpleNamespace(
            freeze=lambda slot, **_: self.hurt[slot].add("frozen"),
            delay=lambda slot, **_: self.hurt[slot].add("slow"),
            heal=lambda slot: self.hurt[slot].difference_update({"frozen", "slow"}),
        )
        monitor = SimpleNamespace(
            mute=lambda heart: self.hurt[self.slot_of(heart)].add("muted"),
            unmute=lambda heart: self.hurt[self.slot_of(heart)].discard("muted"),
            add_heart_failure_handler=lambda _: None,
            remove_heart_failure_handler=lambda _: None,
        )
        self.hearts = SimpleNamespace(monitor=monitor, call=lambda function, *arguments: function(*arguments))

    def replace(self, slot: int) -> None:
        """Put an engine that nobody has hurt into this slot."""
        old = self.engines[slot]
        self.engines = (*self.engines[:slot], _engine(slot, old.pid + N), *self.engines[slot + 1 :])
        self.hurt[slot] = set()

    def slot_of(self, heart: bytes) -> int:
        """Return where this heart beats; an engine that is no more has none that could be muted."""
        [slot] = (engine.slot for engine in self.engines if engine.heart == heart)
        return slot

    def runs(self, process: SimpleNamespace) -> bool:
        return any(engine.process == process for engine in self.engines)

    def owns(self, _: object) -> bool:
        return True

    def how_ended(self, *_: object) -> None:
        return None

    def signal(self, process: SimpleNamespace, signum: int) -> bool:
        if not self.runs(process):
            return False
        stop = signum == injector_module.signal.SIGSTOP
        (self.hurt[process.slot].add if stop else self.hurt[process.slot].discard)("stopped")
        return True

    def resume(self, process: SimpleNamespace) -> bool:
        if not self.runs(process):
            return False
        self.hurt[process.slot].discard("stopped")
        return True


def _engine(slot: int, pid: int) -> Engine:
    return Engine(slot, f"heart of {pid}", "here", SimpleNamespace(pid=pid, slot=slot), None, None)


class Healing(RuleBasedStateMachine):
    """The model is a list of what acts: for each fault its kind and the slots that it still acts on."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.world = World()
        self.patch.setattr(injector_module, "send_signal", self.world.signal)
        self.patch.setattr(injector_module, "resume", self.world.resume)
        self.patch.setattr(injector_module, "is_alive", lambda _: True)
        self.patch.setattr(injector_module, "wait_gone", lambda *_: set())
        self.injector = FaultInjector(self.world, self.world.hearts, EventLog())
        self.acting: list[tuple[object, str, set[int]]] = []
        self.gone: list[tuple[object, int]] = []

    def teardown(self) -> None:
        self.injector.close()
        hurt = dict(self.world.hurt)
        self.patch.undo()
        assert not any(hurt.values()), hurt

    @rule(kind=st.sampled_from(sorted(HURTS)), slots=SLOTS)
    def inject(self, kind: str, slots: set[int]) -> None:
        arguments = (sorted(slots), 1.0) if kind == "delay" else (sorted(slots),)
        fault = getattr(self.injector, kind)(*arguments)
        assert set(fault.slots) == slots
        self.acting.append((fault, kind, set(slots)))

    @precondition(lambda self: self.acting)
    @rule(data=st.data())
    def undo(self, data: st.DataObject) -> None:
        fault, _, slots = self.acting[data.draw(st.integers(0, len(self.acting) - 1))]
        fault.undo()
        slots.clear()

    @rule(slots=SLOTS, how=st.sampled_from(["resume", "unmute", "heal"]))
    def take_back(self, slots: set[int], how: str) -> None:
        kinds = {"resume": {"pause"}, "unmute": {"mute"}, "heal": {"isolate", "delay"}}[how]
        getattr(self.injector, how)(sorted(slots))
        for _, kind, on in self.acting:
            if kind in kinds:
                on.difference_update(slots)

    @rule(slot=st.integers(0, N - 1))
    def replace(self, slot: int) -> None:
        self.world.replace(slot)
        self.gone += [(fault, slot) for fault, _, _ in self.acting]

    @invariant()
    def hurt_is_who_some_fault_acts_on(self) -> None:
        expected: dict[int, set[str]] = {slot: set() for slot in range(N)}
        for fault, kind, slots in self.acting:
            for slot in slots:
                if not any(slot == where and fault is of for of, where in self.gone):
                    expected[slot] |= HURTS[kind]
        assert self.world.hurt == expected

    @invariant()
    def faults_know_whom_they_act_on(self) -> None:
        for fault, _, slots in self.acting:
            assert {victim.slot for victim in fault.acts_on} == slots
            assert (fault.undone_at is None) is bool(slots)


Healing.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestHealing = Healing.TestCase
