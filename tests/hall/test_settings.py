from __future__ import annotations

import pytest

from pytest_ipcluster.settings import (
    Settings,
    Shape,
    header_line,
    marker_mistakes,
    missing_faults,
    network_mistake,
    shape_for,
)

SETTINGS = Settings(
    shape=Shape(n=2, engines="local", extra_args=("--a",), profile="science", network=False),
    heart_period=100.0,
    heart_misses=3,
    monitor="auto",
    spares=0,
    start_timeout=60.0,
    timeout=300.0,
    kill_after=5.0,
    seed=7,
    zombies="replace",
    leaks="fail",
    sources={"n": "default", "profile": "ini file"},
)

NODEID = "test_it.py::test_it"


def mark(*args, **kwargs):
    return pytest.mark.ipcluster.with_args(*args, **kwargs).mark


def shape(*markers):
    return shape_for(SETTINGS, markers, NODEID)


def test_shapes_of_equal_values_are_equal_and_hash_alike():
    one, other = (SETTINGS.shape.replaced(extra_args=("--b",)) for _ in range(2))
    assert {one} == {other}
    assert one != SETTINGS.shape


@pytest.mark.parametrize("value", [SETTINGS, SETTINGS.shape], ids=["settings", "shape"])
def test_values_are_frozen(value):
    name = next(iter(vars(value)))
    with pytest.raises(AttributeError):
        setattr(value, name, 1)
    with pytest.raises(AttributeError):
        delattr(value, name)


@pytest.mark.parametrize("changes", [{"m": 1}, {"n": 1, "heart_period": 5}])
def test_a_shape_has_no_other_values(changes):
    with pytest.raises(TypeError, match=f"unknown: {'m' if 'm' in changes else 'heart_period'}$"):
        SETTINGS.shape.replaced(**changes)


def test_a_shape_lacks_no_value():
    with pytest.raises(TypeError, match=r"missing or unknown: engines, extra_args, network, profile$"):
        Shape(n=1)


def test_a_shape_says_what_it_is_of():
    assert repr(SETTINGS.shape) == (
        "Shape(n=2, engines='local', extra_args=('--a',), profile='science', network=False)"
    )


def test_sources_can_not_be_changed(hall):
    with pytest.raises(TypeError):
        hall.settings().sources["n"] = "elsewhere"


def test_without_marker_the_shape_is_that_of_the_settings():
    assert shape() == SETTINGS.shape


@pytest.mark.parametrize(
    ("keywords", "changed"),
    [
        ({"n": 4}, {"n": 4}),
        ({"n": 1}, {"n": 1}),
        ({"extra_args": ["--b", "-c d"]}, {"extra_args": ("--b", "-c d")}),
        ({"extra_args": ("--b",)}, {"extra_args": ("--b",)}),
        ({"extra_args": []}, {"extra_args": ()}),
        ({"engines": "MPI"}, {"engines": "mpi"}),
        ({"engines": "package.module.Class"}, {"engines": "package.module.Class"}),
        ({"requires": ("pause", "kill")}, {}),
        ({"requires": ["terminate"]}, {}),
        ({"requires": ()}, {}),
        ({"network": True}, {"network": True}),
        ({}, {}),
    ],
)
def test_marker_keyword_wins_over_the_settings(keywords, changed):
    assert shape(mark(**keywords)) == SETTINGS.shape.replaced(**changed)


def test_each_keyword_comes_from_the_closest_marker_that_gives_it():
    markers = [mark(n=4), mark(n=5, engines="mpi"), mark(engines="ssh", extra_args=["--b"])]
    assert shape(*markers) == Shape(n=4, engines="mpi", extra_args=("--b",), profile="science", network=False)


COUNT = "a whole number of engines, 1 or more"
STRINGS = "a list of strings, one for each argument"
FAULTS = "a tuple or list of faults, of 'kill', 'terminate', 'pause', 'crash'"


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        *[("n", value, COUNT) for value in (0, -1, 2.5, 2.0, "four", "4", True, None, [2])],
        *[("extra_args", value, STRINGS) for value in ("--debug", [1], None, {"--a"}, ["--a", None])],
        *[("engines", value, "one of ") for value in ("nope", None, 3, "")],
        *[("network", value, "True or False") for value in (1, 0, None, "yes")],
        *[("requires", value, FAULTS) for value in ("pause", ["paused"], None, [1], [["kill"]], {"kill"})],
    ],
)
def test_bad_marker_value_is_told_with_test_value_and_what_is_accepted(name, value, accepted):
    with pytest.raises(pytest.UsageError) as caught:
        shape(mark(**{name: value}))
    told = f"{NODEID}: @pytest.mark.ipcluster({name}={value!r}): expected {accepted}"
    assert str(caught.value).startswith(told)


def test_unknown_marker_keyword_is_told_with_the_known_ones():
    assert marker_mistakes(mark(engine="local"), NODEID) == [
        f"{NODEID}: @pytest.mark.ipcluster(engine='local'): unknown keyword 'engine'; "
        "expected keywords: n=, extra_args=, engines=, requires=, network="
    ]


def test_positional_marker_argument_is_told_with_the_keywords():
    assert marker_mistakes(mark(4), NODEID) == [
        f"{NODEID}: @pytest.mark.ipcluster(4): positional arguments are not accepted; "
        "expected keywords: n=, extra_args=, engines=, requires=, network="
    ]


def test_every_mistake_of_a_marker_is_told():
    assert len(marker_mistakes(mark(4, n=0, engine="local"), NODEID)) == 3


def test_mistake_in_a_marker_that_does_not_win_is_told():
    with pytest.raises(pytest.UsageError, match="n='four'"):
        shape(mark(n=4), mark(n="four"))


@pytest.mark.parametrize(
    ("engines", "required", "missing"),
    [
        ("local", ("kill", "terminate", "pause"), ()),
        ("mpi", ("kill", "pause"), ("kill",)),
        ("slurm", ("pause",), ("pause",)),
        ("slurm", (), ()),
    ],
)
def test_faults_are_missing_where_the_launcher_can_not_do_them(engines, required, missing):
    markers = [mark(engines=engines, requires=required)]
    assert missing_faults(shape(*markers), markers) == missing


def test_header_is_one_line_that_tells_what_is_not_a_default():
    told = "ipcluster: 2 engines (local); a heartbeat every 100 ms, 3 missed is a failure; profile from ini file"
    assert header_line(SETTINGS) == told


def test_header_of_one_engine_is_in_the_singular():
    settings = SETTINGS.replaced(shape=SETTINGS.shape.replaced(n=1))
    assert header_line(settings).startswith("ipcluster: 1 engine (local);")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"profile": None}, ""),
        ({"profile": None, "engines": "forkserver"}, ""),
        ({"profile": None, "engines": "mpi"}, "takes one of the launchers 'forkserver', 'local', not 'mpi'"),
        ({}, "takes a private profile: in one of your own, its files say how engines reach the controller"),
        ({"network": False}, ""),
    ],
)
def test_networks_are_for_local_engines_in_a_private_profile(changes, told):
    shape = SETTINGS.shape.replaced(**{"network": True, **changes})
    told = told and f"{NODEID}: @pytest.mark.ipcluster(network=True): {told}"
    assert network_mistake(shape, NODEID) == told
