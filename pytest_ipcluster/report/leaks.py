"""What is still there that was not there before: threads, sockets and other descriptors of this process.

A snapshot costs about a quarter of a millisecond, so that one can be taken before and after every test. What things
are in detail is looked up only for those that are left.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

__all__ = [
    "PATIENCE",
    "Leak",
    "Snapshot",
    "leaks_in",
    "log_files",
    "open_pools",
    "pipes_of",
    "process_leak",
    "settled",
    "take_snapshot",
]

#: Seconds that whatever is ending gets to end: a thread that was told to stop, a socket that libzmq closes by itself.
PATIENCE = 1.0

#: Seconds between two looks at what is ending.
_AGAIN = 0.005

#: Where Linux tells what each descriptor of a process leads to.
_FDS = "/proc/{}/fd"

#: What a descriptor leads to where the system does not tell.
_UNTOLD = "of a kind that this system does not tell"

#: How the names of threads begin that end when their owners see fit: the timer of pytest-timeout goes after the test,
#: that of tqdm's bars with the interpreter, and when a thread that Python has not started ends is not known to it.
_INNOCENT = ("pytest_timeout", "tqdm_monitor", "Dummy-")

#: The most characters of a command line that are shown.
_COMMAND_LENGTH = 120


@dataclass(frozen=True, slots=True)
class Leak:
    """One thing that is left: its ``kind``, and in words ``what`` it is.

    The kinds are "process", "folder", "thread", "socket" and "descriptor".
    """

    kind: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind} {self.what}"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The threads and the descriptors of this process at one moment, and the arithmetic of such moments.

    A thread is its object, since the system gives idents again. A descriptor is what it leads to, since the system
    gives its numbers again: a socket, a pipe and a file are told apart, nameless ones (``eventfd``) are counted.
    """

    threads: frozenset[threading.Thread]
    descriptors: Counter[str]

    def __bool__(self) -> bool:
        return bool(self.threads or self.descriptors)

    def __sub__(self, other: Snapshot) -> Snapshot:
        """What is here and not there."""
        return Snapshot(self.threads - other.threads, self.descriptors - other.descriptors)

    def __add__(self, other: Snapshot) -> Snapshot:
        """What is here, and what is there."""
        return Snapshot(self.threads | other.threads, self.descriptors + other.descriptors)

    def __and__(self, other: Snapshot) -> Snapshot:
        """What is in both."""
        return Snapshot(self.threads & other.threads, self.descriptors & other.descriptors)

    def without(self, innocent: Collection[str]) -> Snapshot:
        """Leave out these files and pipes, and the sockets whose own end is at one of these addresses.

        A file is its path, a pipe its name, an address ``host:port`` or the path of a Unix socket.
        """
        ends = _sockets() if any(map(_is_socket, self.descriptors)) else {}
        kept = {d: n for d, n in self.descriptors.items() if not {d, ends.get(d, ("", ""))[0]} & set(innocent)}
        return Snapshot(self.threads, Counter(kept))


def take_snapshot() -> Snapshot:
    """Look at this process. Where the system does not tell descriptors apart they are counted, or left out."""
    threads = frozenset(t for t in threading.enumerate() if not t.name.startswith(_INNOCENT))
    return Snapshot(threads, _descriptors())


def pipes_of(pid: int) -> set[str]:
    """Return the pipes of a process by the names that descriptors of ours lead to; none where that cannot be told."""
    with contextlib.suppress(OSError):
        return {name for name in _descriptors_of(pid) if name.startswith("pipe:")}
    return set()


def _descriptors() -> Counter[str]:
    try:
        return _descriptors_of("self")
    except OSError:
        return _counted()


def _descriptors_of(pid: int | str) -> Counter[str]:
    found: Counter[str] = Counter()
    folder = _FDS.format(pid)
    for number in os.listdir(folder):
        with contextlib.suppress(OSError):  # closed meanwhile, as the one that made the list is
            found[os.readlink(f"{folder}/{number}")] += 1
    return found


def _counted() -> Counter[str]:
    import psutil

    count = getattr(psutil.Process(), "num_fds", None)  # Windows has none
    return Counter() if count is None else Counter({_UNTOLD: count()})


