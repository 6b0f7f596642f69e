"""Makes the tables of figures from the files that the benchmarks have written into a folder.

Each benchmark's file is named after it, ``start.json`` after ``start.py``; what is not there is left out, and told. A
table replaces what stands between the two marks in a page: all figures in that about the benchmarks, the most important
ones in the README. Nothing is measured here.

::

    python benchmarks/table.py FOLDER
    python benchmarks/table.py FOLDER --check
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import TITLES, Row, cells, say

#: The benchmarks whose figures are in the table, in its order.
ORDER = ("start", "repair", "stop", "detection", "false_verdicts", "monitor_cost", "plugin_load")

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"

ROOT = Path(__file__).parents[1]
README, ALL = ROOT / "README.md", ROOT / "docs" / "reference" / "benchmarks.md"

#: How the rows begin that the README shows.
HEADLINES = (
    "start to first answer",
    "repair after a kill",
    "stop of 4 busy engines and a paused one",
    "SIGKILL to handler, 100 ms, ipc",
    "SIGSTOP to handler, defaults, ipc, 99 %",
    "false verdicts in",
    "Python CPU a pong, 1000 hearts, ipc",
    "Total CPU a pong, 1000 hearts, ipc",
    "plugin load: import",
)

Content = dict[str, Any]


def main() -> int:
    options = arguments().parse_args()
    found = read(options.folder)
    pages = {README: block(found, HEADLINES), ALL: block(found)}
    before = {page: page.read_text(encoding="utf-8") for page in pages}
    after = {page: replace(before[page], text) for page, text in pages.items()}
    if options.check:
        return int(after != before)
    for page, text in after.items():
        page.write_text(text, encoding="utf-8")
    return 0


def arguments() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("folder", type=Path, help="where the files of figures are")
    made.add_argument("--check", action="store_true", help="change nothing; end with code 1 when it would be changed")
    return made


def read(folder: Path) -> list[Content]:
    """Return the files of figures that are there, in the table's order; leave when there is none."""
    paths = [folder / f"{name}.json" for name in ORDER]
    for path in paths:
        if not path.exists():
            say(f"no {path.name}: its figures will not be in the table")
    found = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
    if not found:
        sys.exit(f"no figures in {folder}: run a benchmark with --json {folder / 'start.json'}, for example")
    return found


def replace(text: str, block: str) -> str:
    """Put the block between the two marks of a page; leave when they are not there, once each and in order."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        sys.exit(f"the page needs the line {BEGIN} and then the line {END}, once each")
    return f"{before}{begin}\n\n{block}\n{end}{after}"


def block(found: Sequence[Content], wanted: tuple[str, ...] = ("",)) -> str:
    """Return a table of the rows that begin so, and below it on what machine its figures were measured."""
    rows = [Row(**_fields(row)) for content in found for row in content["rows"]]
    lines = [_line([title.capitalize() for title in TITLES]), _line(["---"] * len(TITLES))]
    lines += [_line(cells(row)) for row in rows if row.what.startswith(wanted) and not row.minor]
    return "\n".join([*lines, "", *machines(found), *rounds(found), ""])


def _fields(row: Content) -> Content:
    """Return what a Row is made of; what follows from it is worked out again."""
    return {field.name: row[field.name] for field in dataclasses.fields(Row)}


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def machines(found: Sequence[Content]) -> list[str]:
    """Return a sentence about the machine; leave when the figures do not come from one and the same."""
    described = {_describe(content["machine"]): content["benchmark"] for content in found}
    if len(described) > 1:
        sys.exit(f"the figures are from different machines, or with different versions: {described}")
    return list(described)


def rounds(found: Sequence[Content]) -> list[str]:
    """Return a sentence that says how often contestants had their turn, where they took turns."""
    taken = [(content["benchmark"], content["settings"].get("rounds")) for content in found]
    told = ", ".join(f"{name} {number}" for name, number in taken if number is not None)
    return [f"Turns of each: {told}."] if told else []


def _describe(machine: Content) -> str:
    wanted = ("ipyparallel", "pyzmq", "pytest")
    libraries = ", ".join(f"{name} {machine['libraries'][name]}" for name in wanted)
    cores = f"{machine['cores']} shared core{'s' if machine['cores'] != 1 else ''}"
    return f"Measured on {cores}, {machine['system']}, Python {machine['python']}, {libraries}."


if __name__ == "__main__":
    sys.exit(main())
