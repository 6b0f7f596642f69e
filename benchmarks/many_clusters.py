"""Do clusters that start at the same moment take each other's ports? Starts one per pytest-xdist worker, many times.

Every try is one run of ``pytest -n 8 --ipcluster-n=1`` on a file of small tests, and every worker starts a cluster
of its own. What is counted: clusters that came up, starts that were tried again because a port was lost, starts that
failed, and of these the ones that failed for a lost port. Where memory does not suffice for all clusters of a try at
once, they are started in groups, one after the other.

::

    python benchmarks/many_clusters.py --tries 20 --json many_clusters.json

Ends with code 1 when a try failed or lost a port.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from leashes import leash

#: Megabytes that one worker with its cluster of one engine takes at most: 160 to 200 were measured.
_NEEDS = 300

#: Tests for each worker: xdist gives every worker two at the start when there are as many.
_TESTS_EACH = 2

#: Seconds that pytest gets to stop its clusters after an interrupt.
_GRACE = 30

_TEST_FILE = """
import json, os
from pathlib import Path
import pytest

@pytest.mark.parametrize("number", range({tests}))
def test_one_task(number, ipcluster, ipcluster_client):
    pid = ipcluster_client[:].apply_sync(os.getpid)[0]
    facts = {{"mark": ipcluster.folder.path.name, "retries": ipcluster.retries, "engine": pid}}
    Path({results!r}, f"{{ipcluster.folder.path.name}}.json").write_text(json.dumps(facts))
"""


@dataclass(frozen=True, slots=True)
class Try:
    """What one try came to; ``seconds`` is how long all its clusters took from pytest's start to its end."""

    number: int
    wanted: int
    clusters: int
    retries: int
    failures: int
    lost_ports: int
    seconds: float


def main() -> int:
    """Run the tries, print a table line after each of them, and write the JSON file."""
    options = _options()
    _write(f"{'try':>4} {'clusters':>9} {'retries':>8} {'failures':>9} {'lost ports':>11} {'seconds':>8}")
    with leash() as held:
        tries = _all_tries(options, held.folder("many-clusters-"))
    summary = _summary(tries, options.tries)
    _write(json.dumps(summary, indent=2))
    if options.json:
        options.json.write_text(json.dumps({"summary": summary, "tries": [asdict(one) for one in tries]}, indent=2))
    return int(summary["clean_tries"] < options.tries)


def _all_tries(options: argparse.Namespace, folder: Path) -> list[Try]:
    """Do one try after the other, as long as there is time, and print a line after each of them."""
    tries: list[Try] = []
    deadline = time.monotonic() + options.minutes * 60
    while len(tries) < options.tries and time.monotonic() < deadline:
        done = _one_try(folder, len(tries) + 1, options.workers, deadline)
        tries.append(done)
        clusters = f"{done.clusters}/{done.wanted}"
        _write(
            f"{done.number:>4} {clusters:>9} {done.retries:>8} {done.failures:>9} {done.lost_ports:>11}"
            f" {done.seconds:>8.1f}"
        )
    return tries


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tries", type=int, default=20, help="how often (default: 20)")
    parser.add_argument("--workers", type=int, default=8, help="clusters of one try (default: 8)")
    parser.add_argument("--minutes", type=float, default=20, help="limit for everything (default: 20)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    return parser.parse_args()


def _one_try(where: Path, number: int, workers: int, deadline: float) -> Try:
    """Start this many clusters, as many of them at once as the memory allows."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(dir=where) as folder:
        codes, outputs = [], []
        for group in _groups(workers):
            code, output = _run_pytest(Path(folder), group, deadline)
            codes.append(code)
            outputs.append(output)
        facts = [json.loads(path.read_text()) for path in Path(folder).glob("*.json")]
    retries = sum(fact["retries"] for fact in facts)
    failed_by_port = sum(
        output.count("ClusterStartError: ") for output in outputs if "Address already in use" in output
    )
    failures = max(workers - len(facts), sum(code != 0 for code in codes))
    lost = retries + failed_by_port
    return Try(number, workers, len(facts), retries, failures, lost, time.monotonic() - begun)


def _groups(workers: int) -> Iterator[int]:
    """Split the clusters of a try into groups that the memory which is free at the moment can hold."""
    import psutil

    while workers > 0:
        room = int(psutil.virtual_memory().available // (_NEEDS * 1_000_000))
        group = min(workers, max(1, room))
        yield group
        workers -= group


def _run_pytest(folder: Path, workers: int, deadline: float) -> tuple[int, str]:
    """Run pytest on one test file with this many workers; interrupt it when time is up."""
    test_file = folder / f"test_many_{len(list(folder.glob('test_*')))}.py"
    test_file.write_text(_TEST_FILE.format(tests=_TESTS_EACH * workers, results=str(folder)))
    options = [
        f"-n{workers}",
        "--ipcluster-n=1",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--rootdir={folder}",
        "-c",
        os.devnull,
    ]
    with (folder / "output").open("w+") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *options, str(test_file)],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,
        )
        code = _wait(process, max(1.0, deadline - time.monotonic()))
        output.seek(0)
        text = output.read()
    if code != 0:
        _write(text)
    return code, text


def _wait(process: subprocess.Popen[bytes], timeout: float) -> int:
    """Return the exit code; interrupt the run after so many seconds, as Ctrl-C would, and kill what does not end."""
    with suppress(subprocess.TimeoutExpired):
        return process.wait(timeout)
    process.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        return process.wait(_GRACE)
    os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def _summary(tries: list[Try], wanted: int) -> dict[str, float]:
    return {
        "tries_wanted": wanted,
        "tries": len(tries),
        "clean_tries": sum(not one.failures and not one.lost_ports for one in tries),
        "clusters": sum(one.clusters for one in tries),
        "lost_ports": sum(one.lost_ports for one in tries),
        "retries": sum(one.retries for one in tries),
        "failures": sum(one.failures for one in tries),
        "median_seconds": round(statistics.median(one.seconds for one in tries), 1) if tries else 0,
    }


def _write(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
