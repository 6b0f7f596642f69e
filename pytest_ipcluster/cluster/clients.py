"""Clients of a cluster, and the imports that they take."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ipyparallel import Client

__all__ = ["connected", "import_ahead", "leave"]

#: What talks to the hub, and what a client is made of: the longest imports that there are here.
_WANTED_SOON = ("jupyter_client.session", "ipyparallel")


def connected(connection: str | dict[str, Any], handing_out: Callable[[Client], object], **options: Any) -> Client:
    """Return a new client that is connected by this file, or by what would be in it; ``handing_out`` has it first.

    Name its ``ipython_dir``: it asks for IPython's folder even when it needs nothing from there, and so creates the
    user's.
    """
    from ipyparallel import Client

    client = Client(connection, **options)
    try:
        handing_out(client)
    except BaseException:
        client.close(linger=0)
        raise
    return client


def leave(_: Client) -> None:
    """Let a client be as it is."""


def import_ahead() -> None:
    """Import what is wanted as soon as the cluster is there, in a moment when that has nothing to do.

    In a thread, where Ctrl-C does not arrive: importing code loses it, in weak references and in bare ``except``.
    """
    threading.Thread(target=_import_all, args=(_WANTED_SOON,), name="ipcluster-imports", daemon=True).start()


def _import_all(names: Iterable[str]) -> None:
    for name in names:
        importlib.import_module(name)
