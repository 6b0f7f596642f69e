from __future__ import annotations

from types import SimpleNamespace

import pluggy
import pytest
import pytest_timeout
from timers import Timers

from pytest_ipcluster import keeper
from pytest_ipcluster.partners.timeout import TimeLimits

METHODS = pytest.mark.parametrize("method", ["signal", "thread"])


class Bench:
    """A TimeLimits between a test that has a limit and timers that end nothing, with a clock that is turned by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.reminders: list[float | None] = []
        self.limits = TimeLimits(
            300.0, "default", clock=lambda: self.now, remind=lambda at, _: self.reminders.append(at)
        )
        self.timers = Timers()
        self.plugins = pluggy.PluginManager("pytest")
        self.plugins.add_hookspecs(pytest_timeout.TimeoutHooks)
        self.plugins.register(self.timers)
        self.plugins.register(self.limits)
        self.hook = self.plugins.hook
        self.item = self.new_item()

    def new_item(self):
        return SimpleNamespace(config=SimpleNamespace(hook=self.hook), stash=pytest.Stash(), name="test_a")

    def set(self, timeout: float) -> None:
        settings = pytest_timeout.Settings(timeout, "signal", False, False)
        self.hook.pytest_timeout_set_timer(item=self.item, settings=settings)

    def cancel(self, item=None) -> None:
        self.hook.pytest_timeout_cancel_timer(item=item or self.item)

    def stop(self, *, before: float, during: float) -> None:
        """Let some time pass, and then some more while the timer is stopped."""
        self.now += before
        with self.limits.stopped():
            self.now += during


@pytest.fixture
def bench() -> Bench:
    return Bench()


class TestStoppedClock:
    def test_timer_has_as_long_to_go_after_the_block_as_before(self, bench):
        bench.set(10.0)
        bench.stop(before=3, during=100)
        assert bench.timers.calls == [10, "cancel", 7]

    def test_timer_does_not_run_in_the_block(self, bench):
        bench.set(10.0)
        with bench.limits.stopped():
            assert not bench.timers.running

    def test_blocks_one_after_the_other_add_up(self, bench):
        bench.set(10.0)
        bench.stop(before=3, during=100)
        bench.stop(before=2, during=100)
        assert bench.timers.calls == [10, "cancel", 7, "cancel", 5]

    def test_block_inside_a_block_does_nothing(self, bench):
        bench.set(10.0)
        with bench.limits.stopped():
            bench.stop(before=50, during=100)
            assert not bench.timers.running
        assert bench.timers.calls == [10, "cancel", 10]

    def test_timer_goes_on_after_a_block_that_raises(self, bench):
        bench.set(10.0)
        with pytest.raises(KeyboardInterrupt), bench.limits.stopped():
            raise KeyboardInterrupt
        assert bench.timers.calls == [10, "cancel", 10]

    def test_other_settings_stay_as_they_are(self, bench):
        settings = pytest_timeout.Settings(10.0, "thread", True, True)
        bench.hook.pytest_timeout_set_timer(item=bench.item, settings=settings)
        bench.timers.settings.clear()
        bench.stop(before=0, during=1)
        assert bench.timers.settings["test_a"] == settings

    def test_rest_of_a_limit_reads_as_the_whole(self, bench):
        bench.set(10.0)
        bench.stop(before=3, during=1)
        bench.stop(before=3, during=1)
        assert [str(call) for call in bench.timers.calls] == ["10.0", "cancel", "10.0", "cancel", "10.0"]

    def test_next_to_nothing_left_is_more_than_nothing(self, bench):
        bench.set(10.0)
        bench.stop(before=10 - 1e-12, during=1)
        assert bench.timers.calls[-1] == 0.001

    @pytest.mark.parametrize("over", [0, 5])
    def test_timer_that_has_ended_is_not_set_again(self, bench, over):
        bench.set(10.0)
        bench.stop(before=10 + over, during=1)
        assert bench.timers.calls == [10]

    def test_timer_counts_from_before_it_is_set_so_that_one_that_has_ended_is_known_to_have(self, bench):
        class Slow:
            @pytest.hookimpl(tryfirst=True)
            def pytest_timeout_set_timer(self):
                bench.now += 1

        bench.plugins.register(Slow())
        bench.set(10.0)
        bench.stop(before=9, during=1)
        assert bench.timers.calls == [10]

    def test_timer_that_was_cancelled_is_not_set_again(self, bench):
        bench.set(10.0)
        bench.cancel()
        bench.stop(before=1, during=1)
        assert bench.timers.calls == [10, "cancel"]

    def test_without_a_timer_nothing_is_done(self, bench):
        bench.stop(before=1, during=1)
        assert bench.timers.calls == []

    def test_cancelling_for_something_else_changes_nothing(self, bench):
        bench.set(10.0)
        bench.cancel(bench.new_item())
        bench.stop(before=1, during=1)
        assert bench.timers.calls == [10, "cancel", "cancel", 9]

    def test_timer_of_the_next_test_is_stopped_too(self, bench):
        bench.set(10.0)
        bench.cancel()
        bench.item = bench.new_item()
        bench.set(20.0)
        bench.stop(before=5, during=1)
        assert bench.timers.calls == [10, "cancel", 20, "cancel", 15]


class TestReminder:
    @pytest.mark.parametrize(("limit", "at"), [(300.0, 298.0), (10.0, 8.0), (4.0, 3.0), (0.4, 0.3)])
    def test_comes_shortly_before_the_end(self, bench, limit, at):
        bench.set(limit)
        assert bench.reminders == [pytest.approx(at)]

    def test_is_put_off_while_the_timer_is_stopped(self, bench):
        bench.set(10.0)
        bench.stop(before=3, during=100)
        assert bench.reminders == [8, None, 103 + 7 - 1.75]  # what is left is a short limit

    def test_goes_with_the_timer(self, bench):
        bench.set(10.0)
        bench.cancel()
        assert bench.reminders == [8, None]

    @pytest.mark.parametrize("debugging", [True, False])
    def test_holds_only_where_the_timer_ends_the_test(self, bench, monkeypatch, debugging):
        monkeypatch.setattr(pytest_timeout, "is_debugging", lambda: debugging)
        holding = []
        bench.limits._remind = lambda _, holds: holding.append(holds())
        bench.set(10.0)
        assert holding == [not debugging]


class TestWhatIsCharged:
    def test_start_repairs_and_stop_are_not_charged_to_the_test(self, inside):
        inside("def test_a(ipcluster_client, heart_failure): pass", "--timeout=50").assert_outcomes(passed=1)
        assert inside.charged == [
            ("keeper", False),
            ("provide", False),
            ("client", False),
            ("injector", True),
            ("test", True),
            ("undo", False),
            ("restore", False),
            ("close", False),
        ]

    def test_stop_is_not_charged_to_the_last_test_which_does_not_use_the_cluster(self, inside):
        inside("def test_a(ipcluster): pass\ndef test_b(): pass", "--timeout=50").assert_outcomes(passed=2)
        assert inside.charged[-3:] == [("test", True), ("test", True), ("close", False)]

    def test_timer_is_cancelled_when_the_run_ends(self, inside):
        inside("def test_a(ipcluster): pass", "--timeout=50")
        assert not inside.timers.running

    def test_start_that_a_test_asks_for_in_its_body_is_not_charged(self, inside):
        inside("def test_a(request): request.getfixturevalue('ipcluster')", "--timeout=50")
        assert inside.charged == [("test", True), ("keeper", False), ("provide", False), ("close", False)]

    def test_start_that_fails_leaves_the_timer_to_pytest_timeout(self, inside, monkeypatch):
        def fail(*_):
            raise LookupError

        monkeypatch.setattr(keeper.Keeper, "provide", fail)
        inside("def test_a(ipcluster): pass", "--timeout=50").assert_outcomes(errors=1)
        assert inside.charged == [("keeper", False), ("close", False)]
        assert not inside.timers.running

    def test_timer_that_pytest_timeout_cancels_when_a_test_fails_is_not_set_again(self, inside, monkeypatch):
        monkeypatch.setattr(pytest_timeout, "pytest_exception_interact", cancel, raising=False)
        inside("def test_a(ipcluster): assert False", "--timeout=50").assert_outcomes(failed=1)
        assert inside.charged[-1] == ("close", False)
        assert sets(inside.timers.calls)[-3:] == [True, False, False]

    def test_timer_that_pytest_timeout_keeps_when_a_test_fails_goes_on_in_the_teardown(self, inside, monkeypatch):
        monkeypatch.delattr(pytest_timeout, "pytest_exception_interact", raising=False)
        inside("def test_a(ipcluster): assert False", "--timeout=50").assert_outcomes(failed=1)
        assert inside.charged[-1] == ("close", False)
        assert sets(inside.timers.calls)[-4:] == [True, False, True, False]


@pytest.hookimpl(tryfirst=True)
def cancel(node):
    """Do what pytest-timeout does when a test fails, up to version 2.4."""
    node.config.hook.pytest_timeout_cancel_timer(item=node)


def sets(calls):
    """Tell of each call whether it sets a timer."""
    return [call != "cancel" for call in calls]


class TestFuncOnly:
    @pytest.mark.parametrize("way", ["ini", "marker"])
    def test_only_the_test_is_charged_and_nothing_is_set_before_or_after(self, inside, way):
        if way == "ini":
            inside.pytester.makeini("[pytest]\ntimeout_func_only = true\ntimeout = 50")
        mark = "@pytest.mark.timeout(50, func_only=True)" if way == "marker" else ""
        inside(f"import pytest\n{mark}\ndef test_a(ipcluster_client): pass").assert_outcomes(passed=1)
        assert inside.timers.calls[0] == 50
        assert set(inside.timers.calls[1:]) == {"cancel"}
        assert [what for what, timer in inside.charged if timer] == ["test"]

    def test_default_limit_is_for_the_test_only_too(self, inside):
        inside.pytester.makeini("[pytest]\ntimeout_func_only = true")
        inside("def test_a(ipcluster_client): pass")
        assert [what for what, timer in inside.charged if timer] == ["test"]
        assert inside.timers.settings["test_a"].timeout == 300


class TestDefaultLimit:
    def limits(self, inside, source, *args):
        result = inside(f"import pytest\n{source}", *args)
        assert result.ret == 0, result.stdout.str()
        return {name: (settings.timeout, settings.method) for name, settings in inside.timers.settings.items()}

    @pytest.mark.parametrize("fixture", ["ipcluster", "ipcluster_client", "heart_failure", "between"])
    def test_test_that_uses_the_cluster_gets_it(self, inside, fixture):
        source = f"@pytest.fixture\ndef between(ipcluster): pass\ndef test_a({fixture}): pass\ndef test_b(): pass"
        assert self.limits(inside, source) == {"test_a": (300, "signal")}

    @pytest.mark.parametrize(("given", "limit"), [("12.5", 12.5), ("1e3", 1000)])
    def test_option_tells_how_long_it_is(self, inside, given, limit):
        limits = self.limits(inside, "def test_a(ipcluster): pass", f"--ipcluster-timeout={given}")
        assert limits == {"test_a": (limit, "signal")}

    def test_zero_is_none(self, inside):
        source = "def test_a(request, ipcluster): assert request.node.get_closest_marker('timeout') is None"
        assert self.limits(inside, source, "--ipcluster-timeout=0") == {}

    @pytest.mark.parametrize("arguments", ["7", "timeout=7", "0", "7, 'thread'"])
    def test_limit_in_the_test_s_marker_wins(self, inside, arguments):
        source = f"@pytest.mark.timeout({arguments})\ndef test_a(ipcluster): pass"
        method = "thread" if "thread" in arguments else "signal"
        assert self.limits(inside, source) == ({} if arguments == "0" else {"test_a": (7, method)})

    @pytest.mark.parametrize(
        "source",
        [
            "@pytest.mark.timeout(7)\nclass TestA:\n    def test_a(self, ipcluster): pass",
            "pytestmark = pytest.mark.timeout(7)\ndef test_a(ipcluster): pass",
        ],
        ids=["class", "module"],
    )
    def test_limit_in_the_marker_of_its_class_or_module_wins(self, inside, source):
        assert self.limits(inside, source) == {"test_a": (7, "signal")}

    @pytest.mark.parametrize("limit", ["7", "0"])
    @pytest.mark.parametrize("place", ["command line", "ini file", "environment"])
    def test_limit_for_all_tests_wins_and_so_does_a_zero(self, inside, monkeypatch, place, limit):
        if place == "ini file":
            inside.pytester.makeini(f"[pytest]\ntimeout = {limit}")
        elif place == "environment":
            monkeypatch.setenv("PYTEST_TIMEOUT", limit)
        args = [f"--timeout={limit}"] if place == "command line" else []
        limits = self.limits(inside, "def test_a(ipcluster): pass", *args)
        assert limits == ({} if limit == "0" else {"test_a": (7, "signal")})

    def test_limit_that_somebody_s_hook_gives_wins(self, inside):
        inside.pytester.makeconftest(
            """
            import pytest

            def pytest_collection_modifyitems(items):
                items[0].add_marker(pytest.mark.timeout(7))
            """
        )
        assert self.limits(inside, "def test_a(ipcluster): pass") == {"test_a": (7, "signal")}

    @pytest.mark.parametrize("level", ["function", "class"])
    def test_marker_with_a_method_only_keeps_its_method(self, inside, level):
        mark = "@pytest.mark.timeout(method='thread')"
        source = f"{mark}\ndef test_a(ipcluster): pass"
        if level == "class":
            source = f"{mark}\nclass TestA:\n    def test_a(self, ipcluster): pass"
        assert self.limits(inside, source) == {"test_a": (300, "thread")}

    @pytest.mark.parametrize("args", [("-k", "timeout"), ("-m", "timeout")])
    def test_it_does_not_make_the_test_selected_by_the_marker_s_name(self, inside, args):
        result = inside("def test_a(ipcluster): pass", *args)
        assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED

    def test_header_tells_where_the_option_was_given(self, inside):
        inside("def test_a(): pass", "--ipcluster-timeout=7").stdout.fnmatch_lines(
            ["ipcluster: *timeout from command line"]
        )

    def test_test_that_fails_by_itself_does_not_speak_of_it(self, inside):
        result = inside("def test_a(ipcluster): assert False")
        result.assert_outcomes(failed=1)
        result.stdout.no_fnmatch_line("*time limit*")


class TestWithoutPytestTimeout:
    def test_nothing_is_limited_and_nothing_is_missing(self, inside):
        result = inside("def test_a(ipcluster_client, heart_failure): pass", "-W", "error", timeout=False)
        result.assert_outcomes(passed=1)
        assert [what for what, _ in inside.charged].count("test") == 1

    def test_it_can_be_switched_off(self, outside):
        source = (
            "def test_a(pytestconfig, _ipcluster_keeper):"
            "    assert not pytestconfig.pluginmanager.hasplugin('ipcluster-timeout')"
        )
        outside(source, "-p", "no:timeout", "--ipcluster-timeout=1").assert_outcomes(passed=1)

    def test_it_is_met_where_it_is_installed(self, outside):
        source = (
            "def test_a(pytestconfig, _ipcluster_keeper):"
            "    assert pytestconfig.pluginmanager.hasplugin('ipcluster-timeout')"
        )
        outside(source).assert_outcomes(passed=1)


# From here on timers are real. A start and a stop that last as long as the limit would end the test for certain if they
# were charged to it, and the rest of the test is next to nothing.
LIMIT = 2

KEEPER = """
import contextlib, time
import pytest_ipcluster.keeper

