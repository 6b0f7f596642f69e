"""The warden: starts everything of one cluster, outlives the process it works for, and leaves nothing behind.

A script in a process of its own, for whatever happens to pytest must not happen to it. It imports nothing of
ours; psutil comes with ipyparallel. It is told what to do by lines of JSON on its standard input:

``{"owner": pid, "since": time, "mark": [name, value], "parent": folder, "folder": folder or null, "grace": seconds,
"boss": pid or null}``
    The first line: for whom it works and since when that runs, the environment variable that marks what it owns,
    where to make the private folder (or the one to take over), how long what it started may take to end, and the
    owner's parent if the owner is nothing without it.
``{"start": number, "command": [...], "environment": {...}, "output": file, "folder": folder}``
    Start a process. The answer is ``{"started": number, "pid": pid}`` or ``{"failed": number, "errno": ...}``.
``{"end": true}``
    Put everything down and end.

and it says ``{"ready": folder, "missing": [...]}`` first, and ``{"ended": pid, "code": code}`` for every child.

The owner's end is noticed in three ways, since each alone has a hole: the input ends (not when a fork of the
owner holds it open), the owner's pidfd (not everywhere, not when the owner becomes another program by exec), and
the parent's pid (a moment late). What it owns: whatever descends from it (orphans are handed to it, where the
system can do that), carries exactly the mark in its environment, or stands in ipcluster's own file as a local
process. Never a name. A process is a pid and its start time, which is what psutil compares.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psutil

#: From <linux/prctl.h>.
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36

#: Seconds between two looks at the parent's pid.
_LOOK_EVERY = 0.5

#: Seconds after which what was killed is left to the kernel.
_LAST_CALL = 10.0

#: Seconds between two looks for survivors; the end of a process that is not a child gives no notice.
_AGAIN = 0.01

#: Seconds that Linux gets to start a program.
_EXEC = 1.0

#: What a system calls by two names for the same start time may differ by so many seconds, as clocks are corrected.
_SAME_START = 2.0

#: Launchers whose processes run here, by the names that ipcluster writes down; some versions write the class instead.
_LOCAL_LAUNCHERS = ("local", "forkserver")

#: The file in the private folder that tells the next run's warden whose it is. It is locked while its warden lives.
OWNER_FILE = "owner.json"


class Warden:
    """One cluster's keeper. ``hello`` is the first line of the input."""

    def __init__(self, hello: dict[str, Any]) -> None:
        self.owner = int(hello["owner"])
        self._boss: int | None = hello.get("boss")
        self.mark: tuple[str, str] = tuple(hello["mark"])
        self.grace = float(hello["grace"])
        self.children: dict[int, subprocess.Popen[bytes]] = {}
        self.missing: list[str] = []
        self.started_at = time.time()
        self._input = b""
        self._unsaid = b""
        self._known: set[psutil.Process] = set()
        self._bell = self._hear_signals()
        self._owner_fds = self._watch_owner()
        self._adopt_orphans()
        self.folder = _private_folder(hello)
        self._lock = _sign(self.folder, {name: hello[name] for name in ("owner", "since", "mark")})

    # -- what happens ------------------------------------------------------------------------------

    def _hear_signals(self) -> int:
        """Let signals do nothing but wake; a handler, unlike SIG_IGN, is not inherited by what is started."""
        bell, ring = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK) if hasattr(os, "pipe2") else _pipe()
        signal.set_wakeup_fd(ring, warn_on_full_buffer=False)
        for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGCHLD"):
            signal.signal(getattr(signal, name), _ignore)
        return bell

    def _watch_owner(self) -> list[int]:
        """Return descriptors that tell when the owner, or the one that it is nothing without, is gone."""
        found: list[int] = []
        try:
            found.append(os.pidfd_open(self.owner))
            if self._boss is not None:
                found.append(os.pidfd_open(self._boss))
        except ProcessLookupError:  # gone already: the parent's pid tells, or the end of the input
            return found
        except (AttributeError, OSError):  # not every system has it
            self.missing.append("pidfd")
        return found

    def _adopt_orphans(self) -> None:
        if _prctl(_PR_SET_CHILD_SUBREAPER, 1) != 0:
            self.missing.append("child subreaper")

    def run(self) -> None:
        """Serve the owner until it is gone or has had enough; then put everything down."""
        os.set_blocking(sys.stdout.fileno(), False)  # nobody may read: that must not hold us up
        self.say({"ready": str(self.folder), "missing": self.missing})
        swept = False
        while self._serve():
            if not swept and self.children:  # while what was started gets going
                import psutil  # noqa: F401 - now, since the environment may be gone when it is needed

                sweep_stale(self.folder)
                swept = True
        self.put_down()
        if not swept:
            sweep_stale(self.folder)

    def _serve(self) -> bool:
        """Wait for the next thing to happen and see to it; False when the owner is gone or has had enough."""
        told, _, _ = select.select(self._senses(), [], [], _LOOK_EVERY)
        self._drain_bell()
        self.reap()
        self._speak()
        if os.getppid() != self.owner or set(self._owner_fds) & set(told):
            return False
        return 0 not in told or self._obey(os.read(0, 65536))

    def _senses(self) -> list[int]:
        return [0, self._bell, *self._owner_fds]

    def _drain_bell(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._bell, 4096)

    def _obey(self, chunk: bytes) -> bool:
        """Do what the lines say; False at the end of the input or when told to end."""
        *lines, self._input = (self._input + chunk).split(b"\n")
        orders = [json.loads(line) for line in lines]
        for order in orders:
            if "start" in order:
                self.start(order)
        return bool(chunk) and not any("end" in order for order in orders)

    def say(self, line: dict[str, Any]) -> None:
        """Tell the owner something, now or as soon as it listens."""
        self._unsaid += json.dumps(line).encode() + b"\n"
        self._speak()

    def _speak(self) -> None:
        while self._unsaid:
            try:
                self._unsaid = self._unsaid[os.write(1, self._unsaid) :]
            except BlockingIOError:
                return
            except BrokenPipeError:  # the owner is gone, which is noticed elsewhere
                self._unsaid = b""

    # -- children ----------------------------------------------------------------------------------

    def start(self, order: dict[str, Any]) -> None:
        """Start a process in a session of its own, its output into a file, that is told to end when the warden dies."""
        try:
            with open(order["output"], "ab") as output:
                child = subprocess.Popen(
                    order["command"],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=order["environment"],
                    cwd=order["folder"],
                    start_new_session=True,
                    preexec_fn=_die_with(os.getpid()),  # noqa: PLW1509 - there is no other thread here
                )
        except OSError as error:
            failure = {"errno": error.errno, "strerror": error.strerror, "filename": error.filename}
            self.say({"failed": order["start"], **failure})
            return
        self.children[child.pid] = child
        self.say({"started": order["start"], "pid": child.pid})

    def reap(self) -> None:
        """See off every child that has ended, the adopted ones too, and tell how it ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            if (child := self.children.pop(pid, None)) is not None:
                child.returncode = code
            self.say({"ended": pid, "code": code})

    # -- the end -----------------------------------------------------------------------------------

    def put_down(self) -> None:
        """Ask what was started to end, give it the grace, then freeze and kill whatever is owned; remove the folder."""
        for child in self.children.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGTERM)
        deadline = time.monotonic() + self.grace
        while self.children and (left := deadline - time.monotonic()) > 0:
            select.select([self._bell], [], [], left)
            self._drain_bell()
            self.reap()
        self.sweep()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._speak()

    def sweep(self) -> None:
        """Freeze and kill what is owned, and look again, until nothing is found twice.

        Frozen first, so that nothing forks away between the look and the kill.
        """
        deadline, quiet = time.monotonic() + _LAST_CALL, 0
        while quiet < 2 and time.monotonic() < deadline:
            found = self.owned()
            quiet = 0 if found else quiet + 1
            _send(found, signal.SIGSTOP)
            _send(found, signal.SIGKILL)
            select.select([self._bell], [], [], _AGAIN)
            self._drain_bell()
            self.reap()

    def owned(self) -> set[psutil.Process]:
        """Return every living process that is ours, by descent, by its mark, or by ipcluster's own file."""
        import psutil

        self._known |= set(psutil.Process().children(recursive=True)) | _marked(*self.mark)
        for path in self.folder.glob("ipython/*/security/cluster-*.json"):
            self._known |= set(_filed(path, self.started_at))
        for process in list(self._known):
            with contextlib.suppress(psutil.NoSuchProcess):
                self._known |= set(process.children(recursive=True))
        protected = {0, 1, os.getpid(), self.owner}
        return {process for process in self._known if process.pid not in protected and _lives(process)}


