from __future__ import annotations

import pytest

from pytest_ipcluster.options import OPTIONS

PLACES = ["command line", "environment", "ini file"]

OF_THE_SHAPE = {"n", "engines", "args", "profile"}

# name, text that is given, the value it becomes, the default
GOOD = [
    ("n", "4", 4, 2),
    ("n", "1", 1, 2),
    ("args", "--log-level=DEBUG -- '--a b'", ("--log-level=DEBUG", "--", "--a b"), ()),
    ("args", "", (), ()),
    ("engines", "mpi", "mpi", "forkserver"),
    ("engines", "MPI", "mpi", "forkserver"),
    ("engines", "package.module.Class", "package.module.Class", "forkserver"),
    ("profile", "", None, None),
    ("heart_period", "50", 50.0, 100.0),
    ("heart_period", "0.5", 0.5, 100.0),
    ("heart_misses", "1", 1, 3),
    *[("spares", text, int(text), 0) for text in ("0", "2")],
    *[("monitor", word, word, "auto") for word in ("auto", "thread", "process")],
    ("start_timeout", "1e2", 100.0, 60.0),
    ("timeout", "0", 0.0, 300.0),
    ("timeout", "12.5", 12.5, 300.0),
    ("kill_after", "0", 0.0, 5.0),
    ("kill_after", "0.25", 0.25, 5.0),
    ("leaks", "warn", "warn", "fail"),
    ("leaks", "off", "off", "fail"),
]

# name, text that is given, what is accepted
BAD = [
    *[("n", text, "a whole number of engines, 1 or more") for text in ("0", "-1", "2.5", "four", "", "True")],
    *[("heart_misses", text, "a whole number of heartbeats, 1 or more") for text in ("0", "1.0", "few")],
    *[("heart_period", text, "a number of milliseconds, more than 0") for text in ("0", "-5", "nan", "inf", "fast")],
    *[("start_timeout", text, "a number of seconds, more than 0") for text in ("0", "-1", "inf", "soon", "")],
    *[("timeout", text, "a number of seconds, 0 or more") for text in ("-1", "nan", "never", "")],
    *[("kill_after", text, "a number of seconds, 0 or more") for text in ("-0.1", "nan", "never")],
    *[("leaks", text, "one of fail, warn, off") for text in ("", "Fail", "no")],
    ("args", "--a 'b", "arguments quoted as for a shell (No closing quotation)"),
    ("engines", "nope", "one of "),
    ("monitor", "fork", "one of "),
    *[("spares", text, "a whole number of engines, 0 or more") for text in ("-1", "1.5", "two")],
    ("engines", "", "one of "),
    ("profile", "nope", "the name of a profile in "),
]

SPELLING = {
    "command line": lambda name: f"--ipcluster-{name.replace('_', '-')}",
    "environment": lambda name: f"PYTEST_IPCLUSTER_{name.upper()}",
    "ini file": lambda name: f"ipcluster_{name}",
}


def value_of(settings, name):
    holder = settings.shape if name in OF_THE_SHAPE else settings
    return getattr(holder, "extra_args" if name == "args" else name)


def test_the_table_holds_exactly_the_options_of_this_release():
    names = "n args engines profile heart_period heart_misses monitor spares start_timeout timeout kill_after"
    names += " seed zombies leaks"
    assert {option.name for option in OPTIONS} == set(names.split())


@pytest.mark.parametrize(("name", "default"), sorted({(name, default) for name, _, _, default in GOOD}, key=str))
def test_option_not_given_has_its_default(hall, name, default):
    assert value_of(hall.settings(), name) == default


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("name", "text", "value", "_default"), GOOD)
def test_option_is_read_from_each_place(hall, place, name, text, value, _default):
    hall.give(place, name, text)
    assert value_of(hall.settings(), name) == value


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_source_of_an_option_not_given_is_default(hall, option):
    assert hall.settings().sources[option.name] == "default"


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("command line", "command line"),
        ("environment", "environment variable PYTEST_IPCLUSTER_HEART_MISSES"),
        ("ini file", "ini file"),
    ],
)
def test_source_of_a_value_is_the_place_that_gave_it(hall, place, source):
    hall.give(place, "heart_misses", "7")
    assert hall.settings().sources["heart_misses"] == source


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("name", "text", "accepted"), BAD)
def test_bad_value_is_told_with_spelling_value_place_and_what_is_accepted(hall, place, name, text, accepted):
    hall.give(place, name, text)
    with pytest.raises(pytest.UsageError) as caught:
        hall.settings()
    told = f"{SPELLING[place](name)}={text!r} (from the {place}): expected {accepted}"
    assert str(caught.value).startswith(told)


