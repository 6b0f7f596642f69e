"""Which calls can still be answered, given who has died or was stopped: plain bookkeeping, no process and no socket.

Every call takes one of a few ways through the controller, and each way needs certain processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

__all__ = [
    "ARRIVAL",
    "BALANCED",
    "BROADCAST",
    "CONTROL",
    "DIRECT",
    "HUB",
    "OUTPUT",
    "TASKS",
    "Call",
    "Down",
    "Place",
    "Sight",
    "loss",
    "names_at_engines",
]

# The ways. ARRIVAL is that of a new engine, on which wait_for_engines() waits.
DIRECT, BALANCED, BROADCAST, CONTROL = "direct", "load-balanced", "broadcast", "control"
HUB, OUTPUT, ARRIVAL = "hub", "output", "arrival"

#: What engines are asked to execute.
TASKS = ("apply_request", "execute_request")

#: Seconds for an answer that a process had sent before it died to arrive.
_UNDER_WAY = 0.05

#: Seconds for ipyparallel itself to tell of an engine's death, where somebody is left who does: that takes it 0.02 s,
#: and many times as long on a machine that is overloaded.
_TOLD = 1.5

#: Seconds for the answers that are likely to come in the end.
_LIKELY = 1.0

#: What is asked of a process whose end is the answer; it replies just before.
_FAREWELL = "shutdown_request"


@dataclass(frozen=True, slots=True)
class Down:
    """A process that answers no more: dead, or stopped for long enough. ``since`` is when it was first seen so.

    Times are seconds of ``time.monotonic()``; ``well`` is when it was last seen well. ``killed`` says that it was a
    signal that ended it. ``watched`` is for how many seconds somebody has kept looking since: where nobody could look,
    nobody could answer either.
    """

    role: str
    pid: int
    since: float
    slot: int | None = None
    stopped: bool = False
    killed: bool = False
    well: float = float("-inf")
    watched: float = float("inf")


@dataclass(frozen=True, slots=True)
class Place:
    """An engine with its nanny, which tells the hub of the engine's end; ``down`` and ``nanny`` when they are that."""

    slot: int
    down: Down | None = None
    nanny: Down | None = None
    has_nanny: bool = True

    @property
    def untold(self) -> bool:
        """Whether nobody is left who tells the hub that this engine has died."""
        return not self.has_nanny or (self.nanny is not None and (self.nanny.stopped or self.nanny.killed))


@dataclass(frozen=True, slots=True)
class Sight:
    """What one look at the cluster has shown at the time ``now``.

    ``parts`` holds the parts of the controller that are down, by role; ``places`` every engine that there ever was, by
    ident, and ``current`` the idents of those that are in the slots now. ``leaves`` is how many broadcast schedulers
    the engines are divided among. ``given`` tells which load-balanced tasks wait at which engine, as far as is known.
    Without ``patience`` nobody waits any longer for what those who have died had sent, or others may tell of them.
    """

    now: float
    parts: Mapping[str, Down] = field(default_factory=dict)
    places: Mapping[str, Place] = field(default_factory=dict)
    current: tuple[str, ...] = ()
    leaves: int = 0
    given: Mapping[str, str] = field(default_factory=dict)
    patience: bool = True

    @property
    def all_well(self) -> bool:
        """Whether nobody is down whom any call could need; engines of earlier times count."""
        return not self.parts and not any(place.down or place.nanny for place in self.places.values())

    def part(self, *roles: str) -> Iterator[Down]:
        """Yield those of these parts of the controller that are down."""
        yield from (self.parts[role] for role in roles if role in self.parts)


@dataclass(frozen=True, slots=True)
class Call:
    """A call that waits: ``what`` it asks, on which ``lane``, of which ``engines`` (idents; empty for any), since when.

    ``id`` is that of its message. ``sent`` is in seconds of ``time.monotonic()``.
    """

    id: str
    what: str
    lane: str
    sent: float
    engines: tuple[str, ...] = ()


def names_at_engines(call: Call) -> Iterator[str]:
    """Yield the ids under which engines get the task of this call: none, where it is something else.

    A broadcast whose answers come as one is split on its way, as those are from the start whose answers do not.
    """
    if call.what not in TASKS or call.lane == OUTPUT:
        return
    if call.lane == BROADCAST and not call.id.endswith(call.engines):
        yield from (f"{call.id}_{ident}" for ident in call.engines)
    else:
        yield call.id


