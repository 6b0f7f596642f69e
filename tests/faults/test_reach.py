"""Which calls can still be answered: the ways through the controller, without any process."""

from __future__ import annotations

import pytest

from pytest_ipcluster.faults.reach import (
    ARRIVAL,
    BALANCED,
    BROADCAST,
    CONTROL,
    DIRECT,
    HUB,
    OUTPUT,
    Call,
    Down,
    Place,
    Sight,
    loss,
)

LANES = (DIRECT, BALANCED, BROADCAST, CONTROL, HUB, OUTPUT, ARRIVAL)
NEVER = 1e9

# Who is needed by which lanes.
NEEDED = {
    "direct scheduler": {DIRECT},
    "task scheduler": {BALANCED},
    "control scheduler": {CONTROL},
    "broadcast scheduler": {BROADCAST},
    "broadcast scheduler (leaf 0)": {BROADCAST},
    "broadcast scheduler (leaf 1)": set(),
    "a process of the controller": {BROADCAST},
    "iopub relay": {OUTPUT},
    "heart monitor of the hub": {ARRIVAL},
    "controller": {HUB, ARRIVAL},
}


def call(lane: str, what: str = "apply_request", sent: float = -1.0, engines: tuple[str, ...] = ("a",)) -> Call:
    return Call("1", what, lane, sent, engines)


def down(role: str, since: float = 0.0, **how: object) -> Down:
    return Down(role, 17, since, **{"well": since - 0.5, **how})


def sight(*parts: Down, now: float = NEVER, a: Place | None = None, b: Place | None = None, **more: object) -> Sight:
    """Two engines in the slots 0 and 1, two leaves, and what is down."""
    places = {"a": a or Place(0), "b": b or Place(1)}
    return Sight(now, {part.role: part for part in parts}, places, ("a", "b"), 2, **more)


def dead(slot: int = 0, *, nanny: str = "lives", since: float = 0.0) -> Place:
    """An engine that is dead, and what has become of its nanny."""
    nannies = {
        "lives": None,
        "exited": down("nanny", since),
        "killed": down("nanny", since, killed=True),
        "stopped": down("nanny", since, stopped=True),
    }
    return Place(slot, down("engine", since, slot=slot), nannies.get(nanny), has_nanny=nanny != "none")


@pytest.mark.parametrize("lane", LANES)
def test_while_all_are_well_everything_can_be_answered(lane):
    assert sight().all_well
    assert loss(call(lane), sight()) is None


@pytest.mark.parametrize(
    "seen",
    [sight(down("iopub relay")), sight(a=dead()), sight(b=Place(1, None, down("nanny")))],
    ids=["part", "engine", "nanny"],
)
def test_whoever_is_down_is_noticed(seen):
    assert not seen.all_well


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("role", NEEDED)
def test_a_part_of_the_controller_is_missed_on_its_lanes_only(role, stopped):
    part = down(role, stopped=stopped)
    missed = {lane for lane in LANES if loss(call(lane), sight(part)) is not None}
    assert missed == NEEDED[role]


def test_an_answer_that_was_under_way_when_a_part_died_has_a_moment_to_arrive():
    part = down("direct scheduler", since=10.0)
    assert loss(call(DIRECT), sight(part, now=10.01)) is None
    assert loss(call(DIRECT), sight(part, now=10.06)) is part


def test_while_nobody_could_look_nobody_could_tell_of_a_death_either():
    place = Place(0, down("engine", since=10.0, slot=0, watched=0.1))
    assert loss(call(DIRECT), sight(a=place, now=20.0)) is None
    assert loss(call(DIRECT), sight(a=place, now=20.0, patience=False)) is place.down


class TestHub:
    @pytest.mark.parametrize("lane", LANES)
    def test_what_was_sent_after_its_death_has_no_answer(self, lane):
        hub = down("controller", since=0.0)
        assert loss(call(lane, sent=0.1), sight(hub, now=0.1)) is hub

    def test_what_was_sent_between_two_looks_may_have_been_sent_before(self):
        hub = down("controller", since=0.03, well=0.0)
        assert loss(call(DIRECT, sent=0.01), sight(hub, now=0.5)) is None
        assert loss(call(DIRECT, sent=0.01), sight(hub, now=1.1)) is hub

    @pytest.mark.parametrize("lane", [DIRECT, BALANCED, BROADCAST, CONTROL, OUTPUT])
    def test_while_it_is_stopped_tasks_come_back(self, lane):
        assert loss(call(lane, sent=0.1), sight(down("controller", stopped=True))) is None

    def test_a_request_to_shut_it_down_has_longer_for_its_reply(self):
        hub = down("controller", since=10.0)
        assert loss(call(HUB, "shutdown_request"), sight(hub, now=10.5)) is None
        assert loss(call(HUB, "shutdown_request"), sight(hub, now=11.1)) is hub


