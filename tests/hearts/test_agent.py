from __future__ import annotations

import faulthandler
import json
import os
import signal
import socket
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from traitlets.config import Config

from pytest_ipcluster.hearts import agent
from pytest_ipcluster.hearts.crash import CRASH
from pytest_ipcluster.hearts.heart import Heart
from pytest_ipcluster.hearts.thread import MonitorThread

IDENT = "5d1c30f5-4dd8ab3c1cf7b6a8a6f4a3a1"

LoadAgent = Callable[..., SimpleNamespace]


def hearts() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "ipcluster-heart"]


def fake_ip(nanny: object = None, **settings: object) -> SimpleNamespace:
    """What an extension sees of an engine."""
    engine = SimpleNamespace() if nanny is None else SimpleNamespace(nanny_pipe=nanny)
    kernel = SimpleNamespace(ident=IDENT, engine_id=3, parent=engine, shell_handlers={}, control_handlers={})
    return SimpleNamespace(config=Config({"HeartAgent": settings}), kernel=kernel, user_ns={})


@pytest.fixture
def load_agent(ending: ExitStack) -> LoadAgent:
    """Return a function that loads the extension into a made-up engine with these settings."""

    def load(**settings: Any) -> SimpleNamespace:
        ip = fake_ip(**settings)
        ending.callback(agent.unload_ipython_extension, ip)
        agent.load_ipython_extension(ip)
        return ip

    return load


@pytest.fixture
def cards(tmp_path: Path) -> Path:
    folder = tmp_path / "cards"
    folder.mkdir()
    return folder


@pytest.fixture(autouse=True)
def _same_process_afterwards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", sys.path.copy())
    handler = signal.getsignal(CRASH) if CRASH else None
    yield
    if CRASH:
        signal.signal(CRASH, handler)


def test_engine_with_the_agent_beats_under_its_ident(
    start_monitor: Callable[..., MonitorThread], load_agent: LoadAgent
) -> None:
    thread = start_monitor()
    load_agent(ping=thread.ping_url, pong=thread.pong_url)
    thread.wait_for_heart(IDENT.encode())


def test_unloading_the_agent_stops_the_heart(
    start_monitor: Callable[..., MonitorThread], load_agent: LoadAgent
) -> None:
    thread = start_monitor()
    ip = load_agent(ping=thread.ping_url, pong=thread.pong_url)
    agent.unload_ipython_extension(ip)
    agent.unload_ipython_extension(ip)
    assert hearts() == []


def test_loading_the_agent_twice_starts_one_heart(
    start_monitor: Callable[..., MonitorThread], load_agent: LoadAgent
) -> None:
    thread = start_monitor()
    for _ in range(2):
        load_agent(ping=thread.ping_url, pong=thread.pong_url)
    assert len(hearts()) == 1


def test_card_tells_who_the_engine_is(load_agent: LoadAgent, cards: Path) -> None:
    load_agent(cards=str(cards), nanny=SimpleNamespace(pid=4711))
    assert json.loads((cards / f"{IDENT}.json").read_text()) == {
        "ident": IDENT,
        "id": 3,
        "pid": os.getpid(),
        "nanny": 4711,
        "host": socket.gethostname(),
    }


def test_engine_without_a_nanny_says_so(load_agent: LoadAgent, cards: Path) -> None:
    load_agent(cards=str(cards))
    assert json.loads((cards / f"{IDENT}.json").read_text())["nanny"] is None


def test_what_is_written_is_for_its_owner_only(load_agent: LoadAgent, cards: Path) -> None:
    load_agent(cards=str(cards))
    assert {path.name for path in cards.iterdir()} == {f"{IDENT}.json", f"{IDENT}.task"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in cards.iterdir()} == {0o600}


def test_card_that_cannot_be_handed_in_leaves_nothing(
    load_agent: LoadAgent, cards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_source: object, _target: object) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError):
        load_agent(cards=str(cards))
    assert [path.suffix for path in cards.iterdir()] == [".task"]


def test_card_is_written_after_the_heart_was_started(
    load_agent: LoadAgent, cards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[list[Path]] = []
    monkeypatch.setattr(Heart, "start", lambda _heart: found.append(list(cards.iterdir())))
    load_agent(ping="tcp://127.0.0.1:1", pong="tcp://127.0.0.1:1", cards=str(cards))
    assert found == [[]]
    assert len(list(cards.glob("*.json"))) == 1


def test_heart_that_cannot_start_hands_in_no_card(
    load_agent: LoadAgent, cards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_heart: Heart) -> None:
        raise OSError("too many open files")

    monkeypatch.setattr(Heart, "start", fail)
    with pytest.raises(OSError, match="too many"):
        load_agent(ping="tcp://127.0.0.1:1", pong="tcp://127.0.0.1:1", cards=str(cards))
    assert list(cards.iterdir()) == []


def test_importable_folders_are_added_once_and_at_the_end(load_agent: LoadAgent) -> None:
    before = sys.path.copy()
    load_agent(importable=["/some/where", before[-1], "/else/where", "/some/where"])
    assert sys.path == [*before, "/some/where", "/else/where"]


@pytest.mark.parametrize("settings", [{}, {"ping": "tcp://127.0.0.1:1"}, {"pong": "tcp://127.0.0.1:1"}])
def test_missing_settings_skip_their_part(load_agent: LoadAgent, settings: dict[str, str]) -> None:
    before = sys.path.copy()
    load_agent(**settings)
    assert hearts() == []
    assert sys.path == before


def test_users_namespace_is_left_alone(load_agent: LoadAgent, cards: Path) -> None:
    assert load_agent(cards=str(cards), importable=["/some/where"]).user_ns == {}


@pytest.fixture
def stacks(tmp_path: Path) -> Path:
    folder = tmp_path / "stacks"
    folder.mkdir()
    return folder


def test_engine_writes_its_stacks_for_its_owner_when_the_signal_comes(load_agent: LoadAgent, stacks: Path) -> None:
    load_agent(stacks=str(stacks))
    (file,) = stacks.iterdir()
    assert file.name == f"{IDENT}.txt"
    assert file.stat().st_mode & 0o777 == 0o600
    os.kill(os.getpid(), signal.SIGUSR1)
    assert "test_engine_writes_its_stacks_for_its_owner_when_the_signal_comes" in file.read_text()


def test_unloading_the_agent_withdraws_the_offer_of_stacks(load_agent: LoadAgent, stacks: Path) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    ip = load_agent(stacks=str(stacks))
    agent.unload_ipython_extension(ip)
    assert list(stacks.iterdir()) == []
    assert signal.getsignal(signal.SIGUSR1) is before
    assert not faulthandler.unregister(signal.SIGUSR1)


def test_an_engine_that_has_not_the_folder_does_without(load_agent: LoadAgent, tmp_path: Path) -> None:
    load_agent(stacks=str(tmp_path / "elsewhere"))
    assert not faulthandler.unregister(signal.SIGUSR1)
