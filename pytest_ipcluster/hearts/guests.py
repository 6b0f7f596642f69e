"""Whose answers count: who is welcome, who was told to leave, and who is not to be heard for the time being."""

from __future__ import annotations

from collections.abc import Callable, Iterable

__all__ = ["Guests"]

#: Strangers whose last answer is remembered in case that they become guests; there may be any number of strangers.
_MOST_KNOCKS = 1000


class Guests:
    """The hearts that a ledger listens to.

    ``accept`` is asked about every heart id. ``allowed`` are the only ids that are welcome, with those that are allowed
    later; None stands for everybody but those who are banned.
    """

    def __init__(self, accept: Callable[[bytes], bool] | None = None, allowed: Iterable[bytes] | None = None) -> None:
        self.accept = accept
        #: Hearts whose answers count for nothing for the time being.
        self.muted: set[bytes] = set()
        self._allowed = None if allowed is None else set(allowed)
        self._banned: set[bytes] = set()
        self._knocks: dict[bytes, int] = {}

    def are_to_hear(self, heart: bytes) -> bool:
        """Tell whether this heart is welcome."""
        invited = heart not in self._banned if self._allowed is None else heart in self._allowed
        return invited and (self.accept is None or self.accept(heart))

    def allow(self, heart: bytes) -> int:
        """Make a heart welcome; return the newest ping that it has answered when it was not, 0 if there is none."""
        self._banned.discard(heart)
        if self._allowed is not None:
            self._allowed.add(heart)
        return self._knocks.pop(heart, 0)

    def ban(self, heart: bytes) -> None:
        """Listen to this heart no more, until it is allowed again. It is no longer muted then."""
        self.muted.discard(heart)
        self._knocks.pop(heart, None)
        if self._allowed is None:
            self._banned.add(heart)
        else:
            self._allowed.discard(heart)

    def knock(self, heart: bytes, sequence: int | None) -> None:
        """Remember that one who is not welcome yet has answered this ping; None for an answer to none that is open."""
        if self._allowed is None or sequence is None:
            return
        if heart in self._knocks or len(self._knocks) < _MOST_KNOCKS:
            self._knocks[heart] = sequence

    def forget_knocks(self, *, before: int) -> None:
        """Forget who has answered no ping from this one on."""
        if self._knocks:
            self._knocks = {heart: sequence for heart, sequence in self._knocks.items() if sequence >= before}
