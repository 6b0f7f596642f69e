from __future__ import annotations

import subprocess
import sys

import pytest

THREE_SHAPES = """
    import pytest

    def test_a(ipcluster): pass

    @pytest.mark.ipcluster(n=4)
    def test_b(ipcluster): pass

    @pytest.mark.ipcluster(n=3)
    def test_c(ipcluster): pass

    def test_d(): pass

    @pytest.mark.ipcluster(n=4)
    def test_e(ipcluster): pass

    @pytest.mark.ipcluster(n=2)
    def test_f(ipcluster): pass

    @pytest.mark.ipcluster(n=3)
    def test_g(ipcluster): pass
"""


def ids(result):
    return [line for line in result.outlines if "::" in line]


class TestGrouping:
    def test_each_shape_is_set_up_once(self, hall):
        assert hall.setups(THREE_SHAPES) == ["2", "4", "3"]

    def test_each_shape_is_set_up_once_across_modules(self, hall):
        hall.pytester.makepyfile(test_other=THREE_SHAPES)
        assert hall.setups(THREE_SHAPES) == ["2", "4", "3"]

    def test_tests_of_one_shape_keep_their_order(self, hall):
        hall.pytester.makepyfile(THREE_SHAPES)
        names = [line.split("::")[1] for line in ids(hall.run("--collect-only", "-q"))]
        assert [name for name in names if name != "test_d"] == [f"test_{letter}" for letter in "afbecg"]

    def test_equal_shapes_are_one_object(self, hall):
        source = """
            import pytest

            seen = set()

            @pytest.mark.parametrize("x", [1, 2])
            @pytest.mark.ipcluster(n=4, extra_args=["--a"])
            def test_a(ipcluster, request, x):
                seen.add(id(request.node.callspec.params["ipcluster"]))

            @pytest.mark.ipcluster(n=4, extra_args=("--a",))
            def test_b(ipcluster, request):
                assert seen == {id(request.node.callspec.params["ipcluster"])}
        """
        hall.run_tests(source).assert_outcomes(passed=3)

    def test_order_without_cluster_is_unchanged(self, hall):
        hall.pytester.makepyfile("def test_b(): pass\ndef test_a(): pass\ndef test_c(): pass")
        names = [line.split("::")[1] for line in ids(hall.run("--collect-only", "-q"))]
        assert names == ["test_b", "test_a", "test_c"]


class TestIds:
    SOURCE = """
        import pytest

        @pytest.fixture(params=["p", "q"])
        def other(request): pass

        @pytest.fixture
        def between(ipcluster): return ipcluster

        class TestA:
            @pytest.mark.ipcluster(n=4)
            def test_a(self, ipcluster): pass

            @pytest.mark.parametrize("x", [1, 2])
            def test_b(self, between, x, other): pass
    """
    IDS = (
        "test_it.py::TestA::test_a",
        "test_it.py::TestA::test_b[p-1]",
        "test_it.py::TestA::test_b[p-2]",
        "test_it.py::TestA::test_b[q-1]",
        "test_it.py::TestA::test_b[q-2]",
    )

    @pytest.fixture(autouse=True)
    def source(self, hall):
        hall.pytester.makepyfile(test_it=self.SOURCE)

    def test_ids_do_not_show_the_shape(self, hall):
        assert ids(hall.run("--collect-only", "-q")) == list(self.IDS)

    def test_ids_and_order_are_those_without_the_plugin(self, hall):
        without = hall.pytester.runpytest_inprocess("--collect-only", "-q")
        assert ids(without) == list(self.IDS)

    @pytest.mark.parametrize("nodeid", IDS)
    def test_each_id_selects_its_test(self, hall, nodeid):
        assert ids(hall.run("--collect-only", "-q", nodeid)) == [nodeid]

    @pytest.mark.parametrize(
        ("word", "count"), [("test_a", 1), ("test_b and 1", 2), ("TestA", 5), ("local", 0), ("Shape", 0)]
    )
    def test_keywords_select_as_without_the_shape(self, hall, word, count):
        assert len(ids(hall.run("--collect-only", "-q", "-k", word))) == count