class Keeper:
    events = cluster = folder = None
    def __init__(self, *_, boss): pass
    def allow_restart(self): pass
    def renew(self, shape): pass
    def expire_at(self, limit, holds): pass
    def watch(self, item): return contextlib.nullcontext()
    def provide(self, shape, config): time.sleep({seconds})  # a start that takes as long as this
    def close(self): time.sleep({seconds})  # a stop that takes as long as this

pytest_ipcluster.keeper.Keeper = Keeper
"""

# To be loaded before pytest-timeout: takes the hook away that versions after 2.4 do not have any more.
NEWER = """
import pytest_timeout
vars(pytest_timeout).pop("pytest_exception_interact", None)
"""

# Tells which of the packages that take long to import are imported while a timer runs.
IMPORTS = """
import sys

HEAVY = {"IPython", "ipyparallel", "psutil", "tornado", "traitlets", "zmq"}

class Charged(list):
    running = False

    def find_spec(self, name, *_):
        if self.running and name in HEAVY:
            self.append(name)

sys.meta_path.insert(0, charged := Charged())

def pytest_timeout_set_timer():
    charged.running = True

def pytest_timeout_cancel_timer():
    charged.running = False

def pytest_terminal_summary(terminalreporter):
    terminalreporter.line(f"charged to the test: {[*charged]}")
