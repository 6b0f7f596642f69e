"""Timers that end nothing."""

from __future__ import annotations

import pytest


class Timers:
    """Takes the place of pytest-timeout's own timers: notes what is set and cancelled, and ends nothing."""

    def __init__(self) -> None:
        self.running = False
        self.calls: list[object] = []
        self.settings: dict[str, object] = {}

    @pytest.hookimpl
    def pytest_timeout_set_timer(self, item, settings):
        self.running = True
        self.calls.append(settings.timeout)
        self.settings.setdefault(item.name, settings)
        return True

    @pytest.hookimpl
    def pytest_timeout_cancel_timer(self, item):  # noqa: ARG002
        self.running = False
        self.calls.append("cancel")
        return True
