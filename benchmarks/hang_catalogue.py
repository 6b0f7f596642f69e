"""What waits for ever on plain ipyparallel, and how it ends with us: pairs of a fault and a call, one after the other.

Each fault hits a cluster of its own, or one that was repaired, with all its calls at once: once with ipyparallel's
client as it is, once with a Deadman beside it. What has not ended after ``--cap`` seconds counts as hanging. Both kinds
of clusters are the same; the hub's heart monitor has a period of 200 ms and 10 misses, so that what ipyparallel finds
out by missed heartbeats (33 s at its defaults) comes before the cap. ``tests/faults/catalogue.py`` has the rows.

::

    python benchmarks/hang_catalogue.py --json hang_catalogue.json
"""

from __future__ import annotations

import sys
from pathlib import Path

from common import Row, parser, report, say, settings
from leashes import leash

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "faults"))

#: How ipyparallel's own monitor of hearts is set.
MONITOR = {"period": 200, "max_heartmonitor_misses": 10}


def main() -> None:
    options = arguments().parse_args()
    from catalogue import ROWS, Clusters

    from pytest_ipcluster import Deadman

    with leash():
        ways = {"plain": Clusters(options.cap, **MONITOR), "ours": Clusters(options.cap, Deadman, **MONITOR)}
        try:
            runs = [{"row": str(row), "hangs": row.hangs, **outcomes(ways, row)} for row in ROWS]
        finally:
            for clusters in ways.values():
                clusters.stop()
    for line in table(runs):
        print(line)
    report(__file__, rows(runs), file=options.json, settings=settings(options), runs=runs)


def arguments():
    made = parser(__doc__, rounds=None)
    made.add_argument("--cap", type=float, default=12.0, help="seconds a call gets (default: %(default)s)")
    return made


def outcomes(ways, row) -> dict[str, dict[str, object]]:
    """Return how this row ended in each way; say it on stderr."""
    found = {name: told(clusters.outcome(row)) for name, clusters in ways.items()}
    say(f"{row}: {found['plain']['text']}, with us {found['ours']['text']}")
    return found


def told(outcome) -> dict[str, object]:
    text = outcome.told if outcome.seconds is None else f"{outcome.told} after {outcome.seconds:.2f} s"
    return {"told": outcome.told, "seconds": outcome.seconds, "text": text}


def table(runs: list[dict]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = ["| Fault and call | ipyparallel | with us |", "|---|---|---|"]
    return lines + [f"| {run['row']} | {run['plain']['text']} | {run['ours']['text']} |" for run in runs]


def rows(runs: list[dict]) -> list[Row]:
    """Count what hangs, and how much longer than two seconds anything took that would."""
    hanging = {way: sum(run[way]["told"] == "never" for run in runs) for way in ("plain", "ours")}
    slow = sum((run["ours"]["seconds"] or 1e9) > 2 for run in runs if run["plain"]["told"] == "never")
    changed = sum(run["plain"]["told"] != run["ours"]["told"] for run in runs if not run["hangs"])
    return [
        Row(
            f"calls that never come back, of {len(runs)}", "", hanging["ours"], hanging["plain"], "ipyparallel", limit=0
        ),
        Row("of these, calls that take more than 2 s with us", "", slow, limit=0),
        Row("other calls that end differently with us", "", changed, limit=0),
    ]


if __name__ == "__main__":
    main()