"""

VERSIONS = pytest.mark.parametrize("version", [(), ("-p", "newer")], ids=["this version", "after 2.4"])

HANGS = """
import pytest, threading

@pytest.fixture
def broken():
    yield
    raise LookupError

def test_a(ipcluster{other}):
    print("said before")
    threading.Event().wait()
"""
HANGS, HANGS_AND_BREAKS = HANGS.format(other=""), HANGS.format(other=", broken")


class TestRealTimers:
    @pytest.fixture
    def run(self, outside):
        """Run a test on a keeper that takes so many seconds to start and to stop what is no cluster."""

        def run(source, *args, seconds=0, stdin=""):
            return outside(source, *args, conftest=KEEPER.format(seconds=seconds), newer=NEWER, stdin=stdin)

        return run

    @METHODS
    def test_start_and_stop_may_take_longer_than_the_limit(self, run, method):
        args = (f"--timeout={LIMIT}", f"--timeout-method={method}")
        run("def test_a(ipcluster): pass", *args, seconds=LIMIT).assert_outcomes(passed=1)

    def test_no_import_of_a_heavy_package_is_charged_to_the_test(self, outside):
        source = "def test_a(ipcluster): pass"
        result = outside(source, "--timeout=60", conftest=KEEPER.format(seconds=0) + IMPORTS)
        result.assert_outcomes(passed=1)
        result.stdout.fnmatch_lines(["charged to the test: []"])

    @VERSIONS
    def test_limit_of_its_own_still_ends_the_test_and_is_told_as_it_was_given(self, run, version):
        result = run(HANGS, *version, f"--timeout={LIMIT}")
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines([f"E* Timeout *>{LIMIT:.1f}s*"])
        result.stdout.no_fnmatch_line("*ipcluster-timeout*")

    @VERSIONS
    def test_default_limit_ends_the_test_once_and_tells_where_it_came_from(self, run, version):
        result = run(HANGS_AND_BREAKS, *version, f"--ipcluster-timeout={LIMIT}")
        result.assert_outcomes(failed=1, errors=1)
        told = f"The limit of {LIMIT} s is that of --ipcluster-timeout (command line), *"
        result.stdout.fnmatch_lines([f"E* Timeout *>{LIMIT:.1f}s*", "* time limit *", told])
        assert result.stdout.str().count("--ipcluster-timeout (command line)") == 1

    def test_default_limit_tells_where_it_came_from_when_only_the_body_is_timed(self, run):
        result = run(HANGS, "-o", "timeout_func_only=true", "-o", f"ipcluster_timeout={LIMIT}")
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines(["* time limit *", "* --ipcluster-timeout (ini file), *"])

    def test_default_limit_tells_where_it_came_from_before_the_thread_method_ends_the_process(self, run):
        result = run(HANGS, f"--ipcluster-timeout={LIMIT}", "--timeout-method=thread")
        assert result.ret == 1
        told = f"The limit of {LIMIT} s is that of --ipcluster-timeout (command line), *"
        result.stdout.fnmatch_lines([told, "*+ Timeout +*", "said before"])
        result.stdout.no_fnmatch_line("* failed in *")

    def test_limit_of_its_own_ends_the_process_without_a_word_of_ours(self, run):
        result = run(HANGS, f"--timeout={LIMIT}", "--timeout-method=thread")
        assert result.ret == 1
        result.stdout.fnmatch_lines(["*+ Timeout +*"])
        result.stdout.no_fnmatch_line("*ipcluster-timeout*")

    @METHODS
    def test_whoever_debugs_has_no_limit_in_the_test_nor_in_the_teardown(self, run, method):
        source = f"""
            import time
            def test_a(ipcluster):
                breakpoint()
                time.sleep({LIMIT})  # until the time is up, which announces itself by no event when somebody debugs
        """
        args = (f"--ipcluster-timeout={LIMIT}", f"--timeout-method={method}")
        result = run(source, *args, stdin="continue\n")
        result.assert_outcomes(passed=1)
        result.stdout.fnmatch_lines(["*PDB continue*"])
        result.stdout.no_fnmatch_line("The limit of *")

    @VERSIONS
    def test_post_mortem_has_no_limit_nor_has_the_teardown_after_it(self, run, version):
        args = (*version, "--pdb", f"--ipcluster-timeout={LIMIT}")
        stdin = f"import time; time.sleep({LIMIT})\ncontinue\n"
        result = run("def test_a(ipcluster): assert False", *args, stdin=stdin)
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines(["*entering PDB*"])
        result.stdout.no_fnmatch_line("*Timeout*")


# Longer, for here there is more beside the start and the stop; they take longer still.
REAL_LIMIT = 4

SLOW_CLUSTER = f"""
import time
import pytest
from pytest_ipcluster import BackgroundCluster

@pytest.fixture(scope="session", autouse=True)
def slow():
    with pytest.MonkeyPatch.context() as patch:
        for name in ("start", "stop"):
            patch.setattr(BackgroundCluster, name, slowed(getattr(BackgroundCluster, name)))
        yield

def slowed(method):
    def slowly(self, *args, **kwargs):
        time.sleep({REAL_LIMIT})  # on top of what it takes
        return method(self, *args, **kwargs)
    return slowly
"""


def test_a_real_cluster_may_start_and_stop_slower_than_the_limit(outside):
    source = """
        def test_a(ipcluster_client, heart_failure):
            assert ipcluster_client.ids == [0]
        def test_b():
            pass
    """
    result = outside(source, "--ipcluster-n=1", f"--timeout={REAL_LIMIT}", conftest=SLOW_CLUSTER)
    result.assert_outcomes(passed=2)
