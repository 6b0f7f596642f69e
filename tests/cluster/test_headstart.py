"""A kernel that is made ahead is given when the engine asks for one, with all that has become known meanwhile."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from ipyparallel.engine import app
from traitlets.config import Config

from pytest_ipcluster.cluster import forkserver
from pytest_ipcluster.cluster.headstart import make_kernel


class FakeKernel:
    made: list[FakeKernel]

    def __init__(self, **told):
        vars(self).update(told, engine_id=-1, iopub_socket=None)
        self.history = self.parent.config.HistoryManager.hist_file
        self.shell = SimpleNamespace(**{name: publisher() for name in ("displayhook", "display_pub", "data_pub")})
        self.shell.displayhook.topic = self._topic("execute_result")
        self.made.append(self)

    @classmethod
    def instance(cls, **told):
        return cls(**told)

    def _topic(self, topic):
        return f"engine.{self.engine_id}.{topic}".encode()


def publisher() -> SimpleNamespace:
    return SimpleNamespace(pub_socket=None, topic=b"")


@pytest.fixture
def engine(monkeypatch):
    monkeypatch.setattr(FakeKernel, "made", [], raising=False)
    monkeypatch.setattr(app, "Kernel", FakeKernel)
    engine = SimpleNamespace(config=Config(), ident="uuid", session=object(), user_ns=None, log=object())
    make_kernel(engine)
    return engine


def ask(engine, **told):
    same = {name: getattr(engine, name) for name in ("ident", "session", "user_ns", "log")}
    return app.Kernel.instance(parent=engine, **same, **told)


def test_it_is_there_before_anybody_asks(engine):
    [kernel] = FakeKernel.made
    assert (kernel.parent, kernel.session, kernel.ident) == (engine, engine.session, "uuid")
    assert ask(engine, engine_id=3, iopub_socket="socket") is kernel
    assert FakeKernel.made == [kernel]


@pytest.mark.usefixtures("engine")
def test_it_keeps_its_history_where_an_engine_keeps_it():
    assert FakeKernel.made[0].history == ":memory:"


def test_it_is_told_what_has_become_known(engine):
    kernel = ask(engine, engine_id=3, iopub_socket="socket", control_stream="stream")
    assert (kernel.engine_id, kernel.control_stream) == (3, "stream")
    assert kernel.shell.displayhook.topic == b"engine.3.execute_result"
    assert {one.pub_socket for one in vars(kernel.shell).values()} == {"socket"}


def test_the_class_of_kernels_is_in_its_place_again(engine):
    assert app.Kernel is not FakeKernel
    ask(engine, engine_id=3)
    assert app.Kernel is FakeKernel


def test_an_engine_that_is_held_makes_it_before_it_waits_for_its_id(monkeypatch, tmp_path):
    pipe = tmp_path / "pipe"
    started: list[object] = []
    monkeypatch.setattr(forkserver, "make_kernel", lambda _: pipe.write_text('{"id": 3}'))
    monkeypatch.setattr(app.IPEngine, "start", started.append)
    monkeypatch.setattr(sys, "argv", ["engine"])
    forkserver._hold_at(str(pipe))
    held = SimpleNamespace()
    app.IPEngine.start(held)
    assert (started, held.id, sys.argv) == ([held], 3, ["engine", "--IPEngine.id=3"])
