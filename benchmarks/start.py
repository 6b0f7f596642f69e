"""How long a start takes: from the start of a fresh interpreter until each of n workers has answered one call.

The contestants take turns, each in an interpreter of its own, imports included, as a user waits for them. Stopping is
not in the figures; the next one begins when nothing is left of the one before.

- ``ours``, or one column for each ``--ours NAME[=LAUNCHER[,TRAIT=VALUE...]]``: ``BackgroundCluster(private=True)``
- ``ipyparallel.Cluster`` at its defaults, and tuned: the hub's period 100 ms, no delays
- ``dask.distributed.LocalCluster``: processes, one thread each, no dashboard
- pytest-xdist: ``pytest -n N --dist each`` with one test that does nothing, until it has run in each worker. Such a
  worker is an interpreter with pytest, and nothing that takes calls

::

    python benchmarks/start.py --json start.json
    python benchmarks/start.py --ours default --ours local --peers dask
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from common import Row, interleave, median, named, parser, positive, report, say, settings
from leashes import Leash, leash

PATIENCE = 120.0

#: Seconds that a stop may take, with the nannies that ipyparallel leaves for three seconds more.
_STOP = 30.0

#: The peers, and the share of their time that ours is to take at most.
PEERS = {"ipyparallel": 0.25, "ipyparallel-tuned": 0.5, "dask": 1.0, "xdist": None}

_TEST = """
import os, time
from pathlib import Path
def test_that_it_runs():
    Path(__file__).with_name(f"ran-{os.getpid()}").write_text(str(time.monotonic()))
"""

Run = dict[str, Any]


def main() -> None:
    options = arguments().parse_args()
    options.ours = cases = dict(options.ours or [("ours", {})])
    with leash() as held:
        folder = held.folder("start-")
        contestants: dict[str, Callable[[], Run]] = {
            name: partial(start, held, folder, "ours", options.n, traits) for name, traits in cases.items()
        }
        for name in options.peers:
            run = start_xdist if name == "xdist" else partial(start, name=name, traits={})
            contestants[name] = partial(run, held, folder, n=options.n)
        runs = interleave(contestants, options.rounds, lambda run: f"{run['seconds']:.2f} s")
    rows = compare(runs, list(cases), options.peers, options.n)
    libraries = ("distributed", "pytest-xdist")
    report(__file__, rows, file=options.json, settings=settings(options), runs=runs, libraries=libraries)


def arguments() -> argparse.ArgumentParser:
    made = parser(__doc__)
    made.add_argument("--n", type=positive, default=4, help="engines, or workers (default: %(default)s)")
    made.add_argument("--ours", type=named, action="append", metavar="NAME[=LAUNCHER[,TRAIT=VALUE...]]")
    made.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS), help="default: all")
    return made


def compare(runs: dict[str, list[Run]], ours: list[str], peers: list[str], n: int) -> list[Row]:
    """Return a row for each pair of one of ours and a peer, by their medians."""
    medians = {name: median([run["seconds"] for run in found]) for name, found in runs.items()}
    rows = []
    for mine in ours:
        what = f"start to first answer of {n}" + (f" ({mine})" if len(ours) > 1 else "")
        pairs = [Row(what, "s", medians[mine], medians[peer], peer, limit_ratio=PEERS[peer]) for peer in peers]
        rows += pairs or [Row(what, "s", medians[mine])]
    return rows


def start(held: Leash, folder: Path, name: str, n: int, traits: dict[str, Any]) -> Run:
    """Start this contestant, and end it; return the seconds until all had answered, and how much imports were of it."""
    script = Path(__file__).with_name("starters.py")
    # Nobody touches the user's own folders.
    environment = {
        **os.environ,
        "IPYTHONDIR": str(folder / "ipython"),
        "DASK_TEMPORARY_DIRECTORY": str(folder / "dask"),
    }
    with (folder / "output").open("w+b") as output:
        begun = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, str(script), name, str(n), json.dumps(traits)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            env=environment,
            start_new_session=True,
        )
        assert process.stdout is not None
        limit = threading.Timer(PATIENCE, process.kill)
        limit.start()
        try:
            imported, answered = (float(process.stdout.readline() or "nan") for _ in range(2))
        finally:
            limit.cancel()
            stop(process)
        left = held.wait(_STOP)
        if process.returncode or answered != answered:
            output.seek(0)
            sys.exit(f"{name} failed with code {process.returncode}:\n{output.read().decode(errors='replace')}")
    return _run(begun, answered, imported - begun, left)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Have a contestant stop its workers, which it does when its input ends; kill it when it does not."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP)
    process.kill()
    process.wait()
    process.stdout.close()


def start_xdist(held: Leash, folder: Path, n: int) -> Run:
    """Run one test in each of n workers of pytest-xdist; return the seconds until the last of them had run."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        (Path(place) / "test_it.py").write_text(_TEST)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "xdist", f"-n{n}", "--dist=each"]
        begun = time.monotonic()
        done = subprocess.run(
            [*command, "-p", "no:cacheprovider", f"--rootdir={place}", "-c", os.devnull, "test_it.py"],
            cwd=place,
            env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        ran = [float(path.read_text()) for path in Path(place).glob("ran-*")]
        if done.returncode or len(ran) != n:
            sys.exit(f"pytest-xdist failed with code {done.returncode}:\n{done.stdout}{done.stderr}")
    return _run(begun, max(ran), None, held.wait(_STOP))


def _run(begun: float, answered: float, imports: float | None, left: list[str]) -> Run:
    if left:
        say(f"left {_STOP:g} s after the stop, and killed: {left}")
    without = None if imports is None else answered - begun - imports
    return {"seconds": answered - begun, "seconds_without_imports": without, "left_after_stop": left}


if __name__ == "__main__":
    main()
