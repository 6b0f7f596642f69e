"""The engines of a cluster by slot: an engine's stable place 0..n-1, whichever process fills it at the moment."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from pytest_ipcluster.cluster.processes import find, is_alive, is_paused

__all__ = ["Engine", "is_gone", "read_engines"]


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine process in its slot.

    ``slot`` and ``id`` (the id in ``Client.ids``) are the same number; ``ident`` is the engine's uuid, and
    ``heart`` the same as bytes: what heart handlers are called with. ``pid`` and ``nanny_pid`` are on ``host``.
    The object describes the process that was in the slot when it was asked for; ask the cluster again after a
    repair. Two are equal when they are the same process in the same slot.
    """

    slot: int
    ident: str
    host: str
    process: psutil.Process
    nanny: psutil.Process | None = field(compare=False)
    log_file: Path | None = field(compare=False)
    #: The folder of the engines' cards, where it also tells its task and takes orders.
    cards: Path | None = field(default=None, compare=False)
    #: Who is asked what its interpreter and the hub make of it; without that only its process and its task tell.
    ask: Callable[[Engine], str] | None = field(default=None, repr=False, compare=False)

    @property
    def id(self) -> int:
        """The engine's id in ipyparallel."""
        return self.slot

    @property
    def heart(self) -> bytes:
        """The id under which this engine's heart beats."""
        return self.ident.encode()

    @property
    def pid(self) -> int:
        """The process id of the engine."""
        return self.process.pid

    @property
    def nanny_pid(self) -> int | None:
        """The process id of ipyparallel's nanny of this engine, None when it has none."""
        return None if self.nanny is None else self.nanny.pid

    @property
    def state(self) -> str:
        """What it is like now; some milliseconds are needed to find out, and a second for one that is stuck.

        ``"dead"``: its process has ended. ``"paused"``: that is stopped by a signal. ``"zombie"``: the hub has dropped
        it, for good, though it lives. ``"stuck"``: its interpreter does not answer. ``"busy"``: it works on a task.
        ``"idle"``: it does not.
        """
        if not is_alive(self.process):
            return "dead"
        if is_paused(self.process):
            return "paused"
        if self.ask is None:
            return "busy" if self.task else "idle"
        answer = self.ask(self)
        return answer if is_alive(self.process) else "dead"

    @property
    def task(self) -> str:
        """The id of the message of the task that it works on; empty when it is idle.

        What a dead engine worked on when it died stays.
        """
        return "" if self.cards is None else _read_task(self.cards / f"{self.ident}.task")

    @property
    def has_left(self) -> bool:
        """Whether it was asked to shut down, by ``Client.shutdown`` for example, and has begun to."""
        return self.cards is not None and (self.cards / f"{self.ident}.left").exists()

    def log(self) -> str:
        """Return what the engine has written to its log so far; empty where its launcher keeps none.

        What tasks print goes to the client instead, as ``AsyncResult.stdout``.
        """
        return self.log_file.read_text(errors="replace") if self.log_file and self.log_file.exists() else ""


def is_gone(engines: Iterable[Engine], heart: bytes) -> bool | None:
    """Tell whether the engine with this heart has ended; None when none of these has it."""
    for engine in engines:
        if engine.heart == heart:
            return not is_alive(engine.process)
    return None


def read_engines(
    registered: Mapping[int, str],
    cards: Path,
    logs: Mapping[int, Path],
    ask: Callable[[Engine], str] | None = None,
) -> dict[int, Engine]:
    """Return the registered engines that have left their card in the folder ``cards``, by slot.

    ``registered`` maps engine ids to uuids; ``logs`` pids to log files. An engine whose process is gone already
    is left out.
    """
    found = {}
    for slot, ident in registered.items():
        engine = _read_card(slot, ident, cards, logs, ask)
        if engine is not None:
            found[slot] = engine
    return found


def _read_task(file: Path) -> str:
    """Return what the engine's agent has written before the first zero."""
    try:
        return file.read_bytes().partition(b"\0")[0].decode("ascii", "replace")
    except FileNotFoundError:
        return ""


def _read_card(
    slot: int, ident: str, cards: Path, logs: Mapping[int, Path], ask: Callable[[Engine], str] | None
) -> Engine | None:
    try:
        card = json.loads((cards / f"{ident}.json").read_text())
    except FileNotFoundError:
        return None
    process = find(card["pid"])
    if process is None:
        return None
    nanny = find(card["nanny"]) if card.get("nanny") else None
    return Engine(slot, ident, card["host"], process, nanny, logs.get(card["pid"]), cards, ask)
