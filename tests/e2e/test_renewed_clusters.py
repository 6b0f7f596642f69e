"""What the next test finds, and what it is told, on real clusters."""

from __future__ import annotations

import re


def test_a_test_with_nothing_but_the_cluster_finds_its_engines_whatever_was_done_to_them(run):
    result = run(
        """
        import os, signal, time, pytest
        from pytest_ipcluster.cluster.processes import wait_gone

        def stop_heart():
            from pytest_ipcluster.hearts import agent
            for heart in agent._beating.values():
                heart.stop()

        @pytest.fixture
        def mine(ipcluster):
            # set up after the repair
            assert [engine.state for engine in ipcluster.engines] == ["idle"] * 2
            client = ipcluster.client()
            assert client[:].apply_async(os.getpid).get(60) == [engine.pid for engine in ipcluster.engines]
            client.close()

        def test_kill(ipcluster):
            os.kill(ipcluster.engines[1].pid, signal.SIGKILL)
            wait_gone([ipcluster.engines[1].process], 60)
        def test_after_kill(mine): pass
        def test_pause(ipcluster):
            os.kill(ipcluster.engines[0].pid, signal.SIGSTOP)
            while ipcluster.engines[0].state != "paused": time.sleep(0.001)
        def test_after_pause(mine): pass
        def test_silence(ipcluster, heart_monitor):
            client = ipcluster.client()
            client[1].apply_async(stop_heart).get(60)
            client.close()
            while ipcluster.engines[1].heart in heart_monitor.hearts: time.sleep(0.01)
        def test_after_silence(mine): pass
        def test_shrink(ipcluster):
            ipcluster.restore(1)
        def test_after_shrink(mine): pass
        def test_stop(ipcluster):
            ipcluster.stop()
        def test_after_stop(mine):
            assert False, "to see the report"
        """
    )
    result.assert_outcomes(passed=8, failed=2)  # the kill, and the one that shows its report
    result.stdout.re_match_lines(
        [
            r"^-+ Captured ipcluster setup -+$",
            r"^restarted in \d+\.\d\d s, after test_it.py::test_stop: it could not be repaired: .* not running",
            r"^=+ ipcluster =+$",
            r"^repaired once in \d+\.\d\d s: the engine was dead$",
            r"^repaired once in \d+\.\d\d s: the engine was paused$",
            r"^repaired once in \d+\.\d\d s: the engine's heart did not beat$",
            r"^repaired once in \d+\.\d\d s: there was no engine$",
            r"^restarted once in \d+\.\d\d s: it could not be repaired: .* not running",
        ]
    )


def test_nothing_is_told_of_a_run_in_which_nothing_was_repaired(run):
    result = run(
        """
        import pytest
        def test_it(ipcluster_client): pass
        def test_again(ipcluster_client): pass
        @pytest.mark.ipcluster(n=3)
        def test_larger(ipcluster_client): pass
        """
    )
    result.assert_outcomes(passed=3)
    assert "= ipcluster =" not in str(result.stdout)


def test_what_heart_failure_repairs_is_told_in_both_reports_and_counted_once(run):
    result = run(
        """
        def test_kill(heart_failure):
            heart_failure.kill("all").wait_all()
            assert False, "to see the report"
        def test_next(ipcluster):
            assert False, "to see the report"
        """
    )
    result.assert_outcomes(failed=2)
    told = r"^repaired slot 0 in \d+\.\d\d s, after test_it.py::test_kill: the engine was dead$"
    result.stdout.re_match_lines(
        [
            r"^-+ Captured ipcluster teardown -+$",
            told,
            r"^repaired slot 1, after test_it.py::test_kill: the engine was dead$",
            r"^-+ Captured ipcluster setup -+$",
            told,
            r"^=+ ipcluster =+$",
            r"^repaired 2 times in \d+\.\d\d s: the engine was dead$",
        ]
    )


