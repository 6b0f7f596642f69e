"""What goes along with tests that use the cluster, and with no others: registered when the first of them is collected.

A run without such tests has none of it, and has not even imported it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pytest_ipcluster.deathwatch import DeathWatch
from pytest_ipcluster.leakguard import LeakGuard
from pytest_ipcluster.renewing import Renewing
from pytest_ipcluster.settings import SETTINGS, Settings
from pytest_ipcluster.stash import CLOCK, KEEPER, TIMER
from pytest_ipcluster.telling import Telling

__all__ = ["attend", "attend_reports", "deaths_of", "leaks_of"]

_DEATHS = pytest.StashKey[DeathWatch]()
_LEAKS = pytest.StashKey[LeakGuard]()

#: The name of the plugin that collects notes from reports.
_TELLING = "ipcluster-telling"


def attend(config: pytest.Config) -> None:
    """Register what looks after tests that use the cluster. A second call does nothing."""
    if _DEATHS in config.stash:
        return
    plugins, settings = config.pluginmanager, config.stash[SETTINGS]
    deaths = config.stash[_DEATHS] = DeathWatch()
    leaks = config.stash[_LEAKS] = LeakGuard(settings.leaks)
    plugins.register(deaths, "ipcluster-deaths")
    attend_reports(config)
    plugins.register(Renewing(), "ipcluster-renewing")
    _meet_timeout(config, settings)
    if leaks.mode != "off":
        plugins.register(leaks, "ipcluster-leaks")


def attend_reports(config: pytest.Config) -> None:
    """Register what tells at the end of the run what reports carry; all that the main process of pytest-xdist needs."""
    if not config.pluginmanager.hasplugin(_TELLING):
        config.pluginmanager.register(Telling(), _TELLING)


def deaths_of(config: pytest.Config) -> DeathWatch:
    """Return the watch for unexpected deaths of this run."""
    attend(config)
    return config.stash[_DEATHS]


def leaks_of(config: pytest.Config) -> LeakGuard:
    """Return the guard against leaks of this run; with --ipcluster-leaks=off it looks at nothing."""
    attend(config)
    return config.stash[_LEAKS]


def _meet_timeout(config: pytest.Config, settings: Settings) -> None:
    """Get along with pytest-timeout where it is; it goes by the name of its entry point or of its module."""
    if not any(config.pluginmanager.hasplugin(name) for name in ("timeout", "pytest_timeout")):
        return
    from pytest_ipcluster.partners.timeout import TimeLimits

    def remind(limit: float | None, holds: Callable[[], bool]) -> None:
        keeper = config.stash.get(KEEPER, None)
        if keeper is not None:
            keeper.expire_at(limit, holds)

    running = config.stash.get(TIMER, None)
    limits = TimeLimits(settings.timeout, settings.sources["timeout"], running=running, remind=remind)
    config.pluginmanager.register(limits, "ipcluster-timeout")
    config.stash[CLOCK] = limits.stopped