def _filed(path: Path, started_at: float) -> Iterator[psutil.Process]:
    """Yield the local processes that ipcluster has written down here.

    A pid counts when its process began after the warden and before the file was written: one that was given the
    pid later began later. Other launchers than the local ones write down pids of other hosts.
    """
    import psutil

    try:
        written_at, content = path.stat().st_mtime, json.loads(path.read_text())
    except (OSError, ValueError):  # being written or removed: marks and descent remain
        return
    for pid in _local_pids(content):
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if started_at - _SAME_START < process.create_time() < written_at:
                yield process


def _local_pids(content: dict[str, Any]) -> Iterator[int]:
    for part in (content.get("controller") or {}, content.get("engines") or {}):
        name = str(part.get("class"))
        if name not in _LOCAL_LAUNCHERS and "launcher.Local" not in name:
            continue
        states = [part.get("state") or {}]
        for engines in (part.get("sets") or {}).values():
            states += (engines.get("engines") or {}).values()
        yield from (state["pid"] for state in states if isinstance(state.get("pid"), int))


# -- what an earlier run left ------------------------------------------------------------------------


def sweep_stale(mine: Path) -> None:
    """Remove what runs beside ``mine`` have left that had no chance to clean up: after a power cut, say.

    A folder of this user is stale when nobody holds its lock and the process that it was made for is gone.
    """
    for folder in mine.parent.glob("ipcluster-*"):
        with contextlib.suppress(OSError, ValueError, KeyError):  # not signed: not one of ours, or just being made
            if folder == mine or folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            owner = json.loads((folder / OWNER_FILE).read_text())
            if _unlocked(folder / OWNER_FILE) and not _is_there(owner["owner"], owner["since"]):
                _send(_marked(*owner["mark"]), signal.SIGKILL)
                shutil.rmtree(folder, ignore_errors=True)


