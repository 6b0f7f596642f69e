"""What can go wrong with a cluster, as one family of exceptions.

::

    ClusterError
     +-- ClusterStartError   the cluster did not come up
     +-- ClusterStopError    something of the cluster outlived its stop
     +-- RepairError         the cluster could not be brought back to n engines
     +-- FaultError          a fault was refused or could not be carried out
     +-- UnexpectedDeathError   a process of the cluster died, and no test had asked for it
     +-- ClusterLostError    a call can no longer be answered: somebody that it takes has died or was stopped
     |    +-- EngineLost         an engine or its nanny, or all engines
     |    +-- SchedulerLost      a scheduler of the controller, or its relay of output
     |    +-- ControllerLost     the hub, or its heart monitor
     +-- CallOverdueError    a call had not come back when the test's time limit was almost up
     +-- LeakError           a test, or the run, has left something of the cluster behind

    UserWarning
     +-- IpclusterLeakWarning   the same, where it is not to fail the test

Users' own mistakes (a wrong option, a wrong marker) are :class:`pytest.UsageError`, not part of this family.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "CallOverdueError",
    "ClusterError",
    "ClusterLostError",
    "ClusterStartError",
    "ClusterStopError",
    "ControllerLost",
    "Death",
    "EngineLost",
    "FaultError",
    "IpclusterLeakWarning",
    "LeakError",
    "RepairError",
    "SchedulerLost",
    "UnexpectedDeathError",
]


class ClusterError(Exception):
    """Something about the cluster under test went wrong; the message says what, to whom, and what to try.

    It can be pickled, with everything that it says.
    """

    #: The class as which it is pickled, where its own cannot be found by name.
    _pickled_as: type[ClusterError] | None = None

    def __reduce__(self) -> tuple[object, ...]:
        return _restored, (self._pickled_as or type(self), self.args), self.__dict__


def _restored(kind: type[ClusterError], args: tuple[object, ...]) -> ClusterError:
    """Return an error as it was pickled, but for what pickle puts into its ``__dict__``."""
    error = kind.__new__(kind)
    error.args = args
    return error


class ClusterStartError(ClusterError):
    """The cluster did not start.

    ``cause`` is one line that says what happened; ``command`` the Popen list; ``returncode`` the exit code of
    ``ipcluster`` (None when it still ran); ``log`` the tail of what the cluster wrote; ``advice`` what to try;
    ``port_lost`` whether a part of the controller could not have its port.
    """

    def __init__(
        self,
        cause: str,
        *,
        command: Sequence[str] = (),
        returncode: int | None = None,
        log: str = "",
        advice: str = "",
        port_lost: bool = False,
    ) -> None:
        self.cause = cause
        self.command = list(command)
        self.returncode = returncode
        self.log = log
        self.advice = advice
        self.port_lost = port_lost
        super().__init__(self._describe())

    def _describe(self) -> str:
        exit_code = "ipcluster was still running" if self.returncode is None else str(self.returncode)
        lines = [
            f"the cluster did not start: {self.cause}",
            f"  exit code: {exit_code}",
            f"  command:   {' '.join(self.command) or '(none)'}",
        ]
        if self.log:
            lines += ["  the last lines it wrote:", *(f"    | {line}" for line in self.log.splitlines())]
        if self.advice:
            lines.append(f"  try: {self.advice}")
        return "\n".join(lines)


class ClusterStopError(ClusterError):
    """Processes of the cluster were still alive after everything ``stop`` may do."""


class RepairError(ClusterError):
    """An engine could not be put back into its slot."""


class FaultError(ClusterError):
    """A fault was asked for that is not allowed or not possible here."""


@dataclass(frozen=True, slots=True)
class Death:
    """How a process of the cluster ended.

    ``role`` is ``"engine"``, ``"nanny"``, ``"ipcluster"``, ``"controller"``, ``"direct scheduler"`` and so on; ``slot``
    that of an engine or a nanny, else None. ``how`` is ``"killed by SIGKILL"``, ``"exit code 3"``, or says that nobody
    could tell. ``log`` is the tail of what it wrote.
    """

    role: str
    slot: int | None
    pid: int
    how: str
    log: str = ""

    @property
    def who(self) -> str:
        """The process in words, with its pid."""
        place = {"engine": " in slot ", "nanny": " of slot "}.get(self.role, "")
        name = self.role if self.role.startswith(("a ", "ipcluster")) else f"the {self.role}"
        return f"{name}{place}{'' if self.slot is None else self.slot} (pid {self.pid})"


class UnexpectedDeathError(ClusterError):
    """Processes of the cluster died, and no test had asked for it.

    ``deaths`` are those that died by themselves, ``followers`` those that went down with them. ``when`` says during
    which test, or between which two.
    """

    def __init__(self, deaths: Sequence[Death], *, when: str, followers: Sequence[Death] = ()) -> None:
        self.deaths = tuple(deaths)
        self.followers = tuple(followers)
        self.when = when
        super().__init__(self._describe())

    def _describe(self) -> str:
        lines = []
        for death in self.deaths:
            lines.append(f"{death.who} died {self.when}: {death.how}")
            if death.log:
                lines += ["  the last lines it wrote:", *(f"    | {line}" for line in death.log.splitlines())]
        if self.followers:
            lines.append(f"  went down with it: {', '.join(death.who for death in self.followers)}")
        lines.append(f"  try: {self._advice()}")
        return "\n".join(lines)

    def _advice(self) -> str:
        if any(death.role == "engine" for death in self.deaths):
            return "heart_failure.kill(slot) to end an engine, or heart_failure.expect(slot) around what ends it"
        return "find out what ends processes here; for SIGKILL, ask the system (dmesg) whether it ran out of memory"


class ClusterLostError(ClusterError):
    """A call to the cluster can no longer be answered; without the deadman it would wait for ever.

    ``death`` says who is gone or stopped, and how. ``at`` is when that was noticed, in seconds of ``time.time()``.
    ``waiting`` is the call in words. Where one end led to another, the first is the ``__cause__``. For a task it is an
    ``ipyparallel.error.RemoteError`` as well, and for several tasks at once a ``CompositeError``.
    """

    def __init__(self, death: Death, *, waiting: str, at: float) -> None:
        self.death = death
        self.waiting = waiting
        self.at = at
        #: What the exception says.
        self.message = f"{death.who} is lost: {death.how}, noticed at {_clock(at)}; so nobody answers {waiting}"
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message

    @property
    def role(self) -> str:
        """The role of who is lost: ``"engine"``, ``"nanny"``, ``"controller"``, ``"task scheduler"`` and so on."""
        return self.death.role

    @property
    def slot(self) -> int | None:
        """The slot of an engine or of its nanny, else None."""
        return self.death.slot

    @property
    def pid(self) -> int:
        """The pid of who is lost."""
        return self.death.pid


class EngineLost(ClusterLostError):  # noqa: N818 - named as ipyparallel's users would
    """A call waits for an engine, or for its nanny, that is gone or stopped; or for any, and there is none."""


class SchedulerLost(ClusterLostError):  # noqa: N818
    """A call waits for a scheduler of the controller, or for its relay of output, that is gone or stopped."""


class ControllerLost(ClusterLostError):  # noqa: N818
    """A call waits for the hub, or for its heart monitor, that is gone or stopped."""


class CallOverdueError(ClusterError):
    """A call had not come back when the time limit of the test was almost up, and nobody it takes has died.

    ``waiting`` is the call in words, ``report`` says what was outstanding where, how everybody in the cluster was, and
    where each engine's Python was.
    """

    def __init__(self, waiting: str, report: str) -> None:
        self.waiting = waiting
        self.report = report
        super().__init__(f"the time limit is almost up, and nobody has answered {waiting}\n{report}")


def _clock(at: float) -> str:
    """Return a time of day, to the millisecond, in the local time of the logs."""
    return f"{time.strftime('%H:%M:%S', time.localtime(at))}.{int(at % 1 * 1000):03d}"


class LeakError(ClusterError):
    """Processes or folders of the cluster have outlived the test or the cluster.

    ``leaks`` has a line for each. Processes have been ended and folders removed by the time this is raised.
    """

    def __init__(self, message: str, leaks: Sequence[str] = ()) -> None:
        self.leaks = tuple(leaks)
        super().__init__(message)


class IpclusterLeakWarning(UserWarning):
    """Something that a test or the cluster has opened was not closed."""