class TestReach:
    def test_marker_reaches_through_intermediate_fixtures(self, hall):
        source = """
            import pytest

            @pytest.fixture(scope="session")
            def inner(ipcluster): return ipcluster

            @pytest.fixture
            def outer(inner): return inner

            @pytest.mark.ipcluster(n=4)
            def test_a(outer): assert outer.n == 4

            def test_b(outer): assert outer.n == 2

            @pytest.mark.ipcluster(n=4)
            def test_c(outer): assert outer.n == 4
        """
        assert hall.setups(source) == ["4", "2"]

    @pytest.mark.parametrize("way", ["@pytest.mark.usefixtures('ipcluster')", "@pytest.mark.usefixtures('between')"])
    def test_marker_reaches_through_usefixtures(self, hall, way):
        source = f"""
            import pytest

            @pytest.fixture
            def between(ipcluster): pass

            {way}
            @pytest.mark.ipcluster(n=4)
            def test_a(): pass
        """
        assert hall.setups(source) == ["4"]

    def test_marker_reaches_through_an_autouse_fixture(self, hall):
        source = """
            import pytest

            @pytest.fixture(autouse=True)
            def always(ipcluster): pass

            @pytest.mark.ipcluster(n=4)
            def test_a(): pass
        """
        assert hall.setups(source) == ["4"]

    def test_getfixturevalue_gives_the_default_shape(self, hall):
        source = """
            def test_a(request):
                assert request.getfixturevalue("ipcluster").n == 5
        """
        hall.run_tests(source, "--ipcluster-n=5").assert_outcomes(passed=1)


class TestLeftAlone:
    @pytest.mark.parametrize(
        "arguments", ["'ipcluster', [7, 8]", "['ipcluster'], [(7,), (8,)]", "argnames='ipcluster', argvalues=[7, 8]"]
    )
    def test_test_that_parametrizes_ipcluster_indirectly(self, hall, arguments):
        source = f"""
            import pytest

            @pytest.mark.parametrize({arguments}, indirect=True)
            def test_a(ipcluster): assert ipcluster in (7, 8)
        """
        hall.run_tests(source).assert_outcomes(passed=2)

    def test_test_that_parametrizes_ipcluster_directly(self, hall):
        source = """
            import pytest

            @pytest.mark.parametrize("x, ipcluster", [(1, 7), (2, 8)])
            def test_a(ipcluster, x): assert ipcluster == x + 6
        """
        hall.run_tests(source).assert_outcomes(passed=2)

    def test_class_that_parametrizes_ipcluster(self, hall):
        source = """
            import pytest

            @pytest.mark.parametrize("ipcluster", [7], indirect=True)
            class TestA:
                def test_a(self, ipcluster): assert ipcluster == 7
        """
        hall.run_tests(source).assert_outcomes(passed=1)

    def test_module_whose_hook_parametrizes_ipcluster(self, hall):
        source = """
            def pytest_generate_tests(metafunc):
                metafunc.parametrize("ipcluster", [7, 8], indirect=True)

            def test_a(ipcluster): assert ipcluster in (7, 8)
        """
        hall.run_tests(source).assert_outcomes(passed=2)

    def test_overriding_fixture_with_parameters_of_its_own(self, hall):
        source = """
            import pytest

            @pytest.fixture(params=[7, 8])
            def ipcluster(request): return request.param

            @pytest.mark.ipcluster(n=4)
            def test_a(ipcluster): assert ipcluster in (7, 8)
        """
        hall.run_tests(source).assert_outcomes(passed=2)

    def test_overriding_fixture_keeps_its_own_scope(self, hall):
        source = """
            import pytest

            @pytest.fixture
            def ipcluster(tmp_path): return tmp_path

            def test_a(ipcluster, tmp_path): assert ipcluster == tmp_path
        """
        hall.run_tests(source).assert_outcomes(passed=1)

    def test_overriding_fixture_that_uses_ours_gets_the_shape(self, hall):
        source = """
            import pytest

            @pytest.fixture(scope="session")
            def ipcluster(ipcluster): return ipcluster.n * 10

            @pytest.mark.ipcluster(n=4)
            def test_a(ipcluster): assert ipcluster == 40
        """
        hall.run_tests(source).assert_outcomes(passed=1)


