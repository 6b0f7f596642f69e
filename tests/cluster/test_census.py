"""A process that belongs to a cluster is either its own or has been left there by a task."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import psutil
import pytest

from pytest_ipcluster.cluster import census as census_module
from pytest_ipcluster.cluster.census import Census, end
from pytest_ipcluster.cluster.engines import Engine
from pytest_ipcluster.cluster.processes import MARK, is_alive, wait_gone

SOON = 10.0

# Starts the children that it is told of, each of them such a program; tells its name and pid, and waits.
PROGRAM = """
import json, os, signal, subprocess, sys
name, children = json.loads(sys.argv[1])
for child in children:
    subprocess.Popen([sys.executable, "-c", os.environ["PROGRAM"], json.dumps(child)], start_new_session=True)
os.write(1, f"{name} {os.getpid()}\\n".encode())  # in one piece, whoever else writes
signal.pause()
"""

# One engine, in whose task a shell was started that has started something itself.
TREE = ["ipcluster", [["controller", [["scheduler", []]]], ["engine", [["nanny", []], ["shell", [["job", []]]]]]]]


@dataclass
class Tree:
    """Processes by name, all with the same mark."""

    mark: str = field(default_factory=lambda: secrets.token_hex(8))
    named: dict[str, psutil.Process] = field(default_factory=dict)
    roots: list[subprocess.Popen[str]] = field(default_factory=list)

    def grow(self, spec: list[object], *, marked: bool = True) -> None:
        environment = {**os.environ, "PROGRAM": PROGRAM, **({MARK: self.mark} if marked else {})}
        command = [sys.executable, "-c", PROGRAM, json.dumps(spec)]
        root = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        self.roots.append(root)
        assert root.stdout is not None
        for _ in range(count(spec)):
            name, pid = root.stdout.readline().split()
            self.named[name] = psutil.Process(int(pid))

    def engine(self) -> Engine:
        return Engine(0, "uuid", "here", self.named["engine"], self.named["nanny"], None)

    def names(self, processes: set[psutil.Process]) -> set[str]:
        return {name for name, process in self.named.items() if process in processes}

    def fell(self) -> None:
        end({process for process in self.named.values() if is_alive(process)}, SOON)
        for root in self.roots:
            root.wait(SOON)
            assert root.stdout is not None
            root.stdout.close()


def count(spec: list[object]) -> int:
    return 1 + sum(count(child) for child in spec[1])


@pytest.fixture
def tree() -> Iterator[Tree]:
    tree = Tree()
    yield tree
    tree.fell()


def strays(census: Census, tree: Tree, foster: psutil.Process | None = None) -> set[str]:
    return tree.names(census.strays([tree.named["ipcluster"]], [tree.engine()], foster))


def test_what_engines_have_started_is_a_stray_and_the_rest_is_the_clusters_own(tree):
    tree.grow(TREE)
    assert strays(Census(tree.mark), tree) == {"shell", "job"}


def test_another_clusters_processes_are_no_strays(tree):
    tree.grow(TREE)
    assert Census("another").strays([], []) == set()


def test_strays_are_told_again_at_every_look(tree):
    tree.grow(TREE)
    census = Census(tree.mark)
    assert strays(census, tree) == strays(census, tree) == {"shell", "job"}


def test_one_that_has_ended_is_no_stray(tree):
    tree.grow(TREE)
    census = Census(tree.mark)
    strays(census, tree)
    end([tree.named["job"]], SOON)
    assert strays(census, tree) == {"shell"}


def test_an_orphan_is_a_stray(tree):
    tree.grow(TREE)
    end([tree.named["shell"]], SOON)
    assert strays(Census(tree.mark), tree) == {"job"}


def test_what_was_the_clusters_own_stays_so_when_its_parents_have_died(tree):
    tree.grow(TREE)
    census = Census(tree.mark)
    strays(census, tree)
    end([tree.named["ipcluster"], tree.named["controller"]], SOON)
    assert is_alive(tree.named["scheduler"])
    assert strays(census, tree) == {"shell", "job"}


def test_a_replacement_is_the_clusters_own_as_soon_as_it_is_an_engine(tree):
    tree.grow(["ipcluster", []])
    tree.grow(["engine", [["nanny", []], ["job", []]]])
    census = Census(tree.mark)
    assert tree.names(census.strays([tree.named["ipcluster"]], [])) == {"engine", "nanny", "job"}
    assert strays(census, tree) == {"job"}


def test_an_engine_that_was_replaced_is_no_stray_but_what_it_has_started_is(tree):
    tree.grow(TREE)
    census = Census(tree.mark)
    strays(census, tree)
    for name in ("engine", "nanny"):
        tree.named[f"replaced {name}"] = tree.named[name]
    tree.grow(["engine", [["nanny", []]]])
    assert strays(census, tree) == {"shell", "job"}


def test_what_has_hidden_its_mark_and_its_parents_is_found_at_the_foster_parents(tree):
    tree.grow(TREE)
    tree.grow(["warden", [["escaped", [["further", []]]]]], marked=False)
    census = Census(tree.mark)
    assert strays(census, tree) == {"shell", "job"}
    assert strays(Census(tree.mark), tree, tree.named["warden"]) == {"shell", "job", "escaped", "further"}


def test_pythons_own_helpers_are_left_alone(tree):
    tree.grow(TREE)
    code = "from multiprocessing.resource_tracker import main; main(0)"
    environment = {**os.environ, MARK: tree.mark}
    helper = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, env=environment)
    tree.named["helper"] = psutil.Process(helper.pid)
    census = Census(tree.mark)
    assert strays(census, tree) == {"shell", "job"}
    assert "helper" in tree.names(census.alive())
    helper.communicate(timeout=SOON)


def test_alive_is_everything_of_the_cluster(tree):
    tree.grow(TREE)
    census = Census(tree.mark)
    assert tree.names(census.alive()) == set(tree.named)
    tree.fell()
    assert census.alive() == set()


def test_a_pid_that_is_the_clusters_no_more_is_nobodys(tree):
    tree.grow(["ipcluster", [["engine", [["nanny", []]]]]])
    stranger = psutil.Process()
    assert stranger not in Census(tree.mark).strays([stranger], [tree.engine()])
    assert stranger not in Census(tree.mark).alive()


def test_a_look_reads_only_what_is_new(tree, monkeypatch):
    tree.grow(TREE)
    census = Census(tree.mark)
    known = set(psutil.pids())
    strays(census, tree)
    read = []
    monkeypatch.setattr(census_module, "carries", lambda process, _: read.append(process.pid))
    strays(census, tree)
    assert set(read) & known == set()


def test_end_returns_what_it_could_not_end(tree):
    tree.grow(TREE)
    assert end(tree.named.values(), SOON) == set()
    assert wait_gone(tree.named.values(), 0) == set()