def _unlocked(path: Path) -> bool:
    import fcntl

    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _is_there(pid: int, since: float) -> bool:
    import psutil

    try:
        return bool(abs(psutil.Process(pid).create_time() - since) < _SAME_START)
    except psutil.NoSuchProcess:
        return False


def _private_folder(hello: dict[str, Any]) -> Path:
    """Return the folder to guard: a new one (mode 0700), or the one that a warden before us has left."""
    if hello["folder"]:
        return Path(hello["folder"])
    # The name is short: the path of a socket in it must stay below 104 bytes.
    return Path(tempfile.mkdtemp(prefix="ipcluster-", dir=hello["parent"]))


def _sign(folder: Path, whose: dict[str, Any]) -> Any:
    """Write down whose folder this is, and hold the lock of the file for as long as we live."""
    import fcntl

    file = (folder / OWNER_FILE).open("w", encoding="utf-8")
    fcntl.flock(file, fcntl.LOCK_EX)  # another warden may be looking whether it is locked
    json.dump(whose, file)
    file.flush()
    return file


# -- processes ---------------------------------------------------------------------------------------


def _marked(name: str, value: str) -> set[psutil.Process]:
    """Return every process that was given exactly this mark."""
    import psutil

    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # not ours to read
            if _environment(process).get(name) == value:
                found.add(process)
    return found


def _environment(process: psutil.Process) -> dict[str, str]:
    """Return the environment that a process was given; one that is just being started shows nothing for a moment."""
    if found := process.environ():
        return found
    deadline = time.monotonic() + _EXEC
    while process.exe() and not process.cmdline() and time.monotonic() < deadline:
        time.sleep(0.001)  # the end of an exec announces itself to nobody
    return process.environ()


def _lives(process: psutil.Process) -> bool:
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD))
    return False


def _send(processes: set[psutil.Process], signum: int) -> None:
    import psutil

    for process in processes:
        with contextlib.suppress(psutil.Error, OSError):  # gone meanwhile, or not ours to signal
            process.send_signal(signum)


def _die_with(warden: int) -> Any:
    """Return what a child does before it becomes its program: have the kernel end it when the warden dies."""
    if sys.platform != "linux":
        return None

    def prepare() -> None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != warden:  # it died before that was arranged
            os._exit(1)

    return prepare


def _prctl(option: int, value: int) -> int:
    """Call Linux's prctl; -1 where there is none."""
    if sys.platform != "linux":
        return -1
    return int(ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0))


def _pipe() -> tuple[int, int]:
    ends = os.pipe()
    for end in ends:
        os.set_blocking(end, False)
    return ends


def _ignore(signum: int, frame: object) -> None:
    """Do nothing: that it came has been written to the wake-up pipe."""


def main() -> None:
    """Read the first line, then serve."""
    first = b""
    while not first.endswith(b"\n"):  # byte by byte: what follows is read elsewhere
        if not (byte := os.read(0, 1)):
            return
        first += byte
    warden = Warden(json.loads(first))
    os.chdir("/")  # no folder is kept busy by us
    with (warden.folder / "warden.log").open("ab") as log:
        os.dup2(log.fileno(), 2)
    warden.run()


if __name__ == "__main__":
    main()
    os._exit(0)  # without the finalizers of Popen objects, which have nothing to wait for
