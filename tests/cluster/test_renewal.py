"""An engine that is renewed is as it was when it started, not empty; what can't be brought back is told."""

from __future__ import annotations

import asyncio
import builtins
import gc
import importlib
import io
import os
import resource
import signal
import sys
import warnings
from types import ModuleType, SimpleNamespace

import pytest

from pytest_ipcluster.cluster import renewal


class Shell:
    """As much of IPython's shell as is kept."""

    def __init__(self) -> None:
        self.user_module = ModuleType("user")
        self.user_ns = vars(self.user_module)
        self.user_ns |= {"given_at_start": 1, "list_at_start": [1, 2], "dict_at_start": {"a": 1}, "set_at_start": {1}}
        self.execution_count = 1


@pytest.fixture
def shell(monkeypatch):
    shell = Shell()
    monkeypatch.setattr(renewal, "_stock", None)
    # An engine's output does not go where its process began with; the suite's may.
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    renewal.take_stock(shell)
    return shell


def renewed(shell: Shell) -> dict[str, object]:
    assert renewal.renew() == []
    return {name: value for name, value in shell.user_ns.items() if name.endswith("at_start") or "new" in name}


AT_START = {"given_at_start": 1, "list_at_start": [1, 2], "dict_at_start": {"a": 1}, "set_at_start": {1}}


def test_new_names_go_and_old_ones_come_back(shell):
    shell.user_ns["new"] = 2
    shell.user_ns["given_at_start"] = "overwritten"
    assert renewed(shell) == AT_START


def test_deleted_names_come_back(shell):
    shell.user_ns.clear()
    assert renewed(shell) == AT_START


def test_plain_containers_hold_again_what_they_held(shell):
    containers = [shell.user_ns[f"{kind}_at_start"] for kind in ("list", "dict", "set")]
    containers[0].append(3)
    containers[1] |= {"a": 2, "b": 3}
    containers[2].clear()
    assert renewed(shell) == AT_START
    assert [shell.user_ns[f"{kind}_at_start"] for kind in ("list", "dict", "set")] == containers


def test_a_namespace_that_was_exchanged_comes_back(shell):
    module, namespace = shell.user_module, shell.user_ns
    shell.user_module, shell.user_ns, shell.execution_count = ModuleType("other"), {}, 7
    assert renewed(shell) == AT_START
    assert (shell.user_module, shell.execution_count) == (module, 1)
    assert shell.user_ns is namespace


@pytest.mark.parametrize("end", ["f", "args", "kwargs", "result"])
def test_what_belongs_to_the_running_task_is_left_to_it(shell, end):
    name = f"_3e0fc0d8_5f6a_12_1_{end}"
    shell.user_ns[name] = "a task's"
    renewal.renew()
    assert shell.user_ns[name] == "a task's"


def test_what_a_task_leaves_in_the_stock_is_not_given_back(shell):
    shell.user_ns["_3e0fc0d8_5f6a_12_1_f"] = "the task that asks for the stock"
    renewal.take_stock(shell)
    del shell.user_ns["_3e0fc0d8_5f6a_12_1_f"]
    assert renewed(shell) == AT_START


@pytest.mark.usefixtures("shell")
def test_builtins_come_back():
    real_print, real_sum = print, sum
    builtins.print = None
    del builtins.sum
    builtins.new = 1
    assert renewal.renew() == []
    assert (print, sum) == (real_print, real_sum)
    assert not hasattr(builtins, "new")


@pytest.mark.usefixtures("shell")
def test_the_working_directory_comes_back(tmp_path):
    before = os.getcwd()
    os.chdir(tmp_path)
    renewal.renew()
    assert os.getcwd() == before


