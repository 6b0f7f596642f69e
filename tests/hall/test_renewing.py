"""Before which tests the cluster is renewed, and in whose report it stands. The keeper is made up here."""

from __future__ import annotations

import pytest

CONFTEST = """
    import pytest
    from pytest_ipcluster import keeper as real
    from pytest_ipcluster.errors import ClusterError
    from pytest_ipcluster.attendance import deaths_of
    from pytest_ipcluster.settings import SETTINGS
    from pytest_ipcluster.stash import KEEPER

    class Keeper(real.Keeper):
        def __init__(self, config):
            super().__init__(config.stash[SETTINGS], deaths_of(config), [])
            self.calls = []
            self.broken = False

        def allow_restart(self):
            self.calls.append("allow restart")

        def renew(self, shape):
            self.calls.append(f"renew {getattr(shape, 'n', shape)}")
            self.events.add("new heart")
            if self.broken:
                raise ClusterError("it is beyond repair")

        def repair(self, reason):
            self.events.add("repaired", slot=0, detail=reason, seconds=1.0)

    @pytest.fixture(scope="session")
    def _ipcluster_keeper(request):
        keeper = request.config.stash[KEEPER] = Keeper(request.config)
        yield keeper
        keeper.repair("at the end")
        del request.config.stash[KEEPER]
        print(f"\\ncalls {keeper.calls}")

    @pytest.fixture(scope="session")
    def ipcluster(_ipcluster_keeper, request):
        return _ipcluster_keeper

    @pytest.fixture
    def repaired_late(ipcluster):
        yield
        ipcluster.repair("in the teardown")
"""


@pytest.fixture
def run(hall):
    def run(source: str, *arguments: str) -> pytest.RunResult:
        hall.pytester.makeconftest(CONFTEST)
        hall.pytester.makepyfile(test_it=source)
        return hall.run("-s", "--ipcluster-leaks=off", *arguments)

    return run


def calls(result: pytest.RunResult) -> list[str]:
    (line,) = [line for line in result.outlines if line.startswith("calls ")]
    return eval(line.removeprefix("calls "))


def test_a_running_cluster_is_renewed_before_every_test_that_uses_it_and_before_its_fixtures(run):
    result = run(
        """
        import pytest

        @pytest.fixture
        def mine(ipcluster):
            ipcluster.calls.append("fixture")

        def test_first(ipcluster): pass
        def test_other(): pass
        def test_second(mine): pass
        """
    )
    result.assert_outcomes(passed=3)
    assert [call for call in calls(result) if call != "allow restart"] == ["renew 2", "fixture"]


def test_the_setup_and_the_teardown_of_a_test_may_each_restart_the_cluster(run):
    result = run(
        """
        def test_first(ipcluster): pass
        def test_second(ipcluster): ipcluster.calls.append("test")
        """
    )
    assert calls(result)[1:] == ["allow restart", "renew 2", "test", "allow restart"]


def test_it_is_renewed_to_the_number_of_engines_that_the_test_wants(run):
    result = run(
        """
        import pytest

        def test_two(ipcluster): pass

        @pytest.mark.ipcluster(n=5)
        def test_five(ipcluster): pass
        """
    )
    assert [call for call in calls(result) if "renew" in call] == ["renew 5"]


def test_a_cluster_of_a_shape_that_is_not_ours_is_renewed_as_it_is(run):
    result = run(
        """
        import pytest

        def test_first(_ipcluster_keeper): pass

        @pytest.mark.parametrize("ipcluster", ["theirs"], indirect=True)
        def test_second(ipcluster): pass
        """
    )
    assert [call for call in calls(result) if "renew" in call] == ["renew None"]


def test_a_renewal_that_fails_errs_the_test_with_its_cause_alone(run):
    result = run(
        """
        def test_first(ipcluster): ipcluster.broken = True
        def test_second(ipcluster): pass
        """
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["E *ClusterError: it is beyond repair"])
    assert "During handling" not in str(result.stdout)


REPAIRS = """
    def test_first(repaired_late): pass
    def test_other(): assert 0
    def test_second(ipcluster, request):
        ipcluster.repair("in the call")
        assert 0
    def test_third(ipcluster): assert 0
"""


def test_what_was_done_after_a_test_is_told_there_and_in_the_setup_of_the_next_that_uses_the_cluster(run):
    result = run(REPAIRS)
    late = "repaired slot 0 in 1.00 s, after test_it.py::test_first: in the teardown"
    result.stdout.fnmatch_lines(
        [
            "*_ test_second _*",
            "*Captured ipcluster setup*",
            late,
            "*Captured ipcluster call*",
            "repaired slot 0 in 1.00 s: in the call",
        ]
    )
    assert str(result.stdout).count(late) == 1
    assert str(result.stdout).count("Captured ipcluster") == 3  # the third is of the session's end


def test_at_the_end_each_repair_is_counted_once_also_that_of_the_last_teardown(run):
    run(REPAIRS).stdout.fnmatch_lines(
        [
            "*= ipcluster =*",
            "repaired once in 1.00 s: in the teardown",
            "repaired once in 1.00 s: in the call",
            "repaired once in 1.00 s: at the end",
        ]
    )
