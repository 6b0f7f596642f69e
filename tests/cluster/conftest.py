"""Real clusters for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pytest_ipcluster import BackgroundCluster


@pytest.fixture
def new_cluster() -> Iterator[object]:
    """Make clusters in private profiles; whatever the test does with them, they are stopped."""
    made: list[BackgroundCluster] = []

    def new_cluster(**kwargs: object) -> BackgroundCluster:
        cluster = BackgroundCluster(**{"n": 1, "private": True, "silent": True, **kwargs})
        made.append(cluster)
        return cluster

    yield new_cluster
    for cluster in made:
        cluster.stop()


@pytest.fixture(scope="module")
def cluster() -> Iterator[BackgroundCluster]:
    """One running cluster of two engines for a whole module."""
    with BackgroundCluster(n=2, private=True, silent=True) as cluster:
        yield cluster
