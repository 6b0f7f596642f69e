"""The fixtures that the plugin offers, each a few lines: the work is done by what they hand out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING

import pytest

from pytest_ipcluster.options import SEED
from pytest_ipcluster.settings import SETTINGS
from pytest_ipcluster.stash import CLOCK, KEEPER

if TYPE_CHECKING:
    from ipyparallel import Client, DirectView, LoadBalancedView
    from traitlets.config import Config

    from pytest_ipcluster.cluster.background import BackgroundCluster
    from pytest_ipcluster.cluster.remote import RemoteFailure
    from pytest_ipcluster.faults.injector import FaultInjector
    from pytest_ipcluster.hearts.monitor import HeartMonitor
    from pytest_ipcluster.keeper import Keeper

__all__ = [
    "heart_failure",
    "heart_monitor",
    "ipcluster",
    "ipcluster_client",
    "ipcluster_config",
    "ipcluster_lbview",
    "ipcluster_view",
    "raises_remote",
]


def _uncharged(request: pytest.FixtureRequest) -> AbstractContextManager[None]:
    """Make a block for work on the cluster, which has limits of its own, that is not charged to the running test."""
    return request.config.stash.get(CLOCK, nullcontext)()


@pytest.fixture(scope="session")
def _ipcluster_keeper(request: pytest.FixtureRequest) -> Iterator[Keeper]:
    """Keep one cluster for the session."""
    from pytest_ipcluster.attendance import attend, deaths_of, leaks_of

    attend(request.config)  # before anything is charged, for a test that asks for the cluster only in its body
    with _uncharged(request):
        from pytest_ipcluster.keeper import Keeper, importable_folders, test_files

        config, items = request.config, request.session.items
        folders, tests = importable_folders(config, items), test_files(items)
        boss = os.getppid() if hasattr(config, "workerinput") else None  # without pytest-xdist's main nobody listens
        keeper = config.stash[KEEPER] = Keeper(config.stash[SETTINGS], deaths_of(config), folders, tests, boss=boss)
        guard = leaks_of(config)
        guard.follow(keeper)
    yield keeper
    with _uncharged(request), guard.last_look(request.session):  # whichever test is the last of the session
        keeper.close()
        del config.stash[KEEPER]


@pytest.fixture(scope="session")
def ipcluster_config(request: pytest.FixtureRequest) -> Config:
    """Configuration for the controller and the engines; empty. Override it to return your own traitlets Config.

    Only plain values can be given. It holds for a private profile: with --ipcluster-profile the profile's own
    files do.
    """
    with _uncharged(request):
        from traitlets.config import Config

        return Config()


@pytest.fixture(scope="session")
def ipcluster(request: pytest.FixtureRequest, _ipcluster_keeper: Keeper, ipcluster_config: Config) -> BackgroundCluster:
    """The running cluster: a BackgroundCluster whose engines all beat, shared by the tests that want the same shape.

    The ipcluster marker and the --ipcluster options say which shape that is. ``ipcluster.engines[slot]`` gives
    an engine's slot, id, ident, pid, host, state and log().
    """
    from pytest_ipcluster.errors import ClusterError

    shape = getattr(request, "param", request.config.stash[SETTINGS].shape)
    try:
        with _uncharged(request):
            return _ipcluster_keeper.provide(shape, ipcluster_config)
    except ClusterError as error:
        # The message says it all; how the plugin came to know would only bury it.
        raise error.with_traceback(None) from None


@pytest.fixture
def ipcluster_client(
    request: pytest.FixtureRequest, ipcluster: BackgroundCluster, _ipcluster_keeper: Keeper
) -> Iterator[Client]:
    """A connected ipyparallel.Client. The cluster is as new: all engines there, nothing queued, namespaces empty."""
    with ExitStack() as stack:
        with _uncharged(request):
            client = stack.enter_context(_ipcluster_keeper.client())
        yield client


@pytest.fixture
def ipcluster_view(ipcluster_client: Client) -> DirectView:
    """A DirectView on all engines of the cluster."""
    return ipcluster_client[:]


@pytest.fixture
def ipcluster_lbview(ipcluster_client: Client) -> LoadBalancedView:
    """A LoadBalancedView on all engines of the cluster."""
    return ipcluster_client.load_balanced_view()


@pytest.fixture(scope="session")
def heart_monitor(ipcluster: BackgroundCluster, _ipcluster_keeper: Keeper) -> HeartMonitor:
    """The running HeartMonitor that watches every engine; add handlers for new hearts and for failures to it.

    Handlers run on the monitor's thread. One that raises fails the test with its own traceback.
    """
    return _ipcluster_keeper.hearts.monitor


@pytest.fixture
def heart_failure(
    request: pytest.FixtureRequest, ipcluster: BackgroundCluster, _ipcluster_keeper: Keeper
) -> Iterator[FaultInjector]:
    """Hurt the cluster on purpose, and assert that failure handlers fire.

    Afterwards faults are undone, and the cluster has all its engines again under their old ids.
    """
    from pytest_ipcluster.faults.injector import FaultInjector

    keeper, settings = _ipcluster_keeper, request.config.stash[SETTINGS]
    injector = FaultInjector(
        ipcluster,
        keeper.hearts,
        keeper.events,
        keeper.deaths.allow,
        allow_members=keeper.deaths.allow_members,
        seed=f"{settings.seed}:{request.node.nodeid}",
        replay=f"pytest '{request.node.nodeid}' {SEED.flag}={settings.seed}",
        zombies=settings.zombies,
        tell=lambda text: request.node.add_report_section("call", "ipcluster, by chance", text),
    )
    yield injector
    with _uncharged(request):
        injector.close()
        _ipcluster_keeper.restore()
    _ipcluster_keeper.raise_handler_errors()


@pytest.fixture
def raises_remote() -> Callable[..., AbstractContextManager[RemoteFailure]]:
    """Assert an exception that comes wrapped from an engine.

    As in ``with raises_remote(ValueError, match="negative"): view.apply_sync(root, -1)``.
    """
    from pytest_ipcluster.cluster.remote import raises_remote

    return raises_remote
