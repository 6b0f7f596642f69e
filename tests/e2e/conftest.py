"""Whole pytest runs on real clusters."""

from __future__ import annotations

import pytest


@pytest.fixture
def run(pytester: pytest.Pytester):
    """Write a test file, run pytest on it in a process of its own, and return the result.

    The process is a child, so whatever it leaves behind is found by the suite's own check.
    """

    def run(source: str, *arguments: str, **files: str) -> pytest.RunResult:
        pytester.makepyfile(test_it=source, **files)
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", *arguments, timeout=120)

    return run
