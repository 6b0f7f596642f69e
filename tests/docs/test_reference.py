from __future__ import annotations

import dataclasses
import inspect
import re

import pytest
from pages import read, rows, sections, table_names

import pytest_ipcluster
from pytest_ipcluster import fixtures
from pytest_ipcluster.cluster.engines import Engine
from pytest_ipcluster.cluster.profile import EngineSetup
from pytest_ipcluster.cluster.remote import RemoteFailure
from pytest_ipcluster.cluster.slots import Repair
from pytest_ipcluster.errors import (
    CallOverdueError,
    ClusterLostError,
    ClusterStartError,
    Death,
    LeakError,
    UnexpectedDeathError,
)
from pytest_ipcluster.faults.expectations import Expectation
from pytest_ipcluster.faults.injector import FaultInjector
from pytest_ipcluster.faults.kinds import CAUSES, Fault, HeartFailure
from pytest_ipcluster.faults.moments import Running
from pytest_ipcluster.faults.plan import Plan, Step
from pytest_ipcluster.hearts.heart import Heart
from pytest_ipcluster.hearts.ledger import Failure
from pytest_ipcluster.hearts.monitor import HandlerError, HeartMonitor
from pytest_ipcluster.hearts.thread import MonitorThread
from pytest_ipcluster.launchers import FAULTS
from pytest_ipcluster.network.lanes import Lanes
from pytest_ipcluster.options import OPTIONS
from pytest_ipcluster.report.events import Event
from pytest_ipcluster.settings import MARKER_HELP

CLASSES = [
    pytest_ipcluster.BackgroundCluster,
    Engine,
    Lanes,
    EngineSetup,
    Repair,
    FaultInjector,
    Fault,
    HeartFailure,
    Expectation,
    Running,
    Plan,
    Step,
    Event,
    Heart,
    HeartMonitor,
    HandlerError,
    Failure,
    MonitorThread,
    pytest_ipcluster.MonitorKeys,
    pytest_ipcluster.HeartKeys,
    RemoteFailure,
    ClusterStartError,
    UnexpectedDeathError,
    Death,
    LeakError,
    ClusterLostError,
    CallOverdueError,
    pytest_ipcluster.Deadman,
]

SEED_PAGES = {
    pytest_ipcluster.BackgroundCluster: "class_config_section class_get_help class_get_trait_help class_print_help "
    "class_trait_names class_traits clear_instance command config created extra_args initialized instance "
    "ipcluster_cmd msg n on_trait_change poll process profile returncode silent start stop trait_metadata "
    "trait_names traits update_config",
    Heart: "device id start",
    HeartMonitor: "add_heart_failure_handler add_new_heart_handler beat class_config_section class_get_help "
    "class_get_trait_help class_print_help class_trait_names class_traits config created handle_heart_failure "
    "handle_new_heart handle_pong hearts last_ping lifetime log loop on_probation on_trait_change period "
    "pingstream pongstream responses start tic trait_metadata trait_names traits update_config",
}


FIXTURES = [name for name in fixtures.__all__ if name.islower()]


class TestOptions:
    @pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
    def test_each_is_told_in_its_three_spellings_with_its_default(self, option):
        told = sections(read("docs/reference/options.md"))[f"{option.flag} {option.metavar}"]
        default = option.default if option.default_told is None else option.default_told
        lines = [f"- ini: `{option.ini}`", f"- environment: `{option.env}`", f"- default: `{default}`"]
        assert [line for line in lines if line not in told.splitlines()] == []

    def test_no_other_is_told(self):
        told = [name for name in sections(read("docs/reference/options.md")) if name.startswith("--")]
        assert told == [f"{option.flag} {option.metavar}" for option in OPTIONS]

    def test_readme_has_each(self):
        told = re.findall(r"^\| \[`(--ipcluster-[\w-]+)`", read("README.md"), re.MULTILINE)
        assert told == [option.flag for option in OPTIONS]


class TestFixtures:
    def test_each_has_a_section(self):
        told = sections(read("docs/reference/fixtures.md"))
        assert [name for name in FIXTURES if not told.get(name, "").strip()] == []

    def test_table_tells_each_with_its_scope(self, reader):
        output = reader.pytest("--fixtures").stdout.str()
        names = "|".join(FIXTURES)
        real = re.findall(rf"^({names})(?: \[(\w+) scope\])? -- ", output, re.MULTILINE)
        told = {
            (name, row[1])
            for row in rows(read("docs/reference/fixtures.md"))
            for name in re.findall(r"^`(\w+)`", row[0])
        }
        assert told == {(name, scope or "function") for name, scope in real}

    def test_readme_names_each(self):
        assert [name for name in FIXTURES if f"`{name}`" not in read("README.md")] == []


class TestMarker:
    def test_table_tells_each_keyword(self):
        signature = MARKER_HELP.split("): ")[0]
        assert set(re.findall(r"(\w+)=", signature)) <= table_names(read("docs/reference/marker.md"))

    def test_each_fault_that_can_be_required_is_told(self):
        assert [fault for fault in FAULTS if f'`"{fault}"`' not in read("docs/reference/marker.md")] == []


class TestApi:
    def test_every_public_name_is_told(self):
        told = read("docs/reference/api.md")
        assert [name for name in pytest_ipcluster.__all__ if f"`{name}`" not in told] == []

    @pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
    def test_every_member_is_told(self, kind):
        assert _members(kind) - set(_told(kind)) == set()

    @pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
    def test_every_member_that_is_told_exists(self, kind):
        assigned = set(re.findall(r"self\.(\w+)(?:: [^=\n]+)? = ", inspect.getsource(kind)))
        assert _told(kind) - _members(kind) - assigned == set()

    @pytest.mark.parametrize("kind", SEED_PAGES, ids=lambda kind: kind.__name__)
    def test_every_name_of_the_old_page_is_told(self, kind):
        told = sections(read("docs/reference/api.md"))[kind.__name__]
        assert [name for name in SEED_PAGES[kind].split() if not re.search(rf"`{name}\b", told)] == []

    def test_every_cause_is_told(self):
        told = sections(read("docs/reference/api.md"))["HeartFailure"]
        assert [cause for cause in CAUSES if f'`"{cause}"`' not in told] == []


def _told(kind):
    """Return the members that the tables of the class's section name in their first columns."""
    return table_names(sections(read("docs/reference/api.md"))[kind.__name__])


def _members(kind):
    """Return the public members that are defined in this package."""
    ours = [base for base in kind.__mro__ if base.__module__.startswith("pytest_ipcluster")]
    fields = {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
    names = {name for base in ours for name in vars(base)} | fields
    return {name for name in names if not name.startswith("_")}
