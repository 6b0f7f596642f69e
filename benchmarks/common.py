"""What all benchmarks share: their arguments, contestants that take turns, medians that are compared."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

_Result = TypeVar("_Result")

_LIBRARIES = ("pytest-ipcluster", "ipyparallel", "pyzmq", "tornado", "pytest")


# -- the command line ----------------------------------------------------------------------------------


def parser(doc: str | None, rounds: int | None = 5) -> argparse.ArgumentParser:
    """Return a parser that knows ``--json`` and, where there are turns, ``--rounds``; its help is the docstring."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if rounds is not None:
        made.add_argument(
            "--rounds", type=positive, default=rounds, help="turns of each contestant (default: %(default)s)"
        )
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures, and every single run, to FILE")
    return made


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return what was asked for, for the file of figures: all options but that file."""
    return {key: value for key, value in vars(options).items() if key != "json"}


def positive(text: str) -> int:
    """Read a number of at least one; raise what argparse makes a message of."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"at least 1 is needed, not {number}")
    return number


def named(text: str) -> tuple[str, dict[str, Any]]:
    """Read ``NAME`` or ``NAME=LAUNCHER[,TRAIT=VALUE...]``: a name, and the traits of a BackgroundCluster.

    A value is a Python literal, or else the text itself. ``NAME`` alone is the launcher of this name; ``default``
    is whatever the package takes by itself.
    """
    name, _, rest = text.partition("=")
    launcher, *traits = rest.split(",") if rest else [name]
    found: dict[str, Any] = {} if launcher == "default" else {"launcher": launcher}
    for trait in traits:
        key, equals, value = trait.partition("=")
        if not (name and key and equals):
            raise argparse.ArgumentTypeError(f"{text!r} is not NAME=LAUNCHER[,TRAIT=VALUE...]")
        found[key] = _literal(value)
    return name, found


def _literal(text: str) -> Any:
    import ast

    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


# -- turns and figures ---------------------------------------------------------------------------------


def interleave(
    contestants: Mapping[str, Callable[[], _Result]], rounds: int, told: Callable[[_Result], object] = str
) -> dict[str, list[_Result]]:
    """Let the contestants take turns, A B A B ..., and return what each came to; say each result on stderr."""
    results: dict[str, list[_Result]] = {name: [] for name in contestants}
    for number in range(1, rounds + 1):
        for name, run in contestants.items():
            result = run()
            results[name].append(result)
            say(f"round {number} of {rounds}, {name}: {told(result)}")
    return results


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table: our figure beside the peer's; less is better.

    ``limit`` is the figure to reach, ``limit_ratio`` the same as a share of the peer's figure. What is ``minor`` is
    left out of the README's table.
    """

    what: str
    unit: str
    ours: float
    peer: float | None = None
    peer_name: str = ""
    limit: float | None = None
    limit_ratio: float | None = None
    minor: bool = False

    @property
    def ratio(self) -> float | None:
        """Our figure as a share of the peer's; None without a peer."""
        return self.ours / self.peer if self.peer else None

    @property
    def reached(self) -> bool | None:
        """Whether the figure is within its limits; None where there are none."""
        judged = [(self.ours, self.limit), (self.ratio, self.limit_ratio)]
        verdicts = [figure <= limit for figure, limit in judged if figure is not None and limit is not None]
        return all(verdicts) if verdicts else None


def percentile(figures: Sequence[float], share: float) -> float:
    """Return the smallest figure that at least this share of them does not exceed."""
    ordered = sorted(figures)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def median(figures: Sequence[float]) -> float:
    return statistics.median(figures)


def machine(*libraries: str) -> dict[str, Any]:
    """Describe what it ran on: cores, system, Python and libraries; nothing that names the machine."""
    found = {}
    for library in (*_LIBRARIES, *libraries):
        with suppress(importlib.metadata.PackageNotFoundError):
            found[library] = importlib.metadata.version(library)
    return {
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "libraries": found,
    }


def report(
    script: str,
    rows: Sequence[Row],
    *,
    file: Path | None,
    settings: Mapping[str, Any],
    runs: Any,
    libraries: Sequence[str] = (),
) -> None:
    """Print the rows, and write them with every single run to ``file``."""
    for line in lines(rows):
        print(line)
    if file is not None:
        content = {
            "benchmark": Path(script).stem,
            "machine": machine(*libraries),
            "load_at_the_end": os.getloadavg(),
            "settings": dict(settings),
            "rows": [{**asdict(row), "ratio": row.ratio, "reached": row.reached} for row in rows],
            "runs": runs,
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def cells(row: Row) -> tuple[str, ...]:
    """Return what stands in the columns of a table for this row."""
    return row.what, figure(row.ours, row.unit), peer(row), share(row.ratio), goal(row)


#: What stands above them.
TITLES = ("what", "ours", "peer", "ratio", "to reach")


def lines(rows: Sequence[Row]) -> list[str]:
    """Return the rows as lines of text, in columns."""
    table = [TITLES, *map(cells, rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(one, widths, strict=True)).rstrip() for one in table]


def figure(value: float | None, unit: str) -> str:
    """Write a figure with three digits and its unit."""
    if value is None:
        return ""
    text = f"{value:.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
    return f"{text} {unit}".rstrip()


def peer(row: Row) -> str:
    return f"{figure(row.peer, row.unit)} ({row.peer_name})" if row.peer is not None else row.peer_name


def share(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def goal(row: Row) -> str:
    """Write what is to be reached, and whether it is."""
    limits = []
    if row.limit is not None:
        limits.append(f"≤ {figure(row.limit, row.unit)}")
    if row.limit_ratio is not None:
        limits.append(f"ratio ≤ {row.limit_ratio:.3g}")
    return "" if not limits else f"{', '.join(limits)}: {'yes' if row.reached else 'no'}"


def say(text: str) -> None:
    """Tell how far it is; stdout is for figures."""
    print(text, file=sys.stderr, flush=True)