class TestEngine:
    @pytest.mark.parametrize("lane", [DIRECT, BROADCAST])
    @pytest.mark.parametrize("nanny", ["lives", "exited"])
    def test_its_tasks_are_left_to_ipyparallel_for_a_while_where_its_nanny_tells(self, lane, nanny):
        gone = dead(nanny=nanny)
        assert loss(call(lane), sight(a=gone, now=1.4)) is None
        assert loss(call(lane), sight(a=gone, now=1.6)) is gone.down

    @pytest.mark.parametrize("nanny", ["killed", "stopped", "none"])
    def test_they_are_lost_where_nobody_tells(self, nanny):
        gone = dead(nanny=nanny)
        assert loss(call(DIRECT), sight(a=gone, now=0.1)) is gone.down

    def test_they_are_lost_where_nobody_listens(self):
        gone = dead()
        assert loss(call(DIRECT), sight(down("controller"), a=gone, now=0.1)) is gone.down

    def test_it_is_missed_by_what_was_sent_there_only(self):
        assert loss(call(DIRECT, engines=("b",)), sight(a=dead())) is None

    def test_what_went_to_an_engine_that_nobody_knows_is_not_judged(self):
        assert loss(call(DIRECT, engines=("stranger",)), sight(a=dead(), b=dead(1))) is None

    def test_one_that_has_taken_the_place_of_a_dead_one_is_another(self):
        seen = sight(a=dead(nanny="killed"))
        seen = Sight(seen.now, {}, {**seen.places, "c": Place(0)}, ("c", "b"), 2)
        assert loss(call(DIRECT, engines=("a",)), seen) is not None
        assert loss(call(DIRECT, engines=("c",)), seen) is None
        assert loss(call(BALANCED, engines=()), seen) is None


class TestBalanced:
    def test_a_task_goes_on_where_another_engine_lives(self):
        assert loss(call(BALANCED, engines=()), sight(a=dead())) is None

    def test_without_any_it_is_lost(self):
        last = dead(1, since=5.0)
        assert loss(call(BALANCED, engines=()), sight(a=dead(), b=last)) is last.down

    def test_one_for_certain_engines_is_lost_with_them(self):
        assert loss(call(BALANCED, engines=("a",)), sight(a=dead())) is not None

    def test_while_no_engine_is_known_nothing_is_lost(self):
        assert loss(call(BALANCED, engines=()), Sight(NEVER)) is None

    def test_one_that_a_stopped_engine_has_is_lost(self):
        still = Place(0, down("engine", stopped=True))
        assert loss(call(BALANCED, engines=()), sight(a=still)) is None
        assert loss(call(BALANCED, engines=()), sight(a=still, given={"1": "a"})) is still.down


class TestControl:
    def test_a_dead_nanny_takes_them_along(self):
        place = Place(0, None, down("nanny"))
        assert loss(call(CONTROL, "clear_request"), sight(a=place)) is place.nanny

    def test_a_stopped_engine_answers_none_but_its_nanny_does_signals(self):
        place = Place(0, down("engine", stopped=True))
        assert loss(call(CONTROL, "clear_request"), sight(a=place)) is place.down
        assert loss(call(CONTROL, "signal_request"), sight(a=place)) is None

    def test_a_dead_engine_answers_none(self):
        gone = dead()
        assert loss(call(CONTROL, "signal_request"), sight(a=gone, now=0.1)) is gone.down

    def test_one_that_was_told_to_end_has_a_second_for_its_reply(self):
        gone = dead()
        assert loss(call(CONTROL, "shutdown_request"), sight(a=gone, now=0.5)) is None
        assert loss(call(CONTROL, "shutdown_request"), sight(a=gone, now=1.1)) is gone.down


def test_a_coalescing_broadcast_needs_the_leaves_of_all_its_engines():
    leaf = down("broadcast scheduler (leaf 1)")
    assert loss(call(BROADCAST, engines=("a", "b")), sight(leaf)) is leaf