def test_bad_value_ends_the_run_with_exit_code_4_and_one_line(hall):
    result = hall.run("--ipcluster-n=four")
    told = "--ipcluster-n='four' (from the command line): expected a whole number of engines, 1 or more"
    assert (result.ret, [line for line in result.errlines if line]) == (4, [f"ERROR: {told}"])


def test_unknown_launcher_is_told_with_the_known_ones(hall):
    with pytest.raises(pytest.UsageError, match=r"expected one of .*local, .*mpi, .*slurm.* or an import path"):
        hall.settings("--ipcluster-engines=nope")


@pytest.mark.parametrize("chain", [PLACES, PLACES[1:]], ids=" > ".join)
def test_the_first_place_wins(hall, chain):
    for number, place in enumerate(chain, start=1):
        hall.give(place, "n", str(number))
    assert hall.settings().shape.n == 1


@pytest.mark.parametrize("place", PLACES[1:])
def test_zero_on_the_command_line_wins_over(hall, place):
    hall.give(place, "kill_after", "7")
    assert hall.settings("--ipcluster-kill-after=0").kill_after == 0


def test_zero_in_the_environment_wins_over_the_ini_file(hall):
    hall.give("ini file", "kill_after", "7")
    hall.give("environment", "kill_after", "0")
    assert hall.settings().kill_after == 0


def test_no_arguments_on_the_command_line_win_over_some_in_the_ini_file(hall):
    hall.give("ini file", "args", "--debug")
    assert hall.settings("--ipcluster-args=").shape.extra_args == ()


def test_value_that_does_not_win_is_not_judged(hall):
    hall.give("ini file", "n", "four")
    assert hall.settings("--ipcluster-n=4").shape.n == 4


class TestProfile:
    @pytest.fixture
    def folder(self, hall, tmp_path):
        for name in ("default", "science"):
            tmp_path.joinpath("ipy", f"profile_{name}").mkdir(parents=True)
        hall.monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipy"))
        return tmp_path / "ipy"

    @pytest.mark.usefixtures("folder")
    def test_profile_that_exists_is_accepted(self, hall):
        assert hall.settings("--ipcluster-profile=science").shape.profile == "science"

    @pytest.mark.usefixtures("folder")
    def test_empty_profile_on_the_command_line_is_the_private_one(self, hall):
        hall.give("ini file", "profile", "science")
        assert hall.settings("--ipcluster-profile=").shape.profile is None

    def test_missing_profile_is_told_with_the_folder_and_those_that_exist(self, hall, folder):
        with pytest.raises(pytest.UsageError) as caught:
            hall.settings("--ipcluster-profile=nope")
        told = f"expected the name of a profile in {folder}, which has default, science"
        assert str(caught.value) == f"--ipcluster-profile='nope' (from the command line): {told}"

    def test_missing_profile_is_looked_for_in_the_home_without_ipythondir(self, hall, tmp_path):
        hall.monkeypatch.setenv("HOME", str(tmp_path))
        with pytest.raises(pytest.UsageError) as caught:
            hall.settings("--ipcluster-profile=nope")
        assert str(caught.value).endswith(f"a profile in {tmp_path / '.ipython'}, which has none")

    @pytest.mark.usefixtures("folder")
    @pytest.mark.parametrize("name", ["../ipy/profile_default", "default/../profile_science", "*"])
    def test_profile_is_a_name_and_not_a_path_or_pattern(self, hall, name):
        with pytest.raises(pytest.UsageError, match="the name of a profile in"):
            hall.settings(f"--ipcluster-profile={name}")


class TestHelp:
    @pytest.mark.parametrize(
        ("flag", "default"),
        [
            ("--ipcluster-n=N", "2"),
            ("--ipcluster-args=ARGS", "none"),
            ("--ipcluster-engines=NAME", "forkserver; in a profile of yours what that says"),
            ("--ipcluster-profile=NAME", "none: a private, temporary one"),
            ("--ipcluster-heart-period=MS", "100"),
            ("--ipcluster-heart-misses=N", "3"),
            ("--ipcluster-monitor={auto,thread,process}", "auto"),
            ("--ipcluster-spares=N", "0"),
            ("--ipcluster-start-timeout=S", "60"),
            ("--ipcluster-timeout=S", "300"),
            ("--ipcluster-kill-after=S", "5"),
        ],
    )
    def test_help_tells_default_and_both_twins(self, hall, flag, default):
        text = "".join(hall.run("--help").stdout.str().split())
        name = flag.removeprefix("--ipcluster-").split("=")[0].replace("-", "_")
        twins = f"(default:{default};ini:ipcluster_{name};environment:PYTEST_IPCLUSTER_{name.upper()})"
        assert flag in text
        assert "".join(twins.split()) in text

    def test_help_lists_the_ini_twins_too(self, hall):
        text = " ".join(hall.run("--help").stdout.str().split())
        assert "ipcluster_kill_after (string): Same as --ipcluster-kill-after." in text
