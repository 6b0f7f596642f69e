"""What makes an engine as new; it is sent there and runs there, so it needs nothing but the standard library.

As an IPython extension it takes stock when the engine starts, before the first task. ``renew`` goes back to that
stock. What it cannot bring back it tells, and then the engine has to be replaced.
"""

from __future__ import annotations

import asyncio
import builtins
import gc
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from pytest_ipcluster.cluster.remains import Remains

__all__ = ["load_ipython_extension", "renew", "take_stock"]

#: The names under which ipyparallel keeps the function, the arguments and the result of the task that is
#: running.
_OF_A_TASK = re.compile(r"_[0-9a-f]{6,}_\w*(f|args|kwargs|result)$")

#: What of ``sys`` is kept; of lists also what they hold.
_OF_SYS = (
    "path",
    "argv",
    "meta_path",
    "path_hooks",
    "stdin",
    "stdout",
    "stderr",
    "__stdin__",
    "__stdout__",
    "__stderr__",
    "displayhook",
    "excepthook",
)

#: What of IPython's shell is kept.
_OF_SHELL = ("user_module", "user_ns", "execution_count")


class _Names:
    """What the names of a namespace meant, and what the plain containers among them held."""

    def __init__(self, namespace: MutableMapping[str, Any], names: Iterable[str]) -> None:
        self._namespace = namespace
        self._values = {name: namespace[name] for name in names}
        self._contents = {name: _contents(value) for name, value in self._values.items()}

    def give_back(self) -> None:
        """Let every name mean and hold what it did."""
        for name, value in self._values.items():
            if name not in self._namespace or self._namespace[name] is not value:
                self._namespace[name] = value
            _refill(value, self._contents[name])

    def take_away_others(self) -> None:
        """Delete the names that are new, except those of the running task."""
        for name in self._namespace.keys() - self._values.keys():
            if not _OF_A_TASK.match(name):
                del self._namespace[name]


def _contents(value: Any) -> Any:
    """Return a copy of a plain container; None for everything else."""
    if type(value) in (list, dict, set):
        return value.copy()
    return dict(value) if value is os.environ else None


def _refill(value: Any, contents: Any) -> None:
    """Let a container hold what it did; of the environment only what differs is set."""
    if contents is None:
        return
    if isinstance(value, list):
        value[:] = contents
    elif isinstance(value, (dict, set)):
        value.clear()
        value.update(contents)
    else:
        for key in value.keys() - contents.keys():
            del value[key]
        value.update({key: text for key, text in contents.items() if value.get(key) != text})


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _handlers() -> dict[int, Any]:
    """Return the signal handlers. SIGINT's is ipykernel's own business: it sets another one for each task."""
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals() if number != signal.SIGINT}
    return {number: handler for number, handler in handlers.items() if handler is not None}


def _handle(handlers: Mapping[int, Any]) -> None:
    for number, handler in handlers.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


def _block(mask: Iterable[int]) -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _timers() -> dict[int, tuple[float, float]]:
    return {which: signal.getitimer(which) for which in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)}


def _set_timers(timers: Mapping[int, tuple[float, float]]) -> None:
    for which, (delay, interval) in timers.items():
        signal.setitimer(which, delay, interval)


def _limits() -> dict[int, tuple[int, int]]:
    import resource

    kinds = {getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}
    return {kind: resource.getrlimit(kind) for kind in kinds}


def _set_limits(limits: Mapping[int, tuple[int, int]]) -> None:
    import resource

    for kind, limit in limits.items():
        if resource.getrlimit(kind) != limit:
            resource.setrlimit(kind, limit)


#: States of the process: how each is read, and how it is set.
_STATES: list[tuple[Callable[[], Any], Callable[[Any], object]]] = [
    (os.getcwd, os.chdir),
    (_umask, os.umask),
    (sys.getrecursionlimit, sys.setrecursionlimit),
    (sys.gettrace, sys.settrace),
    (sys.getprofile, sys.setprofile),
    (gc.isenabled, lambda wanted: gc.enable() if wanted else gc.disable()),
    (_handlers, _handle),
]
if os.name == "posix":
    _STATES += [
        (lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ()), _block),
        (_timers, _set_timers),
        (_limits, _set_limits),
    ]


@dataclass(frozen=True, slots=True)
class _Stock:
    """How an engine was when it started."""

    shell: Any
    of_shell: dict[str, Any]
    user: _Names
    builtins: _Names
    others: tuple[_Names, ...]
    states: list[Any]
    output: Any
    modules: set[str]
    remains: Remains


_stock: _Stock | None = None


def load_ipython_extension(ip: Any) -> None:
    """Take stock once the engine is ready, but before it can have a task.

    Extensions are loaded before startup files and configuration define names, before the output is redirected and
    before ipyparallel's heart beats. What is called soon comes after all of that, and before the first message.
    """
    asyncio.get_running_loop().call_soon(take_stock, ip)


def take_stock(shell: Any) -> None:
    """Write down how this engine is now."""
    global _stock  # noqa: PLW0603 - one engine, one stock
    _stock = _Stock(
        shell=shell,
        of_shell={name: getattr(shell, name) for name in _OF_SHELL},
        user=_Names(shell.user_ns, [name for name in shell.user_ns if not _OF_A_TASK.match(name)]),
        builtins=_Names(vars(builtins), vars(builtins)),
        others=(
            _Names(vars(sys), [name for name in _OF_SYS if name in vars(sys)]),
            _Names(vars(os), ["environ"]),
            _Names(vars(warnings), ["filters"]),
        ),
        states=[take() for take, _ in _STATES],
        output=sys.stdout,
        modules=set(sys.modules),
        remains=Remains(),
    )


def renew(tests: Iterable[str] = ()) -> list[str]:
    """Bring this engine back to the state that it started in; return what could not be brought back.

    Modules that were imported from the files ``tests`` are forgotten, so that they are imported anew.
    """
    stock = _stock
    if stock is None:
        return ["it has lost the memory of how it started"]
    if _is_ending(stock):
        return ["it was told to end"]
    for (_, give_back), state in zip(_STATES, stock.states, strict=True):
        give_back(state)
    for name, value in stock.of_shell.items():
        if getattr(stock.shell, name) is not value:
            setattr(stock.shell, name, value)
    for names in (stock.user, stock.builtins, *stock.others):
        names.give_back()
    for names in (stock.user, stock.builtins):
        names.take_away_others()
    _forget_modules(stock.modules, set(tests))
    return stock.remains.complaints()


def _is_ending(stock: _Stock) -> bool:
    """Tell whether a SIGTERM came: ipyparallel then gives the output back at once, and ends when its loop turns."""
    return sys.stdout is sys.__stdout__ is not stock.output and sys.stderr is sys.__stderr__


def _forget_modules(known: set[str], files: set[str]) -> None:
    """Forget the modules that were imported from these files since, in their packages as well."""
    for name in sys.modules.keys() - known:
        if getattr(sys.modules[name], "__file__", None) in files:
            del sys.modules[name]
            package, _, last = name.rpartition(".")
            if package in sys.modules:
                vars(sys.modules[package]).pop(last, None)
