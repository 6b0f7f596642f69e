from __future__ import annotations

import pytest

MISTAKE = "test_it.py::test_a: @pytest.mark.ipcluster(n='four'): expected a whole number of engines, 1 or more"


def errors(result):
    return [line.removeprefix("ERROR: ") for line in result.errlines if line.startswith("ERROR: ")]


@pytest.mark.parametrize(
    "argument", ["n=4", "extra_args=['--a']", "engines='mpi'", "requires=('pause',)", "network=True"]
)
def test_every_documented_keyword_is_accepted(hall, argument):
    result = hall.run_tests(
        f"""
        import pytest

        @pytest.mark.ipcluster({argument})
        def test_a(ipcluster):
            pass
        """
    )
    result.assert_outcomes(passed=1)


def test_marker_of_function_class_and_module_reach_the_test(hall):
    result = hall.run_tests(
        """
        import pytest

        pytestmark = pytest.mark.ipcluster(n=3, extra_args=["--module"], engines="mpi")

        @pytest.mark.ipcluster(n=4, extra_args=["--class"])
        class TestA:
            @pytest.mark.ipcluster(n=5)
            def test_a(self, ipcluster):
                assert (ipcluster.n, ipcluster.extra_args, ipcluster.engines) == (5, ("--class",), "mpi")

            def test_b(self, ipcluster):
                assert (ipcluster.n, ipcluster.extra_args, ipcluster.engines) == (4, ("--class",), "mpi")

        def test_c(ipcluster):
            assert (ipcluster.n, ipcluster.extra_args, ipcluster.engines) == (3, ("--module",), "mpi")
        """
    )
    result.assert_outcomes(passed=3)


def test_marker_wins_over_command_line_environment_and_ini(hall):
    hall.give("ini file", "n", "6")
    hall.give("environment", "n", "7")
    hall.give("command line", "n", "8")
    source = """
        import pytest

        @pytest.mark.ipcluster(n=4)
        def test_a(ipcluster):
            pass

        def test_b(ipcluster):
            pass
    """
    assert hall.setups(source) == ["4", "8"]


def test_marker_on_one_set_of_parameters_wins_over_the_function_s(hall):
    source = """
        import pytest

        @pytest.mark.ipcluster(n=3)
        @pytest.mark.parametrize("x", [1, pytest.param(2, marks=pytest.mark.ipcluster(n=4)), 3])
        def test_a(ipcluster, x):
            assert ipcluster.n == {1: 3, 2: 4, 3: 3}[x]
    """
    assert hall.setups(source) == ["3", "4"]