class TestTelling:
    def test_markers_tells_every_keyword(self, hall):
        text = hall.run("--markers").stdout.str()
        line = next(line for line in text.splitlines() if line.startswith("@pytest.mark.ipcluster("))
        signature = line.split("): ")[0]
        keywords = ("*, n=", "extra_args=", "engines=", "requires=", "network=")
        assert [word for word in keywords if word not in signature] == []

    def test_marker_is_registered(self, hall):
        source = "import pytest\n@pytest.mark.ipcluster(n=4)\ndef test_a(): pass"
        hall.run_tests(source, "--strict-markers").assert_outcomes(passed=1)

    def test_fixtures_tells_the_docstring_of_ipcluster(self, hall):
        hall.run("--fixtures").stdout.fnmatch_lines(["ipcluster [[]session scope[]] -- *fixtures.py:*", "    ?*"])

    def test_header_is_one_line(self, hall):
        hall.give("environment", "heart_misses", "5")
        lines = [line for line in hall.run("--ipcluster-n=4").outlines if line.startswith("ipcluster:")]
        assert lines == [
            "ipcluster: 4 engines (forkserver); a heartbeat every 100 ms, 5 missed is a failure; n from command line; "
            "heart_misses from environment variable PYTEST_IPCLUSTER_HEART_MISSES"
        ]


PROBE = """
import sys, pytest

class Probe:
    def pytest_sessionfinish(self):
        heavy = {"zmq", "traitlets", "tornado", "psutil", "IPython", "ipyparallel"}
        print("\\nheavy:", sorted(heavy & set(sys.modules)))
        print("ours:", sorted(name for name in sys.modules if name.startswith("pytest_ipcluster")))

pytest.main(sys.argv[1:], plugins=[Probe()])
"""


class TestWeight:
    @pytest.fixture
    def told(self, hall):
        hall.pytester.makepyfile("def test_a(): pass")
        command = [sys.executable, "-c", PROBE, "-s", "-q", "-p", "pytest_ipcluster.plugin"]
        output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        return dict(line.split(": ", 1) for line in output.splitlines() if line.startswith(("heavy:", "ours:")))

    def test_unused_plugin_imports_nothing_heavy(self, told):
        assert told["heavy"] == "[]"

    def test_unused_plugin_imports_at_most_eight_modules_of_ours(self, told):
        assert 0 < told["ours"].count("'") / 2 <= 8

    def test_importing_the_plugin_does_not_read_the_environment(self, hall):
        hall.monkeypatch.setenv("PYTEST_IPCLUSTER_N", "four")
        command = [sys.executable, "-c", "import pytest_ipcluster.plugin"]
        assert subprocess.run(command, check=False, timeout=60).returncode == 0


class TestSwitchedOff:
    """With ``-p no:ipcluster``, which goes by the name of the entry point."""

    @pytest.fixture
    def result(self, hall):
        hall.monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
        metadata = hall.pytester.mkdir("installed-1.0.dist-info")
        metadata.joinpath("METADATA").write_text("Name: installed\nVersion: 1.0\n")
        metadata.joinpath("entry_points.txt").write_text("[pytest11]\nipcluster = pytest_ipcluster.plugin\n")
        hall.pytester.syspathinsert()
        hall.pytester.makepyfile("def test_a(ipcluster): pass")
        return hall.pytester.runpytest_inprocess

    def test_fixtures_and_header_are_there_without_it(self, result):
        result("--setup-plan").stdout.fnmatch_lines(["ipcluster: 2 engines*", "*SETUP    S ipcluster*"])

    def test_fixtures_are_gone(self, result):
        result("-p", "no:ipcluster").stdout.fnmatch_lines(["*fixture 'ipcluster' not found*"])

    def test_options_are_gone(self, result):
        assert result("-p", "no:ipcluster", "--ipcluster-n=4").ret == pytest.ExitCode.USAGE_ERROR