def test_a_working_directory_that_is_gone_is_an_error(shell, tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    renewal.take_stock(shell)
    os.chdir("/")
    folder.rmdir()
    with pytest.raises(FileNotFoundError):
        renewal.renew()


@pytest.mark.usefixtures("shell")
@pytest.mark.parametrize("name", ["path", "argv", "meta_path", "path_hooks"])
def test_the_import_path_and_its_like_come_back(name, monkeypatch):
    before, held = getattr(sys, name), list(getattr(sys, name))
    before.append("new")
    monkeypatch.setattr(sys, name, [])
    renewal.renew()
    assert getattr(sys, name) is before
    assert before == held


@pytest.mark.parametrize("exchange", [False, True])
def test_the_environment_comes_back(shell, exchange, monkeypatch):
    renewal.take_stock(shell)  # pytest itself has changed the environment since the fixture was made
    before, held = os.environ, dict(os.environ)
    os.environ["NEW"] = "1"
    os.environ["HOME"] = "/elsewhere"
    del os.environ["PATH"]
    if exchange:
        monkeypatch.setattr(os, "environ", {})
    renewal.renew()
    assert os.environ is before
    assert os.environ == held


@pytest.mark.parametrize("name", ["stdout", "stderr", "stdin", "displayhook", "excepthook"])
def test_streams_and_hooks_come_back(shell, name, monkeypatch):
    renewal.take_stock(shell)  # pytest itself has changed the streams since the fixture was made
    before = getattr(sys, name)
    monkeypatch.setattr(sys, name, io.StringIO())
    renewal.renew()
    assert getattr(sys, name) is before


def ignore(number: int, frame: object) -> None:
    """Handle a signal by doing nothing."""


def handler() -> object:
    return signal.getsignal(signal.SIGTERM)


STATES = {
    "a handler of a signal": (handler, lambda: signal.signal(signal.SIGTERM, ignore)),
    "an ignored signal": (handler, lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN)),
    "blocked signals": (
        lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        lambda: signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1}),
    ),
    "a timer": (
        lambda: signal.getitimer(signal.ITIMER_VIRTUAL),
        lambda: signal.setitimer(signal.ITIMER_VIRTUAL, 600),
    ),
    "the mask of new files": (renewal._umask, lambda: os.umask(0)),
    "the recursion limit": (sys.getrecursionlimit, lambda: sys.setrecursionlimit(sys.getrecursionlimit() + 1)),
    "a trace function": (sys.gettrace, lambda: sys.settrace(lambda *_: None)),
    "a profile function": (sys.getprofile, lambda: sys.setprofile(lambda *_: None)),
    "garbage collection": (gc.isenabled, gc.disable),
    "a limit": (
        lambda: resource.getrlimit(resource.RLIMIT_CORE),
        lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1])),
    ),
    "the filters of warnings": (lambda: list(warnings.filters), lambda: warnings.simplefilter("ignore")),
}


@pytest.mark.usefixtures("shell")
@pytest.mark.parametrize("state", STATES)
def test_states_of_the_process_come_back(state):
    read, spoil = STATES[state]
    before = read()
    spoil()
    renewal.renew()
    assert read() == before


@pytest.fixture
def imported(shell, tmp_path, monkeypatch):
    """Import a test module, alone and in a package, after the stock was taken."""
    monkeypatch.syspath_prepend(tmp_path)
    renewal.take_stock(shell)
    (tmp_path / "package").mkdir()
    for path in ("test_alone.py", "package/__init__.py", "package/test_inside.py", "helper_of_tests.py"):
        (tmp_path / path).write_text("STATE = []\n")
    return SimpleNamespace(
        alone=importlib.import_module("test_alone"),
        inside=importlib.import_module("package.test_inside"),
        helper=importlib.import_module("helper_of_tests"),
    )


def test_modules_of_tests_are_imported_anew_and_others_are_not(imported):
    renewal.renew([str(module.__file__) for module in (imported.alone, imported.inside)])
    assert importlib.import_module("test_alone") is not imported.alone
    assert importlib.import_module("helper_of_tests") is imported.helper
    from package import test_inside

    assert test_inside is not imported.inside


def test_a_module_that_was_there_at_the_start_stays(shell, imported):
    renewal.take_stock(shell)
    renewal.renew([str(imported.alone.__file__)])
    assert importlib.import_module("test_alone") is imported.alone


def test_an_engine_without_a_stock_is_not_as_new(monkeypatch):
    monkeypatch.setattr(renewal, "_stock", None)
    assert renewal.renew() == ["it has lost the memory of how it started"]


@pytest.mark.usefixtures("shell")
def test_an_engine_that_has_given_its_output_back_is_about_to_end(monkeypatch):
    monkeypatch.setattr(sys, "stdout", sys.__stdout__)
    monkeypatch.setattr(sys, "stderr", sys.__stderr__)
    assert renewal.renew() == ["it was told to end"]


def test_stock_is_taken_when_the_loop_comes_to_it(monkeypatch):
    """What configuration defines after extensions are loaded is in the stock."""
    monkeypatch.setattr(renewal, "_stock", None)

    async def start() -> Shell:
        shell = Shell()
        renewal.load_ipython_extension(shell)
        shell.user_ns["defined_at_start"] = 1
        assert renewal._stock is None
        await asyncio.sleep(0)
        return shell

    shell = asyncio.run(start())
    shell.user_ns.clear()
    renewal.renew()
    assert shell.user_ns["defined_at_start"] == 1
