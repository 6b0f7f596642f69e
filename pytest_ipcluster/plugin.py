"""What pytest calls: the plugin's hooks, and nothing else.

How a session fixture obeys a marker of each test: every test that uses ``ipcluster``, directly or through other
fixtures, gets the shape of its cluster as an indirect parameter that does not show in its id. pytest brings tests
with the same session parameter together, so all tests of one shape run one after the other, on one cluster.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import suppress

import pytest

from pytest_ipcluster import fixtures
from pytest_ipcluster.options import add_options
from pytest_ipcluster.settings import (
    MARKER,
    MARKER_HELP,
    SETTINGS,
    Shape,
    all_mistakes,
    header_line,
    missing_faults,
    network_mistake,
    read_settings,
    shape_for,
)
from pytest_ipcluster.stash import KEEPER, TIMER

__all__ = [
    "pytest_addoption",
    "pytest_collection_modifyitems",
    "pytest_configure",
    "pytest_generate_tests",
    "pytest_itemcollected",
    "pytest_report_header",
    "pytest_runtest_call",
    "pytest_timeout_cancel_timer",
    "pytest_timeout_set_timer",
]

_FIXTURE = "ipcluster"

#: The fixture behind all of ours, without which there is no cluster.
_KEEPER_FIXTURE = "_ipcluster_keeper"

#: Every shape that a test asked for, kept once, with the number by which pytest before 9.2 groups its tests.
_SHAPES: pytest.StashKey[dict[Shape, tuple[Shape, int]]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register the options and their ini twins."""
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Validate the settings, before anything is collected, and register the marker and the fixtures."""
    config.addinivalue_line("markers", MARKER_HELP)
    config.stash[SETTINGS] = read_settings(config)
    config.stash[_SHAPES] = {}
    config.pluginmanager.register(fixtures, "ipcluster-fixtures")
    if config.getoption("dist", "no") != "no":  # the main process of pytest-xdist collects reports, but no tests
        from pytest_ipcluster.attendance import attend_reports

        attend_reports(config)


def pytest_report_header(config: pytest.Config) -> str:
    """Tell in one line which cluster this run has, and where what is not a default came from."""
    return header_line(config.stash[SETTINGS])


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each test that uses the cluster its shape, as a parameter that does not show in its id.

    Comes last, so that whatever else parametrizes ``ipcluster`` (a mark, somebody's hook, a fixture of the same
    name that overrides ours) is seen and left alone.
    """
    if _FIXTURE not in metafunc.fixturenames or _is_parametrized(metafunc):
        return
    # A mistake raised here would be shown as a traceback; pytest_collection_modifyitems tells it in a line.
    with suppress(pytest.UsageError):
        shape = _kept_shape(metafunc.definition)
        # No scope: pytest takes that of the fixture, also when one of another scope overrides ours.
        metafunc.parametrize(_FIXTURE, [shape], indirect=True, ids=[pytest.HIDDEN_PARAM])


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: object) -> None:
    """Note which timer of pytest-timeout runs, for a test that asks for the cluster only in its body."""
    item.config.stash[TIMER] = (item, settings, time.monotonic())


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_timeout_cancel_timer(item: pytest.Item) -> None:
    """Note that no timer of pytest-timeout runs."""
    item.config.stash[TIMER] = None


def pytest_itemcollected(item: pytest.Item) -> None:
    """Register what looks after tests that use the cluster when the first of them comes."""
    if _KEEPER_FIXTURE in getattr(item, "fixturenames", ()):
        from pytest_ipcluster.attendance import attend

        attend(item.config)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Refuse wrong markers, group the tests by shape, skip those that require a fault the launcher can't do.

    Comes first, because pytest orders tests by their parameters in this same hook.
    """
    if mistakes := all_mistakes(items) or _network_mistakes(items):
        _refuse(mistakes, config, items)
    for item in items:
        _number_shape(item)
        _skip_unable(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Let an exception that a heart handler raised fail the test that it was raised in; see Keeper.watch."""
    keeper = item.config.stash.get(KEEPER, None)
    if keeper is None:
        return (yield)
    with keeper.watch(item):
        return (yield)


def _is_parametrized(metafunc: pytest.Metafunc) -> bool:
    # There is no public way to ask. Should the attribute go, pytest itself refuses to parametrize twice.
    return any(_FIXTURE in call.params for call in getattr(metafunc, "_calls", ()))


def _markers(item: pytest.Item) -> list[pytest.Mark]:
    """Return the item's markers, closest first; pytest puts those of a parameter after the function's."""
    closest = getattr(getattr(item, "callspec", None), "marks", ())
    return sorted(item.iter_markers(MARKER), key=lambda marker: marker not in closest)


def _kept_shape(item: pytest.Item) -> Shape:
    """Return the item's shape; equal shapes are one object, since not all of pytest compares by value."""
    shape = shape_for(item.config.stash[SETTINGS], _markers(item), item.nodeid)
    shapes = item.config.stash[_SHAPES]
    # pytest numbers other people's parameters from 0 up; these numbers go from -1 down and never meet them.
    return shapes.setdefault(shape, (shape, -1 - len(shapes)))[0]


def _number_shape(item: pytest.Item) -> None:
    """Number the item's parameter by its shape; pytest would number it 0 in every test, and group by that.

    Here a marker on one set of a test's parameters (``pytest.param(..., marks=...)``) takes effect, too.
    """
    shapes = item.config.stash[_SHAPES]
    callspec = getattr(item, "callspec", None)
    given = callspec.params.get(_FIXTURE) if callspec else None
    if callspec is None or not isinstance(given, Shape) or shapes.get(given, (None,))[0] is not given:
        return  # not parametrized by us
    shape = _kept_shape(item)
    callspec.params[_FIXTURE] = shape
    callspec.indices[_FIXTURE] = shapes[shape][1]


def _network_mistakes(items: Sequence[pytest.Item]) -> list[str]:
    """Return a line for each shape that can't have the networks that it is to have, with its first test."""
    lines: dict[Shape, str] = {}
    for item in items:
        if markers := _markers(item):
            shape = shape_for(item.config.stash[SETTINGS], markers, item.nodeid)
            lines.setdefault(shape, network_mistake(shape, item.nodeid))
    return [line for line in lines.values() if line]


def _skip_unable(item: pytest.Item) -> None:
    markers = _markers(item)
    if not markers:
        return
    shape = shape_for(item.config.stash[SETTINGS], markers, item.nodeid)
    if missing := missing_faults(shape, markers):
        reason = f"the launcher {shape.engines!r} can't {' or '.join(missing)} single engines"
        item.add_marker(pytest.mark.skip(reason=reason))


def _refuse(mistakes: Sequence[str], config: pytest.Config, items: list[pytest.Item]) -> None:
    """End the run with a usage error or, in a worker of pytest-xdist, with failed collection reports.

    To pytest-xdist a worker that ends by itself is an internal error; reports are handed on to the user.
    """
    if not hasattr(config, "workerinput"):
        raise pytest.UsageError(*mistakes)
    for mistake in mistakes:
        report = pytest.CollectReport(f"@pytest.mark.{MARKER}", "failed", longrepr=mistake, result=[])
        config.hook.pytest_collectreport(report=report)
    items.clear()
