"""Whole pytest runs on real clusters."""

from __future__ import annotations

import os

import pytest
from waiting import SOON, WHOLE_RUN


@pytest.fixture
def run(pytester: pytest.Pytester):
    """Write a test file, run pytest on it in a process of its own, and return the result.

    The process is a child, so whatever it leaves behind is found by the suite's own check.
    """

    def run(source: str, *arguments: str, **files: str) -> pytest.RunResult:
        pytester.makepyfile(test_it=source, **files)
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", *arguments, timeout=WHOLE_RUN)

    return run


@pytest.fixture
def as_new(ipcluster, ipcluster_client) -> None:
    """See to it that whatever the test before has done is repaired before this one begins."""
    assert ipcluster_client[:].apply_async(os.getpid).get(SOON) == [engine.pid for engine in ipcluster.engines]
    assert ipcluster_client.load_balanced_view().apply_async(len, "abc").get(SOON) == 3
