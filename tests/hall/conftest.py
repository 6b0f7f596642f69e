"""A run of pytest inside a test, with the plugin loaded once and no option given by the surroundings."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import pytest

from pytest_ipcluster.settings import SETTINGS, Settings

# By the name of its entry point: pytest 8.4 warns of a module that is given by its path and was imported before.
PLUGIN = ("-p", "ipcluster")

# Stands in for the real fixture, which would start a cluster: hands out the shape, and tells when it is set up.
STUB = """
    import pytest
    from pytest_ipcluster.settings import SETTINGS

    @pytest.fixture(scope="session")
    def ipcluster(request):
        shape = getattr(request, "param", None) or request.config.stash[SETTINGS].shape
        print(f"\\nsetup {getattr(shape, 'n', shape)}")
        return shape
"""


@dataclass
class Hall:
    pytester: pytest.Pytester
    monkeypatch: pytest.MonkeyPatch
    args: list[str] = field(default_factory=list)

    def give(self, place: str, name: str, text: str) -> None:
        """Give an option's value in one of its places."""
        if place == "command line":
            self.args.append(f"--ipcluster-{name.replace('_', '-')}={text}")
        elif place == "environment":
            self.monkeypatch.setenv(f"PYTEST_IPCLUSTER_{name.upper()}", text)
        else:
            self.pytester.makeini(f"[pytest]\nipcluster_{name} = {text}\n")

    def settings(self, *args: str) -> Settings:
        return self.pytester.parseconfigure(*PLUGIN, *self.args, *args).stash[SETTINGS]

    def run(self, *args: str) -> pytest.RunResult:
        return self.pytester.runpytest_inprocess(*PLUGIN, "-W", "error", *self.args, *args)

    def run_tests(self, source: str, *args: str) -> pytest.RunResult:
        """Run the source as a test file; its ``ipcluster`` is the shape, and nothing is started."""
        self.pytester.makeconftest(STUB)
        self.pytester.makepyfile(test_it=source)
        return self.run("-s", *args)

    def setups(self, source: str, *args: str) -> list[str]:
        """Run the source and tell which engine counts were set up, in order."""
        result = self.run_tests(source, *args)
        assert result.ret == 0, result.stdout.str()
        return [line.removeprefix("setup ") for line in result.outlines if line.startswith("setup ")]


@pytest.fixture
def hall(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Hall:
    for name in list(os.environ):
        if name.startswith("PYTEST_IPCLUSTER_") or name == "IPYTHONDIR":
            monkeypatch.delenv(name)
    # Loaded by its name and by nothing else, it is loaded once.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    return Hall(pytester, monkeypatch)
