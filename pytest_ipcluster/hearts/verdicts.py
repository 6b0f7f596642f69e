"""What a ledger says: what an answer was worth, what a beat has found, whom it has failed; and the pings it sends."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b

__all__ = ["Beat", "Failure", "Pong", "token_maker"]


class Pong(StrEnum):
    """What an answer was worth."""

    #: It answers the newest ping.
    CURRENT = "current"
    #: It answers an earlier ping that still counts: the heart is slow, and alive.
    LATE = "late"
    #: It proves nothing: too old, made up, given twice, or sent before the heart's own failure.
    STALE = "stale"
    #: It comes from a heart that is not to be watched.
    STRANGER = "stranger"
    #: It comes from a heart that is not to be heard for the time being.
    MUTED = "muted"
    #: It may come from another heart than the one it names.
    DOUBTFUL = "doubtful"


@dataclass(frozen=True, slots=True)
class Failure:
    """The verdict on one heart. Times are seconds of the caller's clock; ``last_pong`` is None if none ever came."""

    heart: bytes
    last_pong: float | None
    verdict_at: float
    misses: int


@dataclass(frozen=True, slots=True)
class Beat:
    """What one beat found out, hearts in order of their ids, and the token to send with it.

    ``missed`` gives for every heart that missed this beat how many it has missed in a row, failed ones
    included. ``late`` is by how many seconds this beat itself came too late; ``stalled`` says that it was too
    late to judge.
    """

    token: bytes
    new: tuple[bytes, ...] = ()
    missed: Mapping[bytes, int] = field(default_factory=dict)
    failed: tuple[Failure, ...] = ()
    returned: tuple[bytes, ...] = ()
    late: float = 0.0
    stalled: bool = False


def token_maker() -> Callable[[int], bytes]:
    """Return a function that makes pings that nobody can guess who has not heard them.

    It asks the system for randomness once, and derives them from that.
    """
    key = secrets.token_bytes(32)

    def make_token(sequence: int) -> bytes:
        digest = blake2b(b"%d" % sequence, key=key, digest_size=16)
        return b"%s-%d" % (digest.hexdigest().encode(), sequence)

    return make_token