class TestMistakes:
    @pytest.fixture
    def result(self, hall):
        return hall.run_tests(
            """
            import pytest

            @pytest.mark.ipcluster(n="four")
            def test_a(ipcluster):
                pass
            """
        )

    def test_mistake_ends_the_run_with_exit_code_4(self, result):
        assert result.ret == pytest.ExitCode.USAGE_ERROR

    def test_mistake_is_told_in_one_line(self, result):
        assert [line for line in result.errlines if line] == [f"ERROR: {MISTAKE}"]

    def test_mistake_shows_no_traceback(self, result):
        result.stdout.no_fnmatch_line("*Traceback*")
        result.stdout.no_fnmatch_line("*UsageError*")

    @pytest.mark.parametrize("argument", ["4", "n=0", "m=4", "engines='nope'", "requires='pause'", "extra_args='-a'"])
    def test_each_kind_of_mistake_names_the_test_once(self, hall, argument):
        result = hall.run_tests(
            f"""
            import pytest

            @pytest.mark.ipcluster({argument})
            def test_a(ipcluster):
                pass
            """
        )
        (error,) = errors(result)
        assert error.startswith(f"test_it.py::test_a: @pytest.mark.ipcluster({argument.replace('=', '=', 1)}): ")

    def test_mistakes_of_several_tests_are_all_told(self, hall):
        result = hall.run_tests(
            """
            import pytest

            @pytest.mark.ipcluster(n="four")
            def test_a(ipcluster):
                pass

            @pytest.mark.ipcluster(n=0)
            def test_b(ipcluster):
                pass
            """
        )
        assert [error.split(":")[2] for error in errors(result)] == ["test_a", "test_b"]

    def test_mistake_in_a_module_s_marker_is_told_once(self, hall):
        result = hall.run_tests(
            """
            import pytest

            pytestmark = pytest.mark.ipcluster(n="four")

            @pytest.mark.parametrize("x", [1, 2])
            def test_a(ipcluster, x):
                pass

            def test_b(ipcluster):
                pass
            """
        )
        assert errors(result) == [MISTAKE.replace("test_a", "test_a[1]")]

    @pytest.mark.parametrize(
        "test", ["def test_a(): pass", "class TestA:\n    def test_b(self): pass"], ids=["function", "class"]
    )
    def test_marker_of_a_test_without_cluster_is_validated(self, hall, test):
        result = hall.run_tests("import pytest\n@pytest.mark.ipcluster(n='four')\n" + test)
        assert (result.ret, len(errors(result))) == (4, 1)

    def test_marker_of_a_unittest_method_is_validated(self, hall):
        result = hall.run_tests(
            """
            import pytest, unittest

            class TestA(unittest.TestCase):
                @pytest.mark.ipcluster(n="four")
                def test_a(self):
                    pass
            """
        )
        assert errors(result) == [MISTAKE.replace("test_a", "TestA::test_a")]

    def test_marker_of_one_set_of_parameters_is_validated(self, hall):
        result = hall.run_tests(
            """
            import pytest

            @pytest.mark.parametrize("x", [1, pytest.param(2, marks=pytest.mark.ipcluster(n="four"))])
            def test_a(ipcluster, x):
                pass
            """
        )
        assert errors(result) == [MISTAKE.replace("test_a", "test_a[2]")]

    def test_mistake_in_a_test_not_asked_for_does_not_end_the_run(self, hall):
        source = """
            import pytest

            @pytest.mark.ipcluster(n="four")
            def test_a(ipcluster):
                pass

            def test_b(ipcluster):
                pass
        """
        hall.run_tests(source, "test_it.py::test_b").assert_outcomes(passed=1)

    def test_under_xdist_a_mistake_is_told_once_without_internal_error(self, hall):
        source = """
            import pytest

            @pytest.mark.ipcluster(n="four")
            def test_a(ipcluster):
                pass

            def test_b(ipcluster):
                pass
        """
        hall.pytester.makeconftest("")
        hall.pytester.makepyfile(test_it=source)
        result = hall.pytester.runpytest_subprocess(
            "-p", "pytest_ipcluster.plugin", "-p", "xdist", "-n", "2", timeout=60
        )
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        assert [line for line in result.outlines if line == MISTAKE] == [MISTAKE]
        result.assert_outcomes(errors=1)


class TestRequires:
    SOURCE = """
        import pytest

        @pytest.mark.ipcluster(engines={engines!r}, requires={requires!r})
        def test_a(ipcluster):
            pass
    """

    @pytest.mark.parametrize(("engines", "requires"), [("local", ("kill", "terminate", "pause")), ("mpi", ["pause"])])
    def test_test_runs_where_the_launcher_can_do_the_faults(self, hall, engines, requires):
        result = hall.run_tests(self.SOURCE.format(engines=engines, requires=requires))
        result.assert_outcomes(passed=1)

    def test_test_is_skipped_with_launcher_and_fault_where_it_can_not(self, hall):
        result = hall.run_tests(self.SOURCE.format(engines="mpi", requires=("pause", "kill")), "-rs")
        result.stdout.fnmatch_lines(["SKIPPED * the launcher 'mpi' can't kill single engines"])

    def test_skipped_test_sets_no_cluster_up(self, hall):
        assert hall.setups(self.SOURCE.format(engines="slurm", requires=("pause",))) == []

    def test_launcher_of_the_command_line_counts(self, hall):
        source = """
            import pytest

            @pytest.mark.ipcluster(requires=["pause"])
            def test_a(ipcluster):
                pass
        """
        hall.run_tests(source, "--ipcluster-engines=slurm").assert_outcomes(skipped=1)


class TestNetwork:
    SOURCE = """
        import pytest

        pytestmark = pytest.mark.ipcluster(network=True)

        def test_a(ipcluster):
            assert ipcluster.network

        def test_b(ipcluster):
            pass

        @pytest.mark.ipcluster(network=False)
        def test_c(ipcluster):
            assert not ipcluster.network
    """

    def test_is_another_cluster(self, hall):
        assert len(hall.setups(self.SOURCE)) == 2

    def test_is_refused_for_launchers_of_which_the_network_is_not_known(self, hall):
        result = hall.run_tests(self.SOURCE, "--ipcluster-engines=mpi")
        told = "takes one of the launchers 'forkserver', 'local', not 'mpi'"
        assert errors(result) == [f"test_it.py::test_a: @pytest.mark.ipcluster(network=True): {told}"]

    def test_is_refused_in_a_profile_of_ones_own(self, hall):
        (hall.pytester.path / ".ipython" / "profile_science").mkdir(parents=True)
        result = hall.run_tests(self.SOURCE, "--ipcluster-profile=science")
        [told] = errors(result)
        assert told.startswith("test_it.py::test_a: @pytest.mark.ipcluster(network=True): takes a private profile")
