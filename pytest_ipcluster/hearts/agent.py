"""What an engine runs at start: its heart, a card that says which process it is, and what it is to tell and to obey.

This is an IPython extension. It reads the section ``HeartAgent`` of the engine's configuration:

``ping``, ``pong``
    The two addresses of the heart monitor. Without both of them no heart is started.
``key_file``
    The file with the keys of the hearts, see :meth:`HeartKeys.write`, for a monitor that has some.
``cards``
    The folder that takes this engine's card, ``<ident>.json``, and the file that tells its task. Without it no card is
    written.
``stacks``
    The folder that takes the stacks of this engine's threads, ``<ident>.txt``, whenever SIGUSR1 comes. Without it, or
    on a system that has no such signal, nobody can ask for them.
``importable``
    Folders that code on the engine may import from; they are added at the end of ``sys.path``.

Needs IPython's engine around it and pyzmq; nothing here imports pytest or touches the user's namespace.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from pytest_ipcluster.hearts.crash import obey, order_file
from pytest_ipcluster.hearts.farewell import farewell_file, say_farewell
from pytest_ipcluster.hearts.heart import Heart
from pytest_ipcluster.hearts.keys import HeartKeys
from pytest_ipcluster.hearts.tasks import task_file, tell_tasks

__all__ = ["load_ipython_extension", "unload_ipython_extension"]

# Hearts by engine ident: the reference keeps them alive, the key keeps a reloaded extension from starting a
# second one.
_beating: dict[str, Heart] = {}

# The files that stacks are written to: faulthandler knows only the number of a descriptor.
_stack_files: dict[str, BinaryIO] = {}


def load_ipython_extension(ip: Any) -> None:
    """Make folders importable, start the heart, then hand in the card: a card means that all the rest is there."""
    settings = ip.config.HeartAgent
    _make_importable(settings.get("importable", ()))
    if settings.get("ping") and settings.get("pong"):
        keys = HeartKeys.read(Path(settings["key_file"])) if settings.get("key_file") else None
        _start_heart(ip.kernel.ident, str(settings["ping"]), str(settings["pong"]), keys)
    if settings.get("stacks"):
        _offer_stacks(ip.kernel.ident, Path(settings["stacks"]))
    if settings.get("cards"):
        cards = Path(settings["cards"])
        tell_tasks(ip.kernel, task_file(cards, ip.kernel.ident))
        say_farewell(ip.kernel, farewell_file(cards, ip.kernel.ident))
        obey(order_file(cards, ip.kernel.ident))
        _write_card(cards, _describe(ip.kernel))


def unload_ipython_extension(ip: Any) -> None:
    """Stop this engine's heart, if it has one, and offer no stacks any more."""
    heart = _beating.pop(ip.kernel.ident, None)
    if heart is not None:
        heart.stop()
    file = _stack_files.pop(ip.kernel.ident, None)
    if file is not None:
        faulthandler.unregister(signal.SIGUSR1)
        file.close()
        Path(file.name).unlink(missing_ok=True)


def _make_importable(folders: Iterable[str]) -> None:
    sys.path.extend(folder for folder in dict.fromkeys(map(str, folders)) if folder not in sys.path)


def _start_heart(ident: str, ping: str, pong: str, keys: HeartKeys | None) -> None:
    if ident not in _beating:
        _beating[ident] = Heart(ping, pong, heart_id=ident, keys=keys)
        _beating[ident].start()


def _offer_stacks(ident: str, folder: Path) -> None:
    """Write the stacks of all threads when SIGUSR1 comes; that needs no interpreter, so a busy one can be asked too."""
    able = hasattr(signal, "SIGUSR1") and hasattr(faulthandler, "register")
    if able and folder.is_dir() and ident not in _stack_files:  # on another host the folder may not be there
        file = _stack_files[ident] = open(folder / f"{ident}.txt", "ab", buffering=0, opener=_privately)  # noqa: SIM115
        faulthandler.register(signal.SIGUSR1, file, all_threads=True)


def _privately(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _describe(kernel: Any) -> dict[str, object]:
    """Return what the card says; ``nanny`` is the pid of the engine's nanny, or None when it has none."""
    nanny = getattr(kernel.parent, "nanny_pipe", None)
    return {
        "ident": kernel.ident,
        "id": kernel.engine_id,
        "pid": os.getpid(),
        "nanny": getattr(nanny, "pid", None),
        "host": socket.gethostname(),
    }


def _write_card(folder: Path, card: Mapping[str, object]) -> None:
    """Write the card so that a reader finds it whole or not at all, and only its owner can read it."""
    descriptor, unfinished = tempfile.mkstemp(dir=folder, suffix=".tmp")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(card, file)
        os.replace(unfinished, folder / f"{card['ident']}.json")
    except BaseException:
        Path(unfinished).unlink(missing_ok=True)
        raise
