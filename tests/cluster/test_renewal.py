"""An engine that is renewed is as it was at first, not empty."""

from __future__ import annotations

import os
import sys

import IPython
import pytest

from pytest_ipcluster.cluster import renewal


class Shell:
    def __init__(self) -> None:
        self.user_ns = {"given_at_start": 1}


@pytest.fixture
def shell(monkeypatch):
    shell = Shell()
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    monkeypatch.setattr(renewal, "_stock", None)
    return shell


def test_new_names_go_and_old_ones_come_back(shell):
    renewal.renew()
    shell.user_ns["left_over"] = 2
    shell.user_ns["given_at_start"] = "overwritten"
    renewal.renew()
    assert shell.user_ns == {"given_at_start": 1}


def test_a_deleted_name_comes_back(shell):
    renewal.renew()
    del shell.user_ns["given_at_start"]
    renewal.renew()
    assert shell.user_ns == {"given_at_start": 1}


@pytest.mark.parametrize("end", ["f", "args", "kwargs", "result"])
def test_what_belongs_to_the_running_task_is_left_to_it(shell, end):
    name = f"_3e0fc0d8_5f6a_12_1_{end}"
    shell.user_ns[name] = "first task"
    renewal.renew()
    del shell.user_ns[name]
    shell.user_ns[f"_ab{name[3:]}"] = "second task"
    renewal.renew()
    assert shell.user_ns == {"given_at_start": 1, f"_ab{name[3:]}": "second task"}


@pytest.mark.usefixtures("shell")
def test_the_working_directory_is_restored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    renewal.renew()
    os.chdir("/")
    renewal.renew()
    assert os.getcwd() == str(tmp_path)


@pytest.mark.usefixtures("shell")
def test_the_import_path_is_restored(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = list(sys.path)
    renewal.renew()
    sys.path.append("/elsewhere")
    sys.path.pop(0)
    renewal.renew()
    assert sys.path == before