def open_pools() -> None:
    """Open what pyzmq opens when it is first needed and then keeps: its shared context, and its collector's thread.

    Opened before the first snapshot, they are nobody's leak. A message that is sent without a copy needs both.
    """
    import zmq

    address = f"inproc://{uuid.uuid4()}"  # a name that was used is free again only a while after
    near: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PAIR)
    far: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PAIR)
    with near, far:
        near.copy_threshold = 0
        near.bind(address)
        far.connect(address)
        near.send(b"warm", copy=False)
        far.recv()


def log_files() -> set[str]:
    """Return the files that logging writes to: they stay open for as long as their handlers do."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    handlers = [handler for logger in loggers for handler in getattr(logger, "handlers", ())]  # a placeholder has none
    return {os.path.realpath(handler.baseFilename) for handler in handlers if isinstance(handler, logging.FileHandler)}


def settled(look: Callable[[], Snapshot], patience: float = PATIENCE) -> Snapshot:
    """Return what ``look()`` finds and goes on finding for ``patience`` seconds; at once when that is nothing.

    However long the machine stands still meanwhile, there are a quarter of the looks that there is time for.
    """
    found = look()
    if found:
        gc.collect()  # what nobody can reach any more closes itself
    deadline, looks = time.monotonic() + patience, patience / _AGAIN / 4
    while found and (time.monotonic() < deadline or looks > 0):
        time.sleep(_AGAIN)  # there is no notice of a descriptor that another thread closes
        looks -= 1
        found = look()
    return found


# -- in words ------------------------------------------------------------------------------------------


def leaks_in(left: Snapshot) -> list[Leak]:
    """Say what each thing is: threads first, then sockets with their addresses, then other descriptors."""
    threads = sorted(left.threads, key=lambda thread: thread.name)
    return [
        *(Leak("thread", f"{thread.name!r} (ident {thread.ident}{_kind(thread)})") for thread in threads),
        *_socket_leaks(left.descriptors),
        *_other_leaks(left.descriptors),
    ]


def _kind(thread: threading.Thread) -> str:
    """Return whose kind of thread this is, which says more than its number; empty for a plain one."""
    kind = type(thread)
    return "" if kind is threading.Thread else f", {kind.__module__}.{kind.__qualname__}"


def _socket_leaks(descriptors: Iterable[str]) -> Iterator[Leak]:
    names = sorted(filter(_is_socket, descriptors))
    ends = _sockets() if names else {}
    for name in names:
        near, far = ends.get(name, ("", ""))
        yield Leak("socket", f"{near or 'without an address'}{' -> ' if far else ''}{far}")


def _other_leaks(descriptors: Mapping[str, int]) -> Iterator[Leak]:
    for name, count in sorted(descriptors.items()):
        if not _is_socket(name):
            yield Leak("descriptor", name if count == 1 else f"{name}, {count} of them")


def _is_socket(descriptor: str) -> bool:
    return descriptor.startswith("socket:")


def _sockets() -> dict[str, tuple[str, str]]:
    """Return the addresses of both ends of this process's sockets, by what their descriptors lead to."""
    import psutil

    process = psutil.Process()
    connections = getattr(process, "net_connections", None) or process.connections  # its name before psutil 6
    found = {}
    for connection in connections(kind="all"):
        with contextlib.suppress(OSError):  # closed meanwhile
            ends = (_address(connection.laddr), _address(connection.raddr))
            found[os.readlink(f"{_FDS.format('self')}/{connection.fd}")] = ends
    return found


def _address(address: tuple[str, int] | str | None) -> str:
    """Return ``host:port``, or the path of a Unix socket; empty when there is none."""
    if not address:
        return ""
    return address if isinstance(address, str) else f"{address[0]}:{address[1]}"


def process_leak(process: psutil.Process, roles: Mapping[int, str]) -> Leak:
    """Say what this process is; ``roles`` are the words for processes that could be its parent, by pid."""
    import psutil

    try:
        with process.oneshot():
            command = " ".join(process.cmdline())[:_COMMAND_LENGTH] or process.name()
            parent, age = process.ppid(), time.time() - process.create_time()
    except psutil.Error as error:
        return Leak("process", f"pid {process.pid} ({error})")
    role = f" ({roles[parent]})" if parent in roles else ""
    return Leak("process", f"pid {process.pid}: {command} (its parent: pid {parent}{role}; its age: {age:.1f} s)")
