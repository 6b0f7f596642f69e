"""Which test answers for a death, and how it is told; the cluster and its deaths are made up."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pytest_ipcluster.cluster import autopsy
from pytest_ipcluster.deathwatch import DeathWatch
from pytest_ipcluster.errors import ClusterError, Death

# A cluster of which anybody dies when die() is called; it is told of at the next look.
STUB = """
    from types import SimpleNamespace

    import pytest
    from pytest_ipcluster.attendance import deaths_of

    missing = []

    class Roll:
        slots = "the slots"
        def missing(self):
            found = missing[:]
            missing.clear()
            return found

    def die(who="engine"):
        missing.append(who)

    @pytest.fixture(scope="session")
    def _ipcluster_keeper(request):
        deaths = deaths_of(request.config)
        deaths.begin(SimpleNamespace(roll_call=Roll, slots=Roll.slots, launcher=""))
        yield
        deaths.end()

    @pytest.fixture
    def cluster(_ipcluster_keeper): return die

    @pytest.fixture(scope="session")
    def end_of_session(_ipcluster_keeper):
        yield
        die()
"""


@pytest.fixture
def run(hall, monkeypatch):
    """Run a test file on the made-up cluster; return its outcomes and what was told."""

    def post_mortem(_, missing):
        return tuple(Death(who, 1, 17, "exit code 3") for who in missing), ()

    monkeypatch.setattr(autopsy, "post_mortem", post_mortem)

    def run(source: str) -> pytest.RunResult:
        hall.pytester.makeconftest(STUB)
        hall.pytester.makepyfile(test_it=f"import pytest\nfrom conftest import die\n{source}")
        return hall.run("-rA")

    return run


def told(result: pytest.RunResult) -> list[str]:
    """Return when somebody died, for each death that was told, as the errors say it."""
    lines = [line for line in result.outlines if "the engine in slot 1 (pid 17) died " in line]
    return [line.split(" died ")[1] for line in lines if not line.startswith(("ERROR", "FAILED"))]


def test_a_death_fails_the_test_that_was_running_with_a_message_only(run):
    result = run("def test_it(cluster): die()")
    result.assert_outcomes(failed=1)
    assert told(result) == ["during test_it.py::test_it: exit code 3"]
    assert not [line for line in result.outlines if ".py:" in line and "::" not in line]


def test_only_that_test(run):
    result = run("def test_a(cluster): pass\ndef test_b(cluster): die()\ndef test_c(cluster): pass")
    result.assert_outcomes(passed=2, failed=1)
    assert told(result) == ["during test_it.py::test_b: exit code 3"]


def test_a_test_that_fails_by_itself_shows_the_death_as_a_section(run):
    result = run("def test_it(cluster):\n    die()\n    assert False, 'itself'")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["E * AssertionError: itself", "*- Captured ipcluster call -*", "the engine in slot 1 *"]
    )
    assert told(result) == ["during test_it.py::test_it: exit code 3"]


def test_a_death_in_a_setup_is_an_error_of_its_test(run):
    result = run("@pytest.fixture\ndef breaks(cluster): die()\ndef test_it(breaks): pass")
    result.assert_outcomes(errors=1)
    assert told(result) == ["during test_it.py::test_it, in its setup: exit code 3"]


def test_a_death_in_a_teardown_is_an_error_of_its_test(run):
    result = run(
        "@pytest.fixture\ndef breaks(cluster):\n    yield\n    die()\n"
        "def test_it(breaks): pass\ndef test_b(cluster): pass"
    )
    result.assert_outcomes(passed=2, errors=1)
    assert told(result) == ["during test_it.py::test_it, in its teardown: exit code 3"]


def test_a_death_between_two_tests_is_an_error_of_the_next_that_uses_the_cluster(run):
    result = run("def test_a(cluster): pass\ndef test_b(): die()\ndef test_c(cluster): pass\ndef test_d(cluster): pass")
    result.assert_outcomes(passed=3, errors=1)
    assert told(result) == ["between test_it.py::test_a and test_it.py::test_c: exit code 3"]


def test_a_skipped_test_does_not_answer_for_what_died_before_it(run):
    result = run(
        "def test_a(cluster): pass\ndef test_b(): die()\n"
        "@pytest.mark.skip\ndef test_c(cluster): pass\n"
        "def test_d(cluster): pass"
    )
    result.assert_outcomes(passed=2, skipped=1, errors=1)
    assert told(result) == ["between test_it.py::test_c and test_it.py::test_d: exit code 3"]


def test_a_test_that_skips_itself_answers_for_what_died_in_it(run):
    result = run("def test_a(cluster):\n    die()\n    pytest.skip()\ndef test_b(cluster): pass")
    result.assert_outcomes(passed=1, skipped=1, errors=1)
    assert told(result) == ["during test_it.py::test_a: exit code 3"]


def test_a_death_in_a_test_that_is_expected_to_fail_is_its_failure(run):
    run("@pytest.mark.xfail\ndef test_it(cluster): die()").assert_outcomes(xfailed=1)


def test_a_test_that_asks_for_the_cluster_while_it_runs_uses_it(run):
    result = run("def test_a(request):\n    request.getfixturevalue('cluster')()\ndef test_b(cluster): pass")
    result.assert_outcomes(passed=1, failed=1)
    assert told(result) == ["during test_it.py::test_a: exit code 3"]


def test_what_dies_at_the_end_of_the_session_is_an_error_of_the_last_test_to_use_the_cluster(run):
    result = run("def test_a(cluster): pass\ndef test_b(cluster, end_of_session): pass")
    result.assert_outcomes(passed=2, errors=1)
    assert told(result) == ["during test_it.py::test_b, in its teardown: exit code 3"]


def test_what_died_after_the_last_use_of_the_cluster_is_an_error_of_the_last_test(run):
    result = run("def test_a(cluster): pass\ndef test_b(): die()\ndef test_c(): pass")
    result.assert_outcomes(passed=3, errors=1)
    assert told(result) == ["after test_it.py::test_a: exit code 3"]


def test_tests_without_the_cluster_are_left_alone(run):
    run("def test_a(): die()\ndef test_b(): pass").assert_outcomes(passed=2)


def test_several_deaths_are_one_error(run):
    result = run("def test_it(cluster):\n    die()\n    die()\ndef test_b(cluster): pass")
    result.assert_outcomes(passed=1, failed=1)
    assert told(result) == ["during test_it.py::test_it: exit code 3"] * 2


# -- the cluster ---------------------------------------------------------------------------------


class Roll:
    """A roll that notes who is struck off."""

    def __init__(self, slots="the slots"):
        self.slots, self.struck, self.gone = slots, [], []

    def missing(self):
        return self.gone

    def strike_slot(self, heart):
        self.struck.append(heart)

    def strike(self, members):
        self.struck += members


class Cluster(SimpleNamespace):
    """A cluster of two engines."""

    engines = (SimpleNamespace(slot=0, heart=b"0"), SimpleNamespace(slot=1, heart=b"1"))
    launcher = ""
    slots = "the slots"

    def roll_call(self):
        self.roll = Roll(self.slots)
        return self.roll


@pytest.fixture
def looked(monkeypatch):
    """Who was found dead, look by look."""
    found = []
    monkeypatch.setattr(autopsy, "post_mortem", lambda _, missing: found.append(missing[:]) or ((), ()))
    return found


@pytest.mark.parametrize(
    ("launcher", "struck"), [("", [b"1"]), ("local", [b"1"]), ("mpi", [b"0", b"1"]), ("slurm", [b"0", b"1"])]
)
def test_an_engine_may_die_alone_where_it_can_and_with_its_job_where_it_cannot(launcher, struck):
    cluster, watch = Cluster(launcher=launcher), DeathWatch()
    watch.begin(cluster)
    watch.allow(cluster.engines[1])
    assert cluster.roll.struck == struck


def test_an_engine_that_the_plugin_ends_is_not_missed_but_one_that_was_dead_before_is(looked):
    cluster, watch = Cluster(), DeathWatch()
    watch.begin(cluster)
    cluster.roll.gone = ["engine 1"]
    watch.leaving(b"1")
    assert (looked, cluster.roll.struck) == ([["engine 1"]], [b"1"])


@pytest.mark.parametrize(
    ("asked", "struck"),
    [
        (["task scheduler"], {"task scheduler"}),
        (["nanny"], {"nanny"}),
        (["ipcluster"], {"ipcluster"}),
        (["controller"], {"controller", "task scheduler", "nanny", "ipcluster", "engine"}),
        (["heart monitor of the hub"], {"controller", "task scheduler", "nanny", "ipcluster", "engine"}),
        ([], set()),
    ],
)
def test_other_processes_may_die_with_what_they_take_along(asked, struck):
    roles = ["warden", "forkserver", "ipcluster", "controller", "task scheduler", "engine", "nanny"]
    cluster, watch = Cluster(), DeathWatch()
    watch.begin(cluster)
    cluster.roll.members = [SimpleNamespace(role=role) for role in roles]
    watch.allow_members(SimpleNamespace(role=role) for role in asked)
    assert {member.role for member in cluster.roll.struck} - set(asked) == struck - set(asked)


def test_without_a_cluster_nobody_is_missed(looked):
    watch = DeathWatch()
    watch.allow_members([SimpleNamespace(role="controller")])
    watch.leaving(b"1")
    watch.allow(Cluster.engines[1])
    watch.end()
    assert looked == []


def test_a_cluster_that_the_test_has_restarted_is_called_anew(looked):
    cluster, watch = Cluster(), DeathWatch()
    watch.begin(cluster)
    cluster.roll.gone = ["everybody"]
    cluster.slots = "other slots"
    watch.look()
    assert looked == []
    assert cluster.roll.slots == "other slots"


def test_a_cluster_that_the_test_has_stopped_is_not_missed(looked):
    class Stopped(Cluster):
        @property
        def slots(self):
            if self.stopped:
                raise ClusterError("the cluster is not running")
            return "the slots"

    cluster, watch = Stopped(stopped=False), DeathWatch()
    watch.begin(cluster)
    cluster.roll.gone = ["everybody"]
    cluster.stopped = True
    watch.look()
    assert looked == []
