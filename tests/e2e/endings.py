"""The check that every way to end must pass, and the row that it adds to the table."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path

from inner import LIMIT, Run
from leftovers import Left
from ways import Ending

TABLE = "what is left when a run ends"


def check(ending: Ending, folder: Path, record: Callable[[str, object], None]) -> None:
    """End a run in this way; assert that it did end so, and that nothing of it is left."""
    with _run(ending, folder) as run:
        ending.act(run)
        code, left = _after_the_end(run, lives_on=ending.lives_on)
        record(TABLE, row(ending.way, code, left))
        _check_the_end(ending, run, code)
    assert (left.processes, left.folders) == ((), ()), f"left {LIMIT:g} s after pytest"


def _run(ending: Ending, folder: Path) -> Run:
    modules = {"test_it": ending.module}
    if ending.other:
        modules["test_other"] = ending.other
    return Run(folder, modules, *ending.arguments, conftest=ending.conftest)


def _after_the_end(run: Run, *, lives_on: bool) -> tuple[int, Left]:
    """Return pytest's exit code, and what is left of it, whether its process is gone or goes on as another program."""
    if not lives_on:
        code = run.end()
        return code, run.settle()
    left = run.settle()
    run.go()
    return run.end(), left


def _check_the_end(ending: Ending, run: Run, code: int) -> None:
    assert code in ending.codes, f"pytest ended with {code}, not {ending.codes}\n{run.output()}"
    assert re.search(ending.told, run.output(), re.MULTILINE), f"no {ending.told!r} in\n{run.output()}"
    assert ending.never not in run.told, f"the run has come to say {ending.never!r}\n{run.output()}"


def row(way: str, code: int, left: Left) -> dict[str, str]:
    """Return the table's row about one run."""
    ended = f"{code} ({signal.Signals(-code).name})" if code < 0 else str(code)
    return {
        "way to end": way,
        "exit code": ended,
        "processes left": str(len(left.processes)),
        "folders left": str(len(left.folders)),
        "seconds until gone": f"{left.seconds:.2f}",
    }
