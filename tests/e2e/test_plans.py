"""Plans on real clusters: the same seed gives the same faults and verdicts, and a test that fails can be replayed."""

from __future__ import annotations

import re

import pytest

SEEDS = range(5)

FAILING = """
import pytest

@pytest.mark.parametrize("case", ["a b", "c"])
def test_it(ipcluster, heart_failure, case):
    with heart_failure.plan(rate=50.0, kinds=("kill", "pause", "crash"), count=3) as plan:
        plan.wait()
    print("DONE", case, [(step.kind, step.slot, step.how) for step in plan.steps])
    assert case == "a b"
"""


@pytest.mark.parametrize("seed", SEEDS)
def test_the_same_seed_gives_the_same_faults_and_verdicts(ipcluster, heart_failure, seed):
    runs = []
    for _ in range(2):
        with heart_failure.plan(seed, rate=50.0, kinds=("kill", "pause", "crash"), count=2) as plan:
            plan.wait()
        runs.append((plan.steps, [(one.slot, one.cause, one.signal, one.exit_code) for one in plan.failures]))
    assert runs[0] == runs[1]
    assert len(runs[0][0]) == 2
    assert [engine.state for engine in ipcluster.engines] == ["idle", "idle"]


def test_a_plan_beside_work_that_is_tried_again(ipcluster_client, heart_failure):
    view = ipcluster_client.load_balanced_view()
    view.retries = 20
    with heart_failure.plan(rate=5.0, count=4, kinds=("kill",)) as plan:
        results = view.map_async(abs, range(-40, 0), ordered=True)
        plan.wait()
    assert results.get(60) == list(range(40, 0, -1))


def done_in(result: pytest.RunResult) -> str:
    [done] = re.findall(r"^DONE c (.*)$", result.stdout.str(), re.MULTILINE)
    return done


def test_a_failing_test_prints_the_line_that_replays_it(run):
    first = run(FAILING)
    first.assert_outcomes(passed=1, failed=1)
    first.stdout.fnmatch_lines(["*Captured ipcluster, by chance call*", "plan 1 by seed *"])
    [seed] = re.findall(r"to replay: pytest 'test_it\.py::test_it\[c\]' --ipcluster-seed=(\d+)", first.stdout.str())
    again = run(FAILING, "-k", "c and not b", f"--ipcluster-seed={seed}")
    again.assert_outcomes(failed=1)
    assert done_in(again) == done_in(first)


def test_a_passing_test_says_nothing_of_it(run):
    result = run("def test_it(ipcluster, heart_failure): heart_failure.kill('one').wait()")
    result.assert_outcomes(passed=1)
    assert "by chance" not in result.stdout.str()
