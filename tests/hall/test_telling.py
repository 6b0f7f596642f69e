"""What is told about a test stands in its report, and once at the end of the run."""

from __future__ import annotations

import pytest

CONFTEST = """
    import pytest
    from pytest_ipcluster.report.sections import Note
    from pytest_ipcluster.telling import tell

    @pytest.fixture(scope="session")
    def _ipcluster_keeper():
        # Instead of a cluster.
        return None

    @pytest.fixture
    def told(request, _ipcluster_keeper):
        tell(request.node, Note("repaired", "the engine was dead", slot=1, seconds=0.5))
        tell(request.node, Note("repaired", "told before", slot=0, seconds=99.0), again=True)
        yield
        tell(request.node, Note("leak", "a thread\\nand what it does"))
"""
TESTS = """
    def test_pass(told): pass
    def test_fail(told): assert 0
    def test_nothing(): assert 0
"""
REPORT = [
    "*_ test_fail _*",
    "*Captured ipcluster setup*",
    "repaired slot 1 in 0.50 s: the engine was dead",
    "repaired slot 0 in 99.00 s: told before",
    "*_ test_nothing _*",
]
SUMMARY = [
    "*= ipcluster =*",
    "repaired 2 times in 1.00 s: the engine was dead",
    "leak 2 times: a thread",
    "*= short test summary info =*",
]


@pytest.fixture
def run(hall):
    hall.pytester.makeconftest(CONFTEST)
    hall.pytester.makepyfile(test_it=TESTS)
    return hall.run


def test_notes_stand_in_the_report_of_their_phase_and_at_the_end(run):
    result = run("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines([*REPORT, *SUMMARY])
    assert str(result.stdout).count("Captured ipcluster") == 2  # of the failed test's setup and teardown


def test_a_verbose_run_tells_each_note_with_its_test(run):
    result = run("-v")
    result.stdout.fnmatch_lines(
        [
            "*= ipcluster =*",
            "test_it.py::test_pass: repaired slot 1 in 0.50 s: the engine was dead",
            "test_it.py::test_pass: leak: a thread",
            "test_it.py::test_fail: repaired slot 1 in 0.50 s: the engine was dead",
            "test_it.py::test_fail: leak: a thread",
        ]
    )


def test_a_note_of_the_teardown_stands_in_its_report(run):
    result = run("-rA", "-k", "pass")
    told = ["leak: a thread", "and what it does"]
    result.stdout.fnmatch_lines(["*Captured ipcluster setup*", "*Captured ipcluster teardown*", *told])


@pytest.mark.usefixtures("run")
def test_notes_come_out_of_workers(hall):
    hall.monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD")  # workers load their plugins themselves
    result = hall.pytester.runpytest_subprocess("-n2", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(SUMMARY)


def test_silence_when_nothing_is_to_be_told(hall):
    hall.pytester.makepyfile("def test_it(): pass")
    assert "= ipcluster =" not in str(hall.run().stdout)
