"""What the plugin did to the cluster, in words: the lines of a report's section, and the block at the end of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from pytest_ipcluster.report.events import Event

__all__ = ["TOLD", "Note", "notes_of", "section", "summary"]

#: The kinds of events that are told.
TOLD = ("repaired", "restarted", "retried", "dropped", "limited")

#: The kinds that are not an earlier test's doing.
_NOBODYS = ("retried", "limited")


@dataclass(frozen=True, slots=True)
class Note:
    """One thing to tell about the cluster, in plain values, so that it can travel with a report.

    ``kind`` is a word such as ``"repaired"``, ``text`` the reason, which may have several lines; ``slot`` says which
    engine, ``seconds`` how long it took, and ``after`` the test that came before, where these are known.
    """

    kind: str
    text: str
    slot: int | None = None
    seconds: float | None = None
    after: str = ""

    def __str__(self) -> str:
        slot = "" if self.slot is None else f" slot {self.slot}"
        took = "" if self.seconds is None else f" in {self.seconds:.2f} s"
        after = f", after {self.after}" if self.after else ""
        return f"{self.kind}{slot}{took}{after}: {self.text}"

    @property
    def reason(self) -> str:
        """The first line of the text."""
        return self.text.partition("\n")[0]


def notes_of(events: Iterable[Event], after: str = "") -> list[Note]:
    """Return a note for each event that is told; ``after`` is the test that came before: what needs repair is its."""
    told = [event for event in events if event.kind in TOLD]
    return [Note(e.kind, e.detail, e.slot, e.seconds, "" if e.kind in _NOBODYS else after) for e in told]


def section(notes: Iterable[Note]) -> str:
    """Return the text of a report's section."""
    return "\n".join(map(str, notes))


def summary(told: Sequence[tuple[str, Note]], *, verbose: bool = False) -> list[str]:
    """Return the lines of the block at the end of a run: how often what was done and why, and what it cost.

    ``told`` are the notes with the tests in whose reports they stand. With ``verbose`` each has a line.
    """
    if verbose:
        return [f"{nodeid}: {replace(note, text=note.reason)}" for nodeid, note in told]
    groups: dict[tuple[str, str], list[Note]] = {}
    for _, note in told:
        groups.setdefault((note.kind, note.reason), []).append(note)
    return [_line(kind, reason, notes) for (kind, reason), notes in groups.items()]


def _line(kind: str, reason: str, notes: Sequence[Note]) -> str:
    times = "once" if len(notes) == 1 else f"{len(notes)} times"
    seconds = [note.seconds for note in notes if note.seconds is not None]
    took = f" in {sum(seconds):.2f} s" if seconds else ""
    return f"{kind} {times}{took}: {reason}"
