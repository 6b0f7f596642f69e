"""Plans of random faults: drawn by a seed alone, carried out one by one, and always healed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from waiting import SOON, until

from pytest_ipcluster.faults.plan import KINDS, Plan, Step, steps

FAST = 1e6  # faults a second: nothing is waited for


def drawn(seed: object, count: int = 50, **how: object) -> list[object]:
    return list(islice(steps(seed, 4, **how), count))


@settings(deadline=None)
@given(seed=st.one_of(st.integers(), st.text()))
def test_the_same_seed_draws_the_same(seed):
    assert drawn(seed, kinds=KINDS) == drawn(seed, kinds=KINDS)


def test_other_seeds_draw_something_else():
    assert len({str(drawn(seed)) for seed in range(50)}) == 50


@settings(deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(1, 9), kinds=st.sets(st.sampled_from(KINDS), min_size=1))
def test_what_is_drawn_can_be_done(seed, n, kinds):
    for number, step in enumerate(islice(steps(seed, n, kinds=sorted(kinds)), 30), 1):
        assert step.number == number
        assert step.kind in kinds
        assert 0 <= step.slot < n
        assert bool(step.how) is (step.kind == "crash")
        assert step.after >= 0
        assert step.hold >= 0


def test_every_kind_and_slot_comes():
    found = drawn(1, 200, kinds=KINDS)
    assert {step.kind for step in found} == set(KINDS)
    assert {step.slot for step in found} == {0, 1, 2, 3}


def test_so_many_faults_a_second_are_planned():
    seconds = sum(step.after + step.hold for step in drawn(1, 2000, rate=5.0))
    assert 300 < seconds < 500  # 400 on average


@pytest.mark.parametrize("kinds", [(), ("boredom",), ("kill", "isolate ")])
def test_other_kinds_are_refused(kinds):
    with pytest.raises(ValueError, match="expected one or more of 'kill', 'pause', 'crash'"):
        steps(1, 2, kinds=kinds)


@pytest.mark.parametrize("rate", [0, -1.0, float("nan")])
def test_another_rate_is_refused(rate):
    with pytest.raises(ValueError, match="expected more than 0 faults a second"):
        steps(1, 2, rate=rate)


def test_a_plan_does_its_steps_one_by_one(injector):
    planned = list(islice(steps(3, 3, rate=FAST, kinds=("pause",)), 4))
    with injector.plan(3, rate=FAST, kinds=("pause",), count=4) as plan:
        plan.wait(SOON)
    assert plan.steps == tuple(planned)
    assert [(failure.slot, failure.cause) for failure in plan.failures] == [
        (step.slot, "missed heartbeats") for step in planned
    ]
    assert [fault.undone_at is not None for fault in injector.faults] == [True] * 4


def test_the_end_of_the_block_heals_in_the_middle_of_a_plan(injector, cluster):
    with injector.plan(3, rate=0.02, kinds=("pause",)) as plan, pytest.raises(AssertionError, match="was not over"):
        plan.wait(0.01)
    assert [engine.state for engine in cluster.engines] == ["idle"] * 3


def test_a_plan_goes_on_until_the_block_ends(injector):
    with injector.plan(3, rate=FAST, kinds=("pause",)) as plan:
        injector._recorder.wait_for(lambda _: len(injector.failures) >= 3, SOON)
    assert len(plan.steps) >= 3
    assert not [thread for thread in threading.enumerate() if thread.name == "ipcluster-plan"]


def test_without_a_seed_each_plan_of_a_test_is_another_one_and_can_be_had_again(cluster, hearts, log):
    from pytest_ipcluster.faults.injector import FaultInjector

    told: list[str] = []
    injectors = [FaultInjector(cluster, hearts, log, seed="7:test", replay="seed 7", tell=told.append) for _ in "ab"]
    seeds = []
    for injector in injectors:
        for _ in range(2):
            with injector.plan(rate=0.02) as plan:
                seeds.append(plan.seed)
        injector.close()
    assert seeds == ["7:test:1", "7:test:2"] * 2
    assert told == [f"plan {n} by seed '7:test:{n}'; to replay: seed 7\nnothing was done" for n in (1, 2)] * 2


def test_what_chance_has_chosen_is_told_with_how_to_have_it_again(cluster, hearts, log):
    from pytest_ipcluster.faults.injector import FaultInjector

    told: list[str] = []
    injector = FaultInjector(cluster, hearts, log, seed=7, replay="seed 7", tell=told.append)
    fault = injector.pause("one")
    injector.pause("all")
    injector.close()
    assert told == [f"one of the engines: slots {fault.slots}; to replay: seed 7"]


class Planning(RuleBasedStateMachine):
    """A plan is let go on step by step, and ended at any moment."""

    @initialize(
        seed=st.integers(0, 99),
        n=st.integers(1, 4),
        kinds=st.sets(st.sampled_from(KINDS), min_size=1),
        count=st.integers(0, 6),
    )
    def begin(self, seed: int, n: int, kinds: set[str], count: int) -> None:
        how = {"rate": FAST, "kinds": sorted(kinds)}
        self.planned = tuple(islice(steps(seed, n, **how), count))
        self.allowed, self.acting, self.healed = threading.Semaphore(0), [], []
        self.plan = Plan(steps(seed, n, **how), count, self.inject, self.healed.append, seed=seed, replay="")
        self.plan.__enter__()

    @contextmanager
    def inject(self, step: Step) -> Iterator[SimpleNamespace]:
        self.allowed.acquire()
        assert not self.acting
        self.acting.append(step)
        yield SimpleNamespace(wait=lambda _: step.slot)
        self.acting.remove(step)

    @rule()
    def let_one_step_go(self) -> None:
        done = len(self.healed)
        self.allowed.release()
        until(lambda: len(self.healed) > done or done == len(self.planned))

    @invariant()
    def what_was_done_is_what_was_planned(self) -> None:
        done = len(self.healed)
        assert self.plan.steps[:done] == self.planned[:done]
        assert list(self.plan.failures[:done]) == [step.slot for step in self.planned[:done]]

    def teardown(self) -> None:
        self.allowed.release(10)
        self.plan.__exit__(None, None, None)
        assert self.acting == []
        assert self.plan.steps == self.planned[: len(self.plan.steps)]
        assert len(self.healed) == len(self.plan.steps)


Planning.TestCase.settings = settings(max_examples=100, stateful_step_count=10, deadline=None)
TestPlanning = Planning.TestCase


def failing(_: object) -> None:
    raise LookupError("the plan itself")


def test_what_goes_wrong_with_the_plan_fails_the_test():
    plan = Plan(steps(1, 2, rate=FAST), None, failing, failing, seed=1, replay="again")
    with pytest.raises(LookupError, match="the plan itself"), plan:
        plan.wait(SOON)


@contextmanager
def setting(event: threading.Event) -> Iterator[None]:
    """Set the event when the block has ended."""
    try:
        yield
    finally:
        event.set()


def test_what_goes_wrong_in_the_block_comes_first():
    block_has_failed = threading.Event()

    def failing_late(step: object) -> None:
        assert block_has_failed.wait(SOON)
        failing(step)

    plan = Plan(steps(1, 2, rate=FAST), None, failing_late, failing, seed=1, replay="again")
    with pytest.raises(AssertionError, match="was not over"), plan, setting(block_has_failed):
        plan.wait(0)
