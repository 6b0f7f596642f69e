"""Whom a fault hits: engines by slot or by a word, other processes of the cluster by their role."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_ipcluster.cluster.rollcall import Member

__all__ = ["WORDS", "Target", "check_slot", "members_of", "targets"]

#: What a test may say about whom to hurt: one slot, several, or one of :data:`WORDS`.
Target = int | Iterable[int] | str

#: How many engines each word means, of n. Which ones is chosen at random, but for all of them.
WORDS: dict[str, Callable[[int], int]] = {
    "one": lambda _: 1,
    "minority": lambda n: n - (n // 2 + 1),
    "majority": lambda n: n // 2 + 1,
    "all": lambda n: n,
}

#: Roles that also go by another name.
_ALIASES = {"hub": "controller"}

#: Whom no fault may hit: without the warden nobody cleans up, and without the forkserver nobody is replaced quickly.
_SPARED = ("warden", "forkserver", "engine")


def targets(target: Target, n: int, chance: random.Random | None = None) -> tuple[int, ...]:
    """Return the slots that ``target`` means in a cluster of ``n`` engines; ``chance`` chooses where a word leaves it.

    Raises ValueError for a slot that does not exist, an empty selection, and an unknown word.
    """
    if isinstance(target, str) and target in WORDS:
        if not (number := WORDS[target](n)):
            raise ValueError(f"slot {target!r}: of {n} engines there is no {target}")
        return tuple(sorted((chance or random.Random()).sample(range(n), number)))
    if isinstance(target, int):
        return (check_slot(target, n),)
    if isinstance(target, str) or not isinstance(target, Iterable) or not (slots := tuple(target)):
        words = ", ".join(map(repr, WORDS))
        raise ValueError(f"slot {target!r}: expected a number from 0 to {n - 1}, several of them, or one of {words}")
    return tuple(dict.fromkeys(check_slot(slot, n) for slot in slots))


def check_slot(slot: object, n: int) -> int:
    """Return the slot; raise ValueError when a cluster of ``n`` engines has none of this number."""
    if isinstance(slot, bool) or not isinstance(slot, int) or not 0 <= slot < n:
        raise ValueError(f"slot {slot!r}: expected a number from 0 to {n - 1}")
    return slot


def members_of(roll: Sequence[Member], role: str, slots: Sequence[int] | None = None) -> tuple[Member, ...]:
    """Return the members with this role, of these slots where it is that of each engine's nanny.

    ``"hub"`` is the controller, ``"broadcast scheduler"`` all of its processes. Raises ValueError for a role that
    nobody has or that is spared; the text lists the others.
    """
    wanted = _ALIASES.get(role, role)
    found = tuple(
        member
        for member in roll
        if member.role not in _SPARED
        and (member.role == wanted or member.role.startswith(f"{wanted} ("))
        and (slots is None or member.slot in slots)
    )
    if not found:
        known = dict.fromkeys(member.role for member in roll if member.role not in _SPARED)
        raise ValueError(f"role {role!r}: expected one of {', '.join(map(repr, known))}")
    return found
