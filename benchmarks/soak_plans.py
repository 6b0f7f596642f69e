"""Looks for seeds with which something goes wrong: runs of pytest with random faults beside work, one after the other.

Each run is a session of its own with ``--ipcluster-seed``: tasks that are tried again, on load-balanced and direct
views, under a plan of kills, pauses and crashes; then the results, the verdicts and the next test's cluster are judged.
A seed with which a run fails, hangs or leaves something is told, with the end of its output.
``--twice`` runs each seed two times and compares what was done and what was concluded.

    python benchmarks/soak_plans.py --minutes 10
    python benchmarks/soak_plans.py --seeds 50 --twice
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

from common import Row, parser, positive, report, say, settings
from leashes import leash

#: Seconds after which a run hangs.
PATIENCE = 180.0

#: Lines of a failing run's output that are shown, of its failures and of its end.
LINES = 100

MODULE = """
import os
import pytest
from pytest_ipcluster import EngineLost

KINDS = ("kill", "pause", "crash")

def told(plan):
    print("VERDICTS", [(step.kind, step.slot, step.how, failure.cause, failure.signal, failure.exit_code)
                       for step, failure in zip(plan.steps, plan.failures, strict=True)])

def judge(ipcluster, heart_failure, plan):
    told(plan)
    heart_failure.assert_fired(times=len(plan.steps))
    assert len(heart_failure.faults) == len(plan.steps)
    for step, failure in zip(plan.steps, plan.failures, strict=True):
        assert failure.slot == step.slot
        assert (failure.cause == "missed heartbeats") is (step.kind == "pause")
    assert [engine.state for engine in ipcluster.engines] == ["idle"] * ipcluster.n

def test_load_balanced(ipcluster, ipcluster_client, heart_failure):
    view = ipcluster_client.load_balanced_view()
    view.retries = 50
    with heart_failure.plan(rate=4.0, kinds=KINDS, count=4) as plan:
        results = view.map_async(abs, range(-60, 0), ordered=True)
        plan.wait()
    judge(ipcluster, heart_failure, plan)
    try:
        assert results.get(60) == list(range(60, 0, -1))
    except EngineLost as lost:  # a task at an engine that is paused for most of a second is given up
        assert lost.death.how == "stopped by a signal"
        assert ("pause", lost.slot) in [(step.kind, step.slot) for step in plan.steps]

def test_direct(ipcluster, ipcluster_client, heart_failure):
    with heart_failure.plan(rate=8.0, kinds=KINDS, count=3) as plan:
        plan.wait()
    judge(ipcluster, heart_failure, plan)
    assert ipcluster_client[:].apply_async(os.getpid).get(30) == [engine.pid for engine in ipcluster.engines]

def test_words(ipcluster, ipcluster_client, heart_failure):
    with heart_failure.pause("one") as pause:
        pause.wait(30)
        with heart_failure.kill("majority") as kill:
            pass
    assert ipcluster_client[:].apply_async(os.getpid).get(30) == [engine.pid for engine in ipcluster.engines]

def test_as_new(ipcluster, ipcluster_client):
    assert ipcluster_client[:].apply_async(os.getpid).get(30) == [engine.pid for engine in ipcluster.engines]
    assert ipcluster_client.load_balanced_view().apply_async(abs, -1).get(30) == 1
"""


def main() -> None:
    options = arguments().parse_args()
    failed: dict[int, str] = {}
    different: list[int] = []
    done = 0
    end = time.monotonic() + 60 * options.minutes
    with leash() as held:
        folder = held.folder("soak-")
        (folder / "test_soak.py").write_text(MODULE)
        for seed in count(options.first):
            if time.monotonic() > end or (options.seeds and done >= options.seeds):
                break
            outputs = [run(folder, seed, options.n) for _ in range(1 + options.twice)]
            done += 1
            complaints = [(complaint, output) for code, output in outputs if (complaint := judge(code, output))]
            if complaints:
                failed[seed] = complaints[0][0]
                say(f"seed {seed}: {complaints[0][0]}\n{excerpt(complaints[0][1])}")
            elif len({verdicts(output) for _, output in outputs}) > 1:
                different.append(seed)
                say(f"seed {seed}: not the same twice: {[verdicts(output) for _, output in outputs]}")
            else:
                say(f"seed {seed}: well")
    rows = [
        Row(f"{done} seeds: runs that failed, hung or left something", "", len(failed), limit=0),
        Row(f"{done} seeds: not the same faults and verdicts twice", "", len(different), limit=0),
    ]
    found = {"seeds": done, "failed": failed, "different": different}
    report(__file__, rows, file=options.json, settings=settings(options), runs=found)
    sys.exit(bool(failed or different))


def arguments() -> argparse.ArgumentParser:
    made = parser(__doc__, rounds=None)
    made.add_argument("--minutes", type=float, default=10.0, help="how long at most (default: %(default)s)")
    made.add_argument("--seeds", type=positive, help="how many seeds at most (default: as many as there is time for)")
    made.add_argument("--first", type=int, default=1, help="the first seed (default: %(default)s)")
    made.add_argument("--n", type=positive, default=3, help="engines (default: %(default)s)")
    made.add_argument("--twice", action="store_true", help="run each seed two times, and compare")
    return made


def run(folder: Path, seed: int, n: int) -> tuple[int | None, str]:
    """Run the tests with this seed; return the exit code, None when they hang, and the output."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", "test_soak.py"]
    command += [f"--ipcluster-n={n}", f"--ipcluster-seed={seed}", "--ipcluster-leaks=fail"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired as error:
        return None, (error.stdout or b"").decode(errors="replace")
    return done.returncode, done.stdout + done.stderr


def judge(code: int | None, output: str) -> str:
    """Say what is wrong with a run; empty when nothing is."""
    if code is None:
        return f"it hung for {PATIENCE:g} s"
    if code or len(verdicts(output)) != 2:
        return f"exit code {code}"
    return ""


def verdicts(output: str) -> tuple[str, ...]:
    """Return what each plan did and what was concluded, in the order of the tests."""
    return tuple(sorted(set(re.findall(r"^VERDICTS (.*)$", output, re.MULTILINE))))


def excerpt(output: str) -> str:
    """Return the failures, as far as they are told, or else the last lines."""
    lines = output.splitlines()
    begins = [number for number, line in enumerate(lines) if re.match("=+ (FAILURES|ERRORS) =+$", line)]
    ends = [number for number, line in enumerate(lines) if re.match("=+ PASSES =+$", line)]
    failures = lines[begins[0] : ends[0] if ends else None] if begins else []
    return "\n".join([*failures[:LINES], *lines[-LINES:]])


if __name__ == "__main__":
    main()
