"""The rooms of the house and the arrows between them: who may import whom."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pytest_ipcluster"
HEAVY = {"zmq", "traitlets", "tornado", "psutil", "IPython", "ipyparallel", "jupyter_client"}

# Room (a module or a folder) -> the rooms that it may import; what is not named may not be imported.
ARROWS = {
    "__init__": {"cluster", "hearts", "faults", "errors"},  # only inside __getattr__ and for type checkers
    "plugin": {"attendance", "fixtures", "options", "settings", "stash"},
    "attendance": {"deathwatch", "leakguard", "renewing", "telling", "partners", "settings", "stash"},
    "renewing": {"settings", "stash", "telling", "report", "errors"},
    "telling": {"report"},
    "fixtures": {"attendance", "keeper", "stash", "options", "settings", "faults", "hearts", "cluster", "errors"},
    "partners": set(),
    "stash": {"keeper"},  # only for type checkers
    "keeper": {
        "upkeep",
        "deathwatch",
        "settings",
        "launchers",
        "faults",
        "hearts",
        "cluster",
        "report.events",
        "errors",
    },
    "upkeep": {"settings", "hearts", "cluster", "errors"},
    "deathwatch": {"launchers", "cluster", "errors"},
    "leakguard": {"keeper", "settings", "stash", "cluster", "report.leaks", "errors"},
    "settings": {"options", "launchers"},
    "options": {"launchers"},
    "faults": {"hearts", "cluster", "network", "report.events", "errors"},
    "hearts": {"report.events", "errors"},
    "cluster": {"launchers", "network", "report.events", "errors"},
    "network": {"errors"},
    "report": {"errors"},
    "launchers": set(),
    "errors": set(),
}
# Where ipyparallel may be named, and which modules run inside engines.
KNOWS_IPYPARALLEL = {"cluster"}
# The one module that reaches into ipyparallel's client, and what it takes hold of there.
PRIVATE = "faults.deadman"
PRIVATE_NAMES = ["_output_futures", "_outstanding_dict", "_queue_handlers", "_io_loop", "_collect_exceptions"]
ON_ENGINES = {
    "hearts.agent": {"hearts.heart", "hearts.crash", "hearts.farewell", "hearts.keys", "hearts.tasks"},
    "hearts.heart": {"hearts.keys"},
    "hearts.crash": set(),
    "hearts.farewell": set(),
    "hearts.keys": set(),
    "hearts.tasks": set(),
    "cluster.renewal": {"cluster.remains"},
    "cluster.remains": set(),
}

MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """Return the module's name below the package, ``cluster.hub``; a folder's ``__init__`` is the folder."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imports(path: Path) -> set[str]:
    """Return the full names of all modules that are imported anywhere in this file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {
                f"{node.module}.{alias.name}" for alias in node.names if node.module.startswith("pytest_ipcluster")
            }
    return found


def ours(path: Path) -> set[str]:
    """Return the modules of this package that are imported, below the package's name."""
    names = {name.removeprefix("pytest_ipcluster.") for name in imports(path) if name.startswith("pytest_ipcluster.")}
    known = {name_of(module) for module in MODULES}
    return {name for name in names if name in known}


def room(module: str) -> str:
    return module.split(".")[0]


def test_every_room_is_in_the_table():
    assert {room(name_of(path)) for path in MODULES} == set(ARROWS)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_follow_the_arrows(path):
    allowed = ARROWS[room(name_of(path))]
    for imported in ours(path):
        if room(imported) != room(name_of(path)):
            assert imported in allowed or room(imported) in allowed, f"{name_of(path)} imports {imported}"


def test_the_arrows_make_no_circle():
    left = {name: {room(target) for target in targets} - {name} for name, targets in ARROWS.items()}
    while left:
        free = {name for name, targets in left.items() if not targets & left.keys()}
        assert free, left
        left = {name: targets for name, targets in left.items() if name not in free}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_the_hall_knows_pytest(path):
    if room(name_of(path)) in {"cluster", "hearts", "faults", "report", "launchers", "network", "errors", "__init__"}:
        assert not any(name.split(".")[0] in {"pytest", "_pytest"} for name in imports(path))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_ipyparallel_is_named_in_its_room_only(path):
    # The hall's fixtures and what keeps the cluster name its types, for type checkers only.
    named = {name for name in imports(path) if name.split(".")[0] == "ipyparallel"}
    known = room(name_of(path)) in KNOWS_IPYPARALLEL | {"fixtures", "keeper", "upkeep"}
    assert not named or known or name_of(path) in {PRIVATE, "faults.vigil"}  # the latter as the hall does


def test_private_names_of_a_client_are_known_to_one_module():
    code = (PACKAGE / f"{PRIVATE.replace('.', '/')}.py").read_text()
    for name in PRIVATE_NAMES:
        assert name in code
        using = [name_of(path) for path in MODULES if re.search(rf"\b{name}\b", path.read_text())]
        assert using == [PRIVATE], name


@pytest.mark.parametrize("module", sorted(ON_ENGINES))
def test_what_runs_on_engines_needs_next_to_nothing(module):
    path = PACKAGE / f"{module.replace('.', '/')}.py"
    assert ours(path) == ON_ENGINES[module]


def fresh(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout


def test_a_fresh_interpreter_with_the_plugin_has_nothing_heavy_in_it():
    loaded = fresh("import sys, pytest, pytest_ipcluster, pytest_ipcluster.plugin; print(*sys.modules)").split()
    assert {name.split(".")[0] for name in loaded} & HEAVY == set()


def test_a_run_that_wants_no_cluster_loads_the_hall_and_no_other_room():
    loaded = fresh("import sys, pytest, pytest_ipcluster.plugin; print(*sys.modules)").split()
    found = {name.removeprefix("pytest_ipcluster.") for name in loaded if name.startswith("pytest_ipcluster.")}
    assert found == {"fixtures", "launchers", "options", "plugin", "settings", "stash"}


def test_what_runs_on_engines_runs_where_pytest_is_not():
    code = "import sys; sys.modules['pytest'] = sys.modules['_pytest'] = None\n"
    assert (
        fresh(code + "import pytest_ipcluster.hearts.agent, pytest_ipcluster.cluster.renewal; print('runs')")
        == "runs\n"
    )


def test_every_module_imports_on_a_system_without_posix():
    names = [f"pytest_ipcluster.{name_of(path)}" for path in MODULES if name_of(path) != "__init__"]
    code = f"""
import importlib, os, signal, sys
import ipyparallel, psutil, pytest, zmq.eventloop.zmqstream
for name in ("SIGKILL", "SIGSTOP", "SIGCONT"):
    delattr(signal, name)
for name in ("pidfd_open", "O_NONBLOCK", "O_CLOEXEC", "fork", "getsid"):
    delattr(os, name)
sys.platform = "win32"
for name in {names!r}:
    importlib.import_module(name)
print("imports")
"""
    assert fresh(code) == "imports\n"
