"""An engine that was forked is like one that was started: the same look at both finds no difference."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Iterator
from unittest import mock

import psutil
import pytest
from ipyparallel import interactive
from waiting import announced_by, until

from pytest_ipcluster import BackgroundCluster
from pytest_ipcluster.cluster.autopsy import exit_code
from pytest_ipcluster.cluster.forklaunchers import ForkserverControllerLauncher
from pytest_ipcluster.cluster.warden import _filed

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a forkserver")

LAUNCHERS = ("local", "forkserver")


def portrait() -> dict[str, object]:
    """Return all that a program can find out about the process that it runs in."""
    import faulthandler
    import gc
    import locale
    import multiprocessing
    import os
    import resource
    import signal
    import sys
    import threading
    import time
    import warnings
    from pathlib import Path

    import psutil

    import __main__

    def opened(pid: int) -> list[str]:
        folder = Path(f"/proc/{pid}/fd")
        return sorted(os.readlink(one).split(":")[0] for one in folder.iterdir() if one.is_symlink())

    mask = os.umask(0)
    os.umask(mask)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "arguments": sys.argv,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "session and group": (os.getsid(0) == os.getpid(), os.getpgrp() == os.getpid()),
        "umask, priority": (mask, os.nice(0), Path("/proc/self/oom_score_adj").read_text()),
        "limits": {name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if "RLIMIT_" in name},
        "signals": {one.name: str(signal.getsignal(one)).split(" at ")[0] for one in signal.valid_signals() - {9, 19}
                    if isinstance(one, signal.Signals)},
        "signals of the kernel": {name: status[name] for name in ("SigBlk", "SigIgn", "SigCgt")},
        "threads": (sorted(thread.name for thread in threading.enumerate()), status["Threads"]),
        "open files": opened(os.getpid()),
        "standard streams": [(s.fileno(), s.encoding, s.errors, s.line_buffering, s.write_through)
                             for s in (sys.__stdin__, sys.__stdout__, sys.__stderr__)],
        "import": (sys.path, [str(one).split(" at ")[0] for one in sys.meta_path], len(sys.path_hooks)),
        "modules": sorted(sys.modules),
        "main": (__main__.__name__, getattr(__main__, "__file__", None), str(getattr(__main__, "__spec__", None))),
        "interpreter": (str(sys.flags), sys.executable, sys.warnoptions, len(warnings.filters), sys.getrecursionlimit(),
                        sys.getswitchinterval(), faulthandler.is_enabled(), gc.isenabled(), gc.get_threshold()),
        "hooks": [str(hook).split(" at ")[0] for hook in (sys.excepthook, sys.displayhook, threading.excepthook)],
        "locale, time zone": (locale.setlocale(locale.LC_ALL), time.tzname),
        "multiprocessing": (multiprocessing.get_start_method(allow_none=True), multiprocessing.current_process().name),
        "children": [(os.getsid(one.pid) == one.pid, one.ppid() == os.getpid(), opened(one.pid))
                     for one in psutil.Process().children(recursive=True)],
    }  # fmt: skip


def running(n: int, launcher: str, **more: object) -> BackgroundCluster:
    return BackgroundCluster(n=n, launcher=launcher, private=True, silent=True, **more)


@pytest.fixture(scope="module", params=LAUNCHERS)
def cluster(request: pytest.FixtureRequest) -> Iterator[BackgroundCluster]:
    with running(2, request.param) as cluster:
        yield cluster


@pytest.fixture
def whole(cluster) -> Iterator[object]:
    yield cluster
    cluster.restore(2)


@pytest.fixture
def client(whole) -> Iterator[object]:
    client = whole.client()
    yield client
    client.close()


def test_nothing_differs_that_a_program_can_find_out():
    seen = []
    for launcher in LAUNCHERS:
        with running(1, launcher) as cluster, cluster.client() as client:
            text = repr(client[0].apply_sync(interactive(portrait)))
            names = {str(cluster.folder.path): "FOLDER", cluster.cluster_id: "ID", cluster.folder.mark: "MARK"}
            view = eval(_renamed(text, {**names, **_changing(cluster)}))
            view["environment"].pop("IPP_CONNECTION_INFO")  # ports
            os.kill(cluster.engines[0].pid, signal.SIGTERM)
            until(lambda cluster=cluster: cluster.engines[0].state == "dead")
            view["end when asked"] = exit_code(cluster.engines[0].process, cluster._runtime, 30.0)
            seen.append(view)
    local, forked = seen
    assert {what for what in local if local[what] != forked[what]} == set()


def test_a_spare_is_like_an_engine_that_is_forked_when_it_is_needed():
    seen = []
    for spares in (0, 1):
        with running(1, "forkserver", spares=spares) as cluster:
            os.kill(cluster.engines[0].pid, signal.SIGKILL)
            until(lambda cluster=cluster: cluster.engines[0].state == "dead")
            cluster.restore(1)
            with cluster.client() as client:
                text = repr([client[0].apply_sync(interactive(look)) for look in (portrait, anatomy)])
                shown = client[0].execute("display(6); 7", silent=False)
                shown.get(30)
                assert shown.wait_for_output(30)
            names = {str(cluster.folder.path): "FOLDER", cluster.cluster_id: "ID", cluster.folder.mark: "MARK"}
            view, kernel = eval(_renamed(text, {**names, **_changing(cluster)}))
            view["environment"].pop("IPP_CONNECTION_INFO")  # ports
            seen.append({**view, **kernel, "shown": str(shown.outputs), "result": str(shown.execute_result)})
    forked, spare = seen
    assert {what for what in forked if forked[what] != spare[what]} == set()


def anatomy() -> dict[str, object]:
    """Return what the kernel and the shell around this task are made of."""
    from IPython import get_ipython

    shell = get_ipython()
    kernel = shell.kernel
    publishers = shell.displayhook, shell.display_pub, shell.data_pub
    names = set(kernel.trait_names()) - {"shell_streams"}  # which warns those who look
    return {
        "kernel": {name: str(type(getattr(kernel, name))) for name in names},
        "its id": (kernel.engine_id, kernel.ident),
        "kernel's variables": sorted(vars(kernel)),
        "shell": sorted(vars(shell)),
        "shell's names": sorted(name for name in shell.user_ns if not name.endswith(("_f", "args", "_result"))),
        "shell's folder": shell.starting_dir,
        "publishers": [(one.topic, one.pub_socket is kernel.iopub_socket, one.session is kernel.session)
                       for one in publishers],
        "history": (shell.history_manager.hist_file, shell.history_manager.enabled),
        "configuration": sorted(str(one) for one in kernel.config.items() if one[0] not in ("IPEngine", "Session")),
        "the only one": (type(kernel).instance() is kernel, type(shell).instance() is shell),
        "class of kernels": str(vars(__import__("ipyparallel.engine.app", fromlist=["app"]))["Kernel"]),
    }  # fmt: skip


def _changing(cluster) -> dict[str, str]:
    """ipcluster calls the logs of a set of engines by the time at which they were started; uuids are new each time."""
    [engine] = cluster.engines
    return {engine.log_file.name: "LOG", engine.ident: "UUID"}


def _renamed(text: str, names: dict[str, str]) -> str:
    for name in sorted(names, key=len, reverse=True):
        text = text.replace(name, names[name])
    return text


def test_engines_do_not_draw_the_same_numbers(client):
    def draw() -> tuple[float, str]:
        import random
        import uuid

        return random.random(), uuid.uuid4().hex

    drawn = client[:].apply_sync(interactive(draw))
    assert len({number for number, _ in drawn}) == len({name for _, name in drawn}) == 2


def test_what_the_engine_says_is_in_its_log(whole, client):
    client[0].apply_sync(os.write, 2, b"a word of mine\n")
    log = whole.engines[0].log()
    assert "Completed registration with id 0" in log
    assert "a word of mine" in log


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("os._exit(3)", 3),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("os.abort()", -signal.SIGABRT),
        ("os.kill(os.getpid(), signal.SIGSEGV)", -signal.SIGSEGV),
    ],
    ids=["exit", "killed", "abort", "segfault"],
)
def test_how_it_ended_is_told_with_the_same_exit_code(whole, client, end, code):
    engine = whole.engines[0]
    client[0].execute(f"import os, signal; {end}", block=False)
    until(lambda: engine.state == "dead")
    assert exit_code(engine.process, whole._runtime, 30.0) == code


def test_an_interrupt_is_ignored(whole, client):
    os.kill(whole.engines[0].pid, signal.SIGINT)
    assert client[0].apply_sync(int) == 0
    assert "Ignoring SIGINT" in whole.engines[0].log()


def test_the_nanny_tells_the_hub_when_its_engine_is_gone(whole):
    engine = whole.engines[1]
    os.kill(engine.pid, signal.SIGKILL)
    until(lambda: announced_by(whole) == [0])
    until(lambda: not engine.nanny.is_running())


def test_the_nanny_carries_signals(whole, client):
    client.send_signal(signal.SIGKILL, targets=[1], block=False)
    until(lambda: whole.engines[1].state == "dead")


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_an_engine_that_wants_no_nanny_has_none(launcher):
    without = "--EngineLauncher.engine_args=['--IPEngine.enable_nanny=False']"
    with running(1, launcher, extra_args=[without]) as cluster:
        assert cluster.engines[0].nanny is None
        assert psutil.Process(cluster.engines[0].pid).children() == []


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_another_command_for_engines_is_obeyed(launcher):
    command = [sys.executable, "-X", "utf8", "-m", "ipyparallel.engine"]
    with running(1, launcher, extra_args=[f"--EngineLauncher.engine_cmd={command}"]) as cluster:
        assert psutil.Process(cluster.engines[0].pid).cmdline()[:3] == command[:3]


def test_a_variable_that_a_fork_cannot_have_makes_it_a_start():
    given = "--EngineLauncher.environment={'PYTHONHASHSEED': '7'}"
    with running(1, "forkserver", extra_args=[given]) as cluster, cluster.client() as client:
        assert "Not forked but started" in cluster.log()
        assert client[0].apply_sync(hash, "a") == client[0].apply_sync(hash, "a")
        assert client[0].apply_sync(os.getenv, "PYTHONHASHSEED") == "7"


def test_a_replacement_is_like_the_first(whole):
    os.kill(whole.engines[0].pid, signal.SIGKILL)
    until(lambda: whole.engines[0].state == "dead")
    whole.restore(2)
    engine = whole.engines[0]
    assert os.getsid(engine.pid) == engine.pid
    assert "Completed registration with id 0" in engine.log()
    os.kill(engine.pid, signal.SIGKILL)
    until(lambda: engine.state == "dead")
    assert exit_code(engine.process, whole._runtime, 30.0) == -signal.SIGKILL


def test_the_warden_reads_its_pids_out_of_ipclusters_file(cluster):
    file = cluster.folder.profile / "security" / f"cluster-{cluster.cluster_id}.json"
    found = {process.pid for process in _filed(file, 0.0)}
    assert {role.pid for role in cluster._runtime.roles() if psutil.pid_exists(role.pid)} == found


def test_connection_files_that_are_just_being_written_are_waited_for(tmp_path):
    client, engine = tmp_path / "client.json", tmp_path / "engine.json"
    engine.write_text('{"whole": 2}')
    client.touch()
    launcher = ForkserverControllerLauncher(profile_dir=str(tmp_path))
    writing = threading.Timer(1.0, client.write_text, ['{"whole": 1}'])  # ipyparallel looks for half a second
    writing.start()
    try:
        with mock.patch.object(type(launcher), "connection_files", {"client": str(client), "engine": str(engine)}):
            assert asyncio.run(launcher.get_connection_info()) == {"client": {"whole": 1}, "engine": {"whole": 2}}
    finally:
        writing.join()
