"""The forkserver by itself: what it forks, what it refuses, and how it tells of ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from waiting import until

from pytest_ipcluster.cluster import forks
from pytest_ipcluster.cluster.forks import Fork, NoForkError, can_fork, fork, launcher_limits
from pytest_ipcluster.cluster.forkserver import MODULES, refusal

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a forkserver")

ENGINE, CONTROLLER = MODULES


class Server:
    """A running forkserver; ``environment`` is its own, which what it forks may have."""

    def __init__(self, folder: Path, **more: str) -> None:
        self.path = folder / "fork"
        self.output = folder / "output"
        self.environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), **more}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pytest_ipcluster.cluster.forkserver", str(self.path)],
            env=self.environment,
            stderr=subprocess.PIPE,
        )
        until(lambda: self.path.exists() or self.process.poll() is not None)

    def fork(self, *arguments: str, run: str = ENGINE, **changes: str) -> Fork:
        environment = {**self.environment, **changes}
        return fork(self.path, run, arguments, environment, self.output, str(self.path.parent))

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def stop(self) -> str:
        self.process.kill()
        _, told = self.process.communicate()
        return told.decode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.stop()


@pytest.fixture
def waiting(server: Server, tmp_path: Path) -> Iterator[Callable[[], Fork]]:
    """Start engines that wait for a file that never comes."""
    started = []

    def start(server: Server = server) -> Fork:
        arguments = [f"--file={tmp_path / 'never'}", "--IPEngine.wait_for_url_file=600", f"--ipython-dir={tmp_path}"]
        child = server.fork(*arguments)
        started.append(child)
        return child

    yield start
    for child in started:
        if child.code is None:
            os.kill(child.pid, signal.SIGKILL)
            child.wait(30)
        child.close()


class TestWhatItForks:
    def test_a_program_runs_and_its_exit_code_is_told(self, server):
        child = server.fork("--version")
        assert child.wait(30) == 0
        assert server.output.read_text().strip()

    def test_an_exit_code_that_is_not_zero_is_told(self, server):
        assert server.fork("--IPEngine.timeout=text").wait(30) == 1

    def test_the_controller_runs_too(self, server):
        assert server.fork("--version", run=CONTROLLER).wait(30) == 0

    def test_a_controller_does_without_its_pause(self, server, tmp_path):
        lines = "import os, time", "from ipyparallel.controller import app", "os._exit(5 if app.time is time else 6)"
        (tmp_path / "ipcontroller_config.py").write_text("\n".join(lines))
        assert server.fork(f"--profile-dir={tmp_path}", run=CONTROLLER).wait(30) == 6

    @pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
    def test_a_signal_is_told_as_popen_does(self, waiting, signum):
        child = waiting()
        os.kill(child.pid, signum)
        assert child.wait(30) == -signum

    def test_it_is_a_session_of_its_own_in_the_folder_that_was_asked_for(self, server, waiting):
        child = waiting()
        until(lambda: os.getsid(child.pid) == child.pid)
        until(lambda: os.readlink(f"/proc/{child.pid}/cwd") == str(server.path.parent))

    def test_nothing_of_the_server_stays_open_in_it(self, server, waiting):
        first, second = waiting(), waiting()
        until(lambda: "SigCgt" in Path(f"/proc/{second.pid}/status").read_text())
        until(lambda: not {"server", "pidfd"} & set(opened(second.pid, server)))
        assert "server" in opened(server.process.pid, server)
        assert first.pid in {child.pid for child in server.children()}

    def test_several_are_forked_and_each_end_is_told_to_whom_it_concerns(self, waiting):
        children = [waiting() for _ in range(5)]
        for number in (3, 0, 4):
            os.kill(children[number].pid, signal.SIGKILL)
            assert children[number].wait(30) == -signal.SIGKILL
        assert [child.wait(0) for child in children] == [-9, None, None, -9, -9]

    def test_the_nanny_that_no_engine_asked_for_ends_with_it(self, waiting):
        child = waiting()
        until(lambda: psutil.Process(child.pid).children())
        [nanny] = psutil.Process(child.pid).children()
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait(30) == -signal.SIGKILL
        until(lambda: not nanny.is_running())


class TestWhatItRefuses:
    def test_another_module(self, server):
        with pytest.raises(NoForkError, match=r"^http\.server is not one of ipyparallel\.engine, "):
            server.fork(run="http.server")

    def test_variables_that_only_count_at_the_start_of_a_program(self, server):
        with pytest.raises(NoForkError, match=r"^PYTHONHASHSEED can't be changed after the start of a program$"):
            server.fork("--version", PYTHONHASHSEED="7")

    def test_it_goes_on_after_a_refusal(self, server):
        with pytest.raises(NoForkError):
            server.fork(run="http.server")
        assert server.fork("--version").wait(30) == 0

    def test_a_variable_of_ours_that_is_missing_there_counts_as_a_change(self, monkeypatch):
        monkeypatch.setattr(os, "environ", {"PYTHONWARNINGS": "ignore"})
        assert (
            refusal({"run": ENGINE, "environment": {}})
            == "PYTHONWARNINGS can't be changed after the start of a program"
        )

    def test_other_variables_may_differ(self, monkeypatch):
        monkeypatch.setattr(os, "environ", {"PYTHONPATH": "p", "A": "a"})
        assert refusal({"run": ENGINE, "environment": {"PYTHONPATH": "p", "B": "b"}}) == ""


class TestBadCompany:
    def test_who_hangs_up_before_the_answer_leaves_no_process_behind(self, server, tmp_path):
        order = {"run": ENGINE, "arguments": [f"--file={tmp_path / 'never'}"], "environment": server.environment}
        known = {child.pid for child in server.children()}
        with connected(server) as connection:
            line = {**order, "folder": str(tmp_path), "output": str(tmp_path / "output")}
            os.kill(server.process.pid, signal.SIGSTOP)
            connection.sendall(json.dumps(line).encode() + b"\n")
        os.kill(server.process.pid, signal.SIGCONT)
        assert server.fork("--version").wait(30) == 0  # the other request came first
        until(lambda: {child.pid for child in server.children()} <= known)

    @pytest.mark.parametrize("words", [b"", b'{"run": ', b"x" * 5_000_000])
    def test_half_a_request_and_one_that_is_too_long_are_forgotten(self, server, words):
        with connected(server) as connection:
            until_refused(connection, words)
        assert server.fork("--version").wait(30) == 0

    def test_no_server(self, tmp_path, monkeypatch):
        monkeypatch.setattr(forks, "_LISTENS_WITHIN", 0.05)
        with pytest.raises(NoForkError, match=r"^it cannot be reached: "):
            fork(tmp_path / "nobody", ENGINE, [], {}, tmp_path / "output")

    def test_a_server_that_dies_leaves_its_children_and_an_end_that_nobody_tells(self, tmp_path, waiting):
        server = Server(tmp_path)
        child = waiting(server)
        server.stop()
        assert child.wait(30) is None
        assert child.lost
        assert psutil.pid_exists(child.pid)

    def test_a_process_with_threads_does_not_fork(self, tmp_path):
        (tmp_path / "sitecustomize.py").write_text(
            "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        )
        server = Server(tmp_path, PYTHONPATH=f"{tmp_path}{os.pathsep}{Path.cwd()}")
        with pytest.raises(NoForkError, match=r"^it (has ended|cannot be reached: .*)$"):
            server.fork("--version")
        server.process.wait(30)
        assert "something that is imported has started threads" in server.stop()


class TestWhereItCanBe:
    def test_nowhere_but_on_linux(self, monkeypatch):
        monkeypatch.setattr(sys, "platform", "darwin")
        assert not can_fork(Path("/tmp/fork"))
        assert launcher_limits("forkserver", Path("/tmp/fork")) == [
            "no forkserver here: engines are started one by one, which takes longer"
        ]

    def test_not_without_pidfds(self, monkeypatch):
        monkeypatch.delattr(os, "pidfd_open")
        assert not can_fork(Path("/tmp/fork"))

    def test_not_at_the_end_of_a_long_path(self):
        assert can_fork(Path("/tmp/fork"))
        assert not can_fork(Path("/" + "x" * 100))

    def test_other_launchers_need_none(self, monkeypatch):
        monkeypatch.setattr(sys, "platform", "darwin")
        assert launcher_limits("local", Path("/tmp/fork")) == []


def opened(pid: int, server: Server) -> Iterator[str]:
    """Yield what a process has open that is the server's: its sockets, and the descriptors of its children."""
    with_path = {
        line.split()[6] for line in Path("/proc/net/unix").read_text().splitlines() if str(server.path) in line
    }
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(descriptor)
        except FileNotFoundError:  # closed meanwhile
            continue
        if target.startswith("socket:[") and target[8:-1] in with_path:
            yield "server"
        elif "pidfd" in target:
            yield "pidfd"


def connected(server: Server) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(server.path))
    return connection


def until_refused(connection: socket.socket, words: bytes) -> None:
    try:
        connection.sendall(words)
    except BrokenPipeError:
        return
