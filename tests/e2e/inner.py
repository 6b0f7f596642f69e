"""One inner pytest run with a real cluster: brought up, watched, ended from outside, and searched for what it left."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil
from leftovers import PATIENCE, Left, carries, links_of, told, wait_for_one, wait_until_gone

from pytest_ipcluster.cluster.processes import MARK, descendants, is_alive, is_paused, wait_gone
from pytest_ipcluster.cluster.roles import read_roles
from pytest_ipcluster.cluster.wakeup import Wakeup

#: Seconds after pytest's end by which nothing of it may be left.
LIMIT = 6.0

#: What is started in the background of a shell script ignores some signals, and would hand that down.
PYTEST = """
import resource, signal, sys, pytest
signal.signal(signal.SIGINT, signal.default_int_handler)
for name in ("SIGTERM", "SIGHUP", "SIGQUIT"):
    signal.signal(getattr(signal, name), signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
sys.exit(pytest.main())
"""

#: What every inner run finds in its folder: how it talks to the outer one, and its ``conftest.py``.
INSIDE = Path(__file__).parent / "inside"
MOMENTS = (INSIDE / "moments.py").read_text()
CONFTEST = (INSIDE / "announcements.py").read_text()


class Run:
    """An inner pytest run in a session of its own, with a temporary folder of its own.

    ``modules`` maps names to sources, ``conftest`` is added to ours. A context manager: whatever was started is
    gone when the block ends.
    """

    def __init__(self, folder: Path, modules: Mapping[str, str], *arguments: str, conftest: str = "") -> None:
        self.folder = folder
        self.temp = Path(tempfile.mkdtemp(prefix="r-"))  # short: sockets live below it
        self.mark = secrets.token_hex(8)
        self.told: list[str] = []
        self.engines: list[psutil.Process] = []
        self.ipclusters: list[psutil.Process] = []
        self._words: list[dict[str, Any]] = []
        self._seen: set[psutil.Process] = set()
        self._spared: set[psutil.Process] = set()
        self._fds = {name: self._fifo(name) for name in ("words", "go")}
        for name, text in {**modules, "moments": MOMENTS, "conftest": CONFTEST + conftest}.items():
            (folder / f"{name}.py").write_text(text)
        self.process = self._start(arguments)
        self.main = psutil.Process(self.process.pid)

    def _fifo(self, name: str) -> int:
        os.mkfifo(self.folder / name)
        return os.open(self.folder / name, os.O_RDWR | os.O_NONBLOCK)  # for both, so that no open() ever waits

    def _start(self, arguments: Iterable[str]) -> subprocess.Popen[bytes]:
        # A run of pytest-xdist's or a user's own settings must not reach the inner run.
        kept = {n: v for n, v in os.environ.items() if not n.startswith("PYTEST_") or n == "PYTEST_IPCLUSTER_SUITE"}
        ours = {"PYTEST_IPCLUSTER_RUN": self.mark, "TMPDIR": str(self.temp)}
        fifos = {"RUN_WORDS": str(self.folder / "words"), "RUN_GO": str(self.folder / "go")}
        options = ["-p", "no:cacheprovider", f"--basetemp={self.folder / 'base'}", f"--rootdir={self.folder}"]
        # Not into a pipe: a process that outlives pytest would keep it open.
        with (self.folder / "output").open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-c", PYTEST, *options, "--ipcluster-n=1", *arguments],
                cwd=self.folder,
                env={**kept, **ours, **fifos},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    # -- before the end ----------------------------------------------------------------------------

    def hear(self, word: str) -> dict[str, Any]:
        """Wait until the inner run says this word, and return the facts that it adds."""
        deadline = time.monotonic() + PATIENCE
        with Wakeup() as wakeup:
            wakeup.watch_fd(self._fds["words"])
            alive = wakeup.watch_process(self.main)
            while (facts := self._take(word)) is None:
                assert alive, f"pytest ended before it said {word!r}\n{self.output()}"
                assert time.monotonic() < deadline, f"pytest did not say {word!r}\n{self.output()}"
                wakeup.wait(deadline - time.monotonic())
                alive = is_alive(self.main)
        return facts

    def _take(self, word: str) -> dict[str, Any] | None:
        self._listen()
        found = next((facts for facts in self._words if facts["word"] == word), None)
        if found is not None:
            self._words.remove(found)
        return found

    def _listen(self) -> None:
        try:
            lines = os.read(self._fds["words"], 1 << 20).splitlines()  # whole: each is one short write
        except BlockingIOError:
            return
        self._words += map(json.loads, lines)
        self.told = [*self.told, *(json.loads(line)["word"] for line in lines)]

    def up(self, clusters: int = 1) -> None:
        """Wait until so many clusters are up, make sure of it, note all processes, and let the run go on."""
        for _ in range(clusters):
            facts = self.hear("up")
            self.engines += map(psutil.Process, facts["engines"])
            self.ipclusters.append(psutil.Process(facts["ipcluster"]))
        expected = 10 * clusters + 2 * len(self.engines)
        found = self.cluster()
        assert len(found) >= expected, f"{len(found)} processes of clusters, not {expected}: {told(found)}"
        assert found.issuperset([*self.engines, *self.ipclusters, *self.hubs()])
        for _ in range(clusters):
            self.go()

    def go(self) -> None:
        """Let one ``wait()`` of the inner run return."""
        os.write(self._fds["go"], b"\n")

    def look(self) -> set[psutil.Process]:
        """Note and return every living process of the run, pytest included."""
        found = {p for p in psutil.process_iter() if carries(p, "PYTEST_IPCLUSTER_RUN", self.mark)}
        for process in list(found):
            found |= descendants(process)
        self._seen |= found
        return {p for p in self._seen if is_alive(p)}

    def cluster(self) -> set[psutil.Process]:
        """Return the living processes that belong to a cluster of the run."""
        return {process for process in self.look() if carries(process, MARK)}

    def hubs(self) -> list[psutil.Process]:
        """Return the controllers, as ipcluster's own files name them."""
        found = [
            read_roles(path).controller for path in self.temp.glob("ipcluster-*/ipython/*/security/cluster-*.json")
        ]
        return [psutil.Process(hub.pid) for hub in found if hub is not None]

    def warden(self) -> psutil.Process:
        """Return the process that stands between pytest and ipcluster."""
        parent = self.ipclusters[0].parent()
        assert parent not in (None, self.main), "nothing stands between pytest and ipcluster"
        return parent

    def forkserver(self) -> psutil.Process:
        """Return the process that has forked the engines: the warden's other child."""
        [server] = set(self.warden().children()) - set(self.ipclusters)
        return server

    def note(self, pid: int) -> psutil.Process:
        """Note a process that nothing else would find."""
        process = psutil.Process(pid)
        self._seen.add(process)
        return process

    @staticmethod
    def descriptors(process: psutil.Process) -> set[str]:
        """Return the pipes and sockets that a process holds, by their inodes."""
        return {link for link in links_of(process) if link.startswith(("pipe:", "socket:"))}

    def spare(self, process: psutil.Process) -> None:
        """Do not count this process as left: it is the test's own."""
        self._spared.add(process)

    def until(self, reached: Callable[[], object], what: str) -> None:
        """Wait for a state of the run that announces itself by no event."""
        deadline = time.monotonic() + PATIENCE
        while not reached():
            assert is_alive(self.main), f"pytest ended before {what}\n{self.output()}"
            assert time.monotonic() < deadline, f"it never came to this: {what}\n{self.output()}"
            time.sleep(0.002)  # what another process does to files, or to a third process, has no event here

    def until_file(self, pattern: str) -> None:
        """Wait until a file of this pattern exists below the run's temporary folder."""
        self.until(lambda: any(self.temp.glob(pattern)), f"{pattern} existed")

    # -- ways to end it ----------------------------------------------------------------------------

    def send(self, signum: int) -> None:
        """Send a signal to pytest, which must be alive."""
        assert is_alive(self.main), f"pytest ended before signal {signum}\n{self.output()}"
        self.main.send_signal(signum)

    def send_group(self, signum: int) -> None:
        """Send a signal to pytest's process group, as a terminal does."""
        assert os.getpgid(self.main.pid) == self.main.pid
        assert is_alive(self.main), f"pytest ended before signal {signum}\n{self.output()}"
        os.killpg(self.main.pid, signum)

    def kill(self, process: psutil.Process) -> None:
        """Kill one process of the run and wait until it is gone."""
        assert is_alive(process)
        process.kill()
        wait_until_gone(process)

    def freeze(self, processes: Iterable[psutil.Process]) -> None:
        """Stop processes by SIGSTOP and wait until they stand still."""
        frozen = list(processes)
        for process in frozen:
            process.suspend()
        self.until(lambda: all(map(is_paused, frozen)), "all were frozen")

    # -- after the end -----------------------------------------------------------------------------

    def end(self) -> int:
        """Wait until pytest is gone; return its exit code, negative for a signal."""
        code = self.process.wait(PATIENCE)
        self._listen()
        return code

    def settle(self, limit: float = LIMIT) -> Left:
        """Wait until nothing is left of the run, at most ``limit`` seconds from now."""
        begun = time.monotonic()
        while (seconds := time.monotonic() - begun) < limit:
            left = self._left()
            if not left and not self.folders():
                break
            # A folder's removal by another process has no event here, and a process that ends may start another.
            wait_for_one(left, min(0.05, limit - seconds))
        return Left(tuple(told(self._left())), tuple(self.folders()), seconds)

    def _left(self) -> set[psutil.Process]:
        return self.look() - self._spared

    def folders(self) -> list[str]:
        """Return what is in the run's temporary folder, which nothing but clusters writes to."""
        return sorted(path.name for path in self.temp.iterdir())

    def output(self) -> str:
        """Return what pytest has written so far."""
        return (self.folder / "output").read_text(errors="replace")

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.look():
            process.kill()
        self.process.wait(PATIENCE)
        wait_gone(self._seen, PATIENCE)
        for fd in self._fds.values():
            os.close(fd)
        shutil.rmtree(self.temp)