def loss(call: Call, sight: Sight) -> Down | None:
    """Return whose loss leaves this call without an answer for ever; None while it can still be answered."""
    hub = sight.parts.get("controller")
    if hub is not None and not hub.stopped and _came_after(call, hub, sight.now):
        return hub
    return next(_NEEDS[call.lane](call, sight), None)


def _came_after(call: Call, hub: Down, now: float) -> bool:
    """Tell whether this was sent after the hub's end, with which the cluster goes down.

    Between two looks it may have been sent before the end, and be answered.
    """
    return call.sent > hub.since or (call.sent > hub.well and now - hub.since >= _LIKELY)


def _parts(call: Call, sight: Sight, *roles: str) -> Iterator[Down]:
    patience = _LIKELY if call.what == _FAREWELL else _UNDER_WAY
    yield from (down for down in sight.part(*roles) if _is_over(down, sight, patience))


def _is_over(down: Down, sight: Sight, patience: float) -> bool:
    return down.stopped or not sight.patience or min(sight.now - down.since, down.watched) >= patience


def _places(call: Call, sight: Sight) -> list[Place]:
    """Return where the call goes, as far as it is known: an engine that nobody has told us of is not judged."""
    return [sight.places[ident] for ident in call.engines if ident in sight.places]


def _engine(place: Place, sight: Sight) -> Down | None:
    """Return the engine when its tasks are lost; those of a dead one ipyparallel fails by itself where it can."""
    if place.down is None:
        return None
    untold = place.untold or "controller" in sight.parts
    return place.down if _is_over(place.down, sight, _UNDER_WAY if untold else _TOLD) else None


def _lost_engines(call: Call, sight: Sight) -> Iterator[Down]:
    yield from filter(None, (_engine(place, sight) for place in _places(call, sight)))


def _needs_direct(call: Call, sight: Sight) -> Iterator[Down]:
    yield from _parts(call, sight, "direct scheduler")
    yield from _lost_engines(call, sight)


def _needs_balanced(call: Call, sight: Sight) -> Iterator[Down]:
    yield from _parts(call, sight, "task scheduler")
    taken = sight.places.get(sight.given.get(call.id, ""))
    if taken is not None and taken.down is not None and taken.down.stopped:
        yield taken.down
    idents = call.engines or sight.current
    places = [sight.places.get(ident) for ident in idents]
    downs = [place.down for place in places if place is not None and place.down is not None]
    if idents and len(downs) == len(idents) and all(_is_over(down, sight, _UNDER_WAY) for down in downs):
        yield max(downs, key=lambda down: down.since)  # the last one's end left nobody


def _needs_broadcast(call: Call, sight: Sight) -> Iterator[Down]:
    leaves = {place.slot % sight.leaves for place in _places(call, sight)} if sight.leaves else ()
    # One that listens on no port that is known is a scheduler between the root and the leaves.
    between = "a process of the controller"
    roles = ["broadcast scheduler", between, *(f"broadcast scheduler (leaf {leaf})" for leaf in leaves)]
    yield from _parts(call, sight, *roles)
    yield from _lost_engines(call, sight)


def _needs_control(call: Call, sight: Sight) -> Iterator[Down]:
    yield from _parts(call, sight, "control scheduler")
    patience = _LIKELY if call.what == _FAREWELL else _UNDER_WAY
    for place in _places(call, sight):
        signalled = call.what == "signal_request" and place.has_nanny  # the nanny answers that for the engine
        if place.down is not None and not (place.down.stopped and signalled):
            yield from filter(lambda down: _is_over(down, sight, patience), [place.down])
        elif place.nanny is not None:
            yield from filter(lambda down: _is_over(down, sight, patience), [place.nanny])


def _needs_hub(call: Call, sight: Sight) -> Iterator[Down]:
    yield from _parts(call, sight, "controller")


def _needs_arrival(call: Call, sight: Sight) -> Iterator[Down]:
    yield from _parts(call, sight, "controller", "heart monitor of the hub")


def _needs_output(call: Call, sight: Sight) -> Iterator[Down]:
    yield from _parts(call, sight, "iopub relay")
    yield from _lost_engines(call, sight)


_NEEDS: Mapping[str, Callable[[Call, Sight], Iterator[Down]]] = {
    DIRECT: _needs_direct,
    BALANCED: _needs_balanced,
    BROADCAST: _needs_broadcast,
    CONTROL: _needs_control,
    HUB: _needs_hub,
    ARRIVAL: _needs_arrival,
    OUTPUT: _needs_output,
}
