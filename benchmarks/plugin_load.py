"""What a plugin costs a run of pytest that does not use it: milliseconds to import it, and modules that come with it.

Ours, pytest-timeout and pytest-xdist take turns, each in fresh interpreters. Milliseconds are those of importing what
the plugin's entry points name, after pytest. Modules are counted twice: after that import, and at the end of a run of
pytest on one trivial test with only this plugin, in comparison with a run without any.

::

    python benchmarks/plugin_load.py --json plugin_load.json
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from common import Row, interleave, median, parser, report, settings
from leashes import leash

PATIENCE = 60.0

#: The distribution, and what its entry points for pytest are called.
OURS = "pytest-ipcluster"
PEERS = ("pytest-timeout", "pytest-xdist")

LIMITS = {
    "import": ("ms", 2.0),
    "import, CPU": ("ms", 2.0),
    "modules": ("", 8.0),
    "modules of a run": ("", 8.0),
}
#: What the README's table does without.
MINOR = {"import, CPU", "modules"}

_IMPORT = """
import importlib, json, sys, time
import pytest, _pytest.config
before = set(sys.modules)
begun, spent = time.perf_counter(), time.process_time()
for name in sys.argv[1:]:
    importlib.import_module(name)
spent, seconds = time.process_time() - spent, time.perf_counter() - begun
print(json.dumps({"seconds": seconds, "cpu": spent, "modules": sorted(set(sys.modules) - before)}))
"""

_RUN = """
import json, os, sys
import pytest
class Last:
    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self):
        with open("modules", "w") as file:
            json.dump(sorted(sys.modules), file)
plugins = [argument for name in sys.argv[1:] for argument in ("-p", name)]
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir=.", *plugins], plugins=[Last()]))
"""

Run = dict[str, Any]


def main() -> None:
    options = parser(__doc__, rounds=20).parse_args()
    names = {name: entry_points(name) for name in (OURS, *PEERS)}
    with leash() as held:
        folder = held.folder("p-")
        (folder / "test_it.py").write_text("def test_it():\n    pass\n")
        plain = set(run(folder, []))
        for values in names.values():  # whoever comes first would write the byte code of all
            measure(folder, values, plain)
        turns = {name: partial(measure, folder, values, plain) for name, values in names.items()}
        runs = interleave(turns, options.rounds, lambda one: f"{one['import']:.2f} ms, {one['modules']} modules")
    rows = compare(runs)
    report(__file__, rows, file=options.json, settings=settings(options), runs=runs, libraries=PEERS)


def entry_points(distribution: str) -> dict[str, str]:
    """Return the names by which pytest finds this plugin, and the modules behind them."""
    found = importlib.metadata.distribution(distribution).entry_points
    return {point.name: point.value for point in found if point.group == "pytest11"}


def measure(folder: Path, points: dict[str, str], plain: set[str]) -> Run:
    """Import the plugin in one fresh interpreter, and run pytest with it in another one."""
    imported = json.loads(output([sys.executable, "-c", _IMPORT, *points.values()], folder))
    more = sorted(set(run(folder, list(points))) - plain)
    return {
        "import": imported["seconds"] * 1000,
        "import, CPU": imported["cpu"] * 1000,
        "modules": len(imported["modules"]),
        "modules of a run": len(more),
        "names": more,
    }


def run(folder: Path, names: list[str]) -> list[str]:
    """Run pytest on one trivial test with these plugins and no other; return the modules that are loaded at the end."""
    output([sys.executable, "-c", _RUN, *names], folder)
    found: list[str] = json.loads((folder / "modules").read_text())
    return found


def output(command: list[str], folder: Path) -> str:
    """Run a command; return what it printed, or leave with what it said."""
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    if done.returncode:
        sys.exit(f"{command} ended with code {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def compare(runs: dict[str, list[Run]]) -> list[Row]:
    """Return a row for each figure and peer, by their medians."""
    rows = []
    for what, (unit, limit) in LIMITS.items():
        medians = {name: median([one[what] for one in found]) for name, found in runs.items()}
        rows += [
            Row(f"plugin load: {what}", unit, medians[OURS], medians[name], name, limit=limit, minor=what in MINOR)
            for name in PEERS
        ]
    return rows


if __name__ == "__main__":
    main()
