"""Whom a fault hits: slots, words, and roles."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from pytest_ipcluster.faults.targets import members_of, targets


@pytest.mark.parametrize(
    ("target", "slots"),
    [(0, (0,)), (2, (2,)), ([0, 2], (0, 2)), ((1, 1), (1,)), (range(2), (0, 1)), ("all", (0, 1, 2))],
)
def test_targets_are_slots(target, slots):
    assert targets(target, 3) == slots


@pytest.mark.parametrize(
    ("target", "told"),
    [
        (3, "slot 3: expected a number from 0 to 2"),
        (-1, "slot -1: expected a number from 0 to 2"),
        ([0, 9], "slot 9: expected"),
        ([], r"slot \[\]: expected"),
        (True, "slot True: expected"),
        (1.0, r"slot 1\.0: expected"),
        (["1"], "slot '1': expected"),
        (
            "some",
            "slot 'some': expected a number from 0 to 2, several of them, or one of 'one', 'minority', 'major",
        ),
    ],
)
def test_other_targets_are_refused(target, told):
    with pytest.raises(ValueError, match=told):
        targets(target, 3)


@pytest.mark.parametrize(
    ("word", "n", "number"),
    [
        ("one", 1, 1),
        ("one", 4, 1),
        ("minority", 3, 1),
        ("minority", 4, 1),
        ("minority", 5, 2),
        ("majority", 1, 1),
        ("majority", 2, 2),
        ("majority", 4, 3),
        ("majority", 5, 3),
        ("all", 4, 4),
    ],
)
def test_words_are_so_many_engines(word, n, number):
    slots = targets(word, n)
    assert len(set(slots)) == number
    assert set(slots) <= set(range(n))
    assert list(slots) == sorted(slots)


def test_every_engine_can_be_the_one():
    chance = random.Random(1)
    assert {targets("one", 3, chance) for _ in range(100)} == {(0,), (1,), (2,)}


def test_the_same_seed_chooses_the_same_engines():
    first, second = ([targets("majority", 9, random.Random(seed)) for seed in range(20)] for _ in range(2))
    assert first == second


@pytest.mark.parametrize("n", [1, 2])
def test_two_engines_have_no_minority(n):
    with pytest.raises(ValueError, match=f"slot 'minority': of {n} engines there is no minority"):
        targets("minority", n)


ROLES = ["warden", "ipcluster", "forkserver", "controller", "task scheduler", "broadcast scheduler"]
ROLES += ["broadcast scheduler (leaf 0)", "broadcast scheduler (leaf 1)", "engine", "nanny", "engine", "nanny"]
ROLL = [SimpleNamespace(role=role, slot=max(0, at - 8) // 2 if at >= 8 else None) for at, role in enumerate(ROLES)]


@pytest.mark.parametrize(
    ("role", "found"),
    [
        ("controller", ["controller"]),
        ("hub", ["controller"]),
        ("task scheduler", ["task scheduler"]),
        ("broadcast scheduler", ROLES[5:8]),
        ("broadcast scheduler (leaf 1)", ROLES[7:8]),
        ("nanny", ["nanny", "nanny"]),
    ],
)
def test_members_are_found_by_their_role(role, found):
    assert [member.role for member in members_of(ROLL, role)] == found


def test_nannies_are_found_by_the_slot_of_their_engine():
    assert [member.slot for member in members_of(ROLL, "nanny", (1,))] == [1]


@pytest.mark.parametrize("role", ["warden", "forkserver", "engine", "task", "Hub", ""])
def test_other_roles_are_refused_with_those_that_there_are(role):
    told = f"role '{role}': expected one of 'ipcluster', 'controller', 'task scheduler', .*'nanny'$"
    with pytest.raises(ValueError, match=told):
        members_of(ROLL, role)
