"""Spare engines: forked ahead of the need, and held just before they would register with the hub.

Nobody sees them: they have no id, no heart and no connection. One that is wanted is told its id by a named pipe, which
it waits to open, and its log gets the name that the engine's has.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Spares"]

#: Seconds for a spare to be ready, which takes it a tenth of one on a machine that has time, and between two looks.
_READY_WITHIN, _AGAIN = 10.0, 0.002

#: Starts an engine that is held at this pipe, its output into this file; None where engines can't be forked.
Fork = Callable[[Path, Path], "subprocess.Popen[bytes] | None"]


@dataclass(frozen=True, slots=True)
class _Spare:
    process: subprocess.Popen[bytes]
    pipe: Path
    log: Path


class Spares:
    """Keeps ``count`` spare engines of one cluster; their pipes and logs are in ``folder``."""

    def __init__(self, count: int, folder: Path, fork: Fork) -> None:
        self._count = count
        self._folder = folder
        self._fork = fork
        self._made = 0
        self._kept: list[_Spare] = []

    def fill(self) -> None:
        """Fork as many as are missing. They take a moment to get ready, which nobody waits for."""
        self._kept = [spare for spare in self._kept if spare.process.poll() is None]
        while len(self._kept) < self._count:
            self._made += 1
            pipe, log = (self._folder / f"spare-{self._made}{ending}" for ending in ("", ".log"))
            os.mkfifo(pipe, 0o600)
            process = self._fork(pipe, log)
            if process is None:
                pipe.unlink()
                return
            self._kept.append(_Spare(process, pipe, log))

    def take(self, engine: int, log: Path, lane: Mapping[str, int] | None = None) -> subprocess.Popen[bytes] | None:
        """Have a spare become the engine with this id and this log; None when there is none.

        ``lane`` are the ports of its lane, if it has one. One that is not ready yet is waited for: a new engine would
        take longer.
        """
        while self._kept:
            spare = self._kept.pop(0)
            taken = _release(spare, {"id": engine} | ({} if lane is None else {"lane": dict(lane)}))
            spare.pipe.unlink()
            if taken:
                spare.log.rename(log)
                return spare.process
            spare.process.kill()
        return None


def _release(spare: _Spare, told: Mapping[str, object]) -> bool:
    """Tell the spare which engine it is, as soon as it waits for that; False when it has died, or hangs."""
    deadline = time.monotonic() + _READY_WITHIN
    while spare.process.poll() is None and time.monotonic() < deadline:
        try:
            descriptor = os.open(spare.pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # ENXIO: nobody has it open yet, and there is no event to wait for
            time.sleep(_AGAIN)
            continue
        with os.fdopen(descriptor, "w") as line:
            json.dump(told, line)
        return True
    return False
