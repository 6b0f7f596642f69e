"""Only what a test has asked for may die: any other death in the cluster fails the test that was running.

The cluster is looked at after each phase (setup, call, teardown) of each test that uses it, and before the first. What
is missing then died during that phase, or between this test and the last one that used the cluster. When the phase has
failed by itself, the death becomes a section of its report.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from pytest_ipcluster.launchers import LOCAL, capabilities

if TYPE_CHECKING:
    from pytest_ipcluster.cluster.background import BackgroundCluster
    from pytest_ipcluster.cluster.engines import Engine
    from pytest_ipcluster.cluster.rollcall import Member, RollCall
    from pytest_ipcluster.errors import Death, UnexpectedDeathError

__all__ = ["DeathWatch"]

#: The roles without which engines end, at once or when they have heard no ping of the hub for long, and then the rest;
#: and the roles that go on all the same.
_CARRYING = ("controller", "heart monitor of the hub")
_LASTING = ("warden", "forkserver")

#: The fixture without which there is no cluster.
_FIXTURE = "_ipcluster_keeper"


@dataclass(frozen=True, slots=True)
class _Loss:
    """What was found dead at one look: the causes, and what went down with them. ``test`` ran then, or none did."""

    deaths: tuple[Death, ...]
    followers: tuple[Death, ...]
    test: str


class DeathWatch:
    """Watches the processes of the session's cluster, and charges their deaths to tests. One object for a run."""

    def __init__(self) -> None:
        self._cluster: BackgroundCluster | None = None
        self._roll: RollCall | None = None
        self._losses: list[_Loss] = []  # not told yet
        self._running = ""  # the test, if any, and the phase of it
        self._last = ""  # the test that used the cluster before

    # -- the cluster -------------------------------------------------------------------------------

    def begin(self, cluster: BackgroundCluster) -> None:
        """Watch this cluster, which is ready, from now on."""
        self._cluster, self._roll = cluster, cluster.roll_call()

    def end(self) -> None:
        """Look for the last time, and watch no more: the cluster is about to be stopped."""
        self.look()
        self._cluster = self._roll = None

    def leaving(self, heart: bytes) -> None:
        """Let the engine with this heart be ended by the plugin; when it has died already, that is noted first."""
        self.look()
        if self._roll is not None:
            self._roll.strike_slot(heart)

    def allow(self, engine: Engine) -> None:
        """Let this engine die, and its nanny with it: a test has asked for that."""
        if self._roll is None or self._cluster is None:
            return
        alone = "kill" in capabilities(self._cluster.launcher or LOCAL)
        for one in (engine,) if alone else self._cluster.engines:  # a job may end with any of its engines
            self._roll.strike_slot(one.heart)

    def allow_members(self, members: Iterable[Member]) -> None:
        """Let these processes die, which are no engines, and what they take along: a test has asked for that."""
        if self._roll is None:
            return
        members = tuple(members)
        self._roll.strike(members)
        if any(member.role in _CARRYING for member in members):
            self._roll.strike([member for member in self._roll.members if member.role not in _LASTING])

    def look(self) -> None:
        """Note who has died since the last look. Costs about a millisecond when nobody has."""
        roll = self._current_roll()
        missing = [] if roll is None else roll.missing()
        if roll is None or not missing:
            return
        from pytest_ipcluster.cluster.autopsy import post_mortem

        deaths, followers = post_mortem(roll, missing)
        self._losses.append(_Loss(deaths, followers, self._running))

    def _current_roll(self) -> RollCall | None:
        """Return the roll of the cluster as it runs now; the test may have stopped or restarted it by itself."""
        if self._cluster is None or self._roll is None:
            return None
        from pytest_ipcluster.errors import ClusterError

        try:
            if self._cluster.slots is not self._roll.slots:
                self._roll = self._cluster.roll_call()
        except ClusterError:  # stopped
            return None
        return self._roll

    # -- the tests ---------------------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, object, object]:
        """See who has died between the tests, and during the setup."""
        __tracebackhide__ = True
        if _uses_cluster(item):
            self.look()
        return (yield from self._charge(item, "setup"))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        """See who has died during the test itself."""
        __tracebackhide__ = True
        return (yield from self._charge(item, "call"))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, object, object]:
        """See who has died during the teardown; in that of the last test the cluster ends."""
        __tracebackhide__ = True
        try:
            return (yield from self._charge(item, "teardown"))
        finally:
            if _uses_cluster(item):
                self._last = item.nodeid

    def _charge(self, item: pytest.Item, phase: str) -> Generator[None, object, object]:
        """Run one phase of a test; fail it for who has died, or have its report tell when it has failed by itself."""
        __tracebackhide__ = True
        self._running = _name(item, phase)
        try:
            result = yield
        except pytest.skip.Exception:
            self._end_phase(item, phase)  # what has died in it is told in the teardown
            raise
        except BaseException:
            self._end_phase(item, phase)
            if (error := self._due(item, phase)) is not None:
                item.add_report_section(phase, "ipcluster", str(error))
            raise
        self._end_phase(item, phase)
        if (error := self._due(item, phase)) is not None:
            # The message says it all; how the plugin came to know would only bury it.
            raise error.with_traceback(None) from None
        return result

    def _end_phase(self, item: pytest.Item, phase: str) -> None:
        self._running = _name(item, phase)  # it may have asked for the cluster only now
        if self._running:
            self.look()
        self._running = ""

    def _due(self, item: pytest.Item, phase: str) -> UnexpectedDeathError | None:
        """Return the error for what this phase of this test has to answer for.

        That is what died while it ran, at its setup what died since the last test that used the cluster, and for
        whichever test is the last of the run whatever has not been told.
        """
        due = [loss for loss in self._losses if self._answers_for(item, phase, loss)]
        self._losses = [loss for loss in self._losses if loss not in due]
        if not due:
            return None
        from pytest_ipcluster.errors import UnexpectedDeathError

        when = dict.fromkeys(self._when(loss, item, phase) for loss in due)
        return UnexpectedDeathError(
            [death for loss in due for death in loss.deaths],
            when=" and ".join(when),
            followers=[death for loss in due for death in loss.followers],
        )

    def _answers_for(self, item: pytest.Item, phase: str, loss: _Loss) -> bool:
        if phase == "teardown" and self._cluster is None:
            return True
        return _uses_cluster(item) and (bool(loss.test) or phase == "setup")

    def _when(self, loss: _Loss, item: pytest.Item, phase: str) -> str:
        if loss.test:
            return f"during {loss.test}"
        if not self._last:
            return f"before {item.nodeid}"
        return f"after {self._last}" if phase == "teardown" else f"between {self._last} and {item.nodeid}"


def _name(item: pytest.Item, phase: str) -> str:
    """Return what is running, in words, if it is a test that uses the cluster, else an empty text."""
    if not _uses_cluster(item):
        return ""
    return item.nodeid if phase == "call" else f"{item.nodeid}, in its {phase}"


def _uses_cluster(item: pytest.Item) -> bool:
    """Tell whether this test uses the cluster, by its parameters or by request.getfixturevalue."""
    if _FIXTURE in getattr(item, "fixturenames", ()):
        return True
    # There is no public way to ask what a test asks for while it runs.
    return _FIXTURE in getattr(getattr(item, "_request", None), "fixturenames", ())