def test_tasks_that_nobody_waited_for_are_told_when_they_are_dropped(run):
    result = run(
        """
        import time
        def test_leaves(ipcluster_client):
            view = ipcluster_client.load_balanced_view()
            for _ in range(30):
                view.apply_async(time.sleep, 0.3)
        def test_next(ipcluster_client):
            assert ipcluster_client.load_balanced_view().apply_async(abs, -1).get(60) == 1
        """,
        "-v",
    )
    result.assert_outcomes(passed=2)
    told = r"^test_it.py::test_next: dropped in \S+ s, after \S+::test_leaves: \d+ tasks that a test had not waited for"
    result.stdout.re_match_lines([told])
    assert "repaired" not in str(result.stdout)


def test_stock_is_taken_when_engines_start(run):
    """Whatever a test does with a client of its own, before any test has asked for one of ours."""
    result = run(
        """
        import os
        def test_first(ipcluster):
            client = ipcluster.client()
            client[:].push({"left_over": 1}, block=True)
            client[:].apply_sync(os.chdir, "/")
            client.close()
        def test_next(ipcluster_view):
            assert ipcluster_view.apply_sync(os.getcwd) == [os.getcwd()] * 2
            names = ipcluster_view.apply_sync(lambda: sorted(__import__("IPython").get_ipython().user_ns))
            assert not any("left_over" in engine for engine in names)
            assert all("from_startup" in engine for engine in names)
        """,
        conftest="""
            import pytest
            from traitlets.config import Config

            @pytest.fixture(scope="session")
            def ipcluster_config():
                config = Config()
                config.IPKernelApp.exec_lines = ["from_startup = 1"]
                return config
        """,
    )
    result.assert_outcomes(passed=2)
    assert "= ipcluster =" not in str(result.stdout)


BREAK = """
    import pytest
    from pytest_ipcluster.cluster import slots

    @pytest.fixture
    def break_repairs(ipcluster, monkeypatch):
        # Engines end at once, and so does ipcluster, which refuses the argument.
        ipcluster.slots._starts._arguments.append("--no-such-argument")
        ipcluster.extra_args = ["--no-such-argument"]
"""


def test_a_restart_that_fails_errs_every_test_with_its_cause_and_is_not_tried_again(run):
    result = run(
        """
        import pytest
        from pytest_ipcluster.cluster.processes import wait_gone
        def test_kill(ipcluster, break_repairs):
            ipcluster.engines[0].process.kill()
            wait_gone([ipcluster.engines[0].process], 60)
        def test_one(ipcluster): pass
        def test_two(ipcluster_client): pass
        def test_three(heart_failure): pass
        @pytest.mark.ipcluster(extra_args=["--log-level=INFO"])
        def test_another_cluster(ipcluster_client): pass
        """,
        "-s",
        conftest=BREAK
        + """
    launches = []

    @pytest.fixture(scope="session", autouse=True)
    def count():
        from pytest_ipcluster.cluster import runtime
        original = runtime.Runtime.launch
        runtime.Runtime.launch = lambda self: (launches.append(1), original(self))[1]
        yield
        runtime.Runtime.launch = original
        print(f"\\nlaunches: {len(launches)}")
""",
    )
    result.assert_outcomes(passed=1, failed=1, errors=3)
    told = re.findall(
        r"^E +pytest_ipcluster.errors.ClusterStartError: .*no-such-argument", str(result.stdout), re.MULTILINE
    )
    assert len(told) == 3
    assert str(result.stdout).count("The cluster was being restarted: it could not be repaired: ") == 3
    result.stdout.fnmatch_lines(["launches: 3"])


def test_workers_tell_what_they_repaired(run):
    result = run(
        """
        import time, pytest
        @pytest.mark.parametrize("i", range(2))
        def test_pause(ipcluster, i):
            ipcluster.engines[0].process.suspend()
            while ipcluster.engines[0].state != "paused": time.sleep(0.001)
        def test_next(ipcluster_client): pass
        """,
        "-n2",
        "--dist=each",
        "-v",
    )
    result.assert_outcomes(passed=6)
    lines = [line for line in result.outlines if "repaired slot 0 in" in line]
    assert len(lines) == 4, lines
    assert all("the engine was paused" in line for line in lines)
