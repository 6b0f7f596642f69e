"""What makes an engine as new; it is sent there and runs there, so it needs nothing but the standard library.

The first call, before any test has used the engine, takes stock; every further call goes back to that: the
names in the user's namespace (what startup files and configuration defined stays), the working directory and
``sys.path``.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

__all__ = ["renew", "renew_namespace"]

#: The names under which ipyparallel keeps the function, the arguments and the result of the task that is
#: running.
_OF_A_TASK = re.compile(r"_[0-9a-f]{6,}_\w*(f|args|kwargs|result)$")


@dataclass(slots=True)
class _Stock:
    names: dict[str, Any]
    folder: str
    path: list[str]


_stock: _Stock | None = None


def renew() -> None:
    """Bring this engine back to the state it was in at the first call."""
    from IPython import get_ipython

    global _stock  # noqa: PLW0603 - one engine, one stock
    namespace = get_ipython().user_ns
    if _stock is None:
        _stock = _Stock(_lasting(namespace), os.getcwd(), list(sys.path))
        return
    os.chdir(_stock.folder)
    sys.path[:] = _stock.path
    renew_namespace(namespace, _stock.names)


def renew_namespace(namespace: MutableMapping[str, Any], names: MutableMapping[str, Any]) -> None:
    """Make ``namespace`` hold exactly ``names``, and what belongs to the running task."""
    for name in _lasting(namespace).keys() - names.keys():
        del namespace[name]
    namespace.update(names)


def _lasting(namespace: MutableMapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in namespace.items() if not _OF_A_TASK.match(name)}
