"""What can go wrong with a cluster, as one family of exceptions.

::

    ClusterError
     +-- ClusterStartError   the cluster did not come up
     +-- ClusterStopError    something of the cluster outlived its stop
     +-- RepairError         the cluster could not be brought back to n engines
     +-- FaultError          a fault was refused or could not be carried out

Users' own mistakes (a wrong option, a wrong marker) are :class:`pytest.UsageError`, not part of this family.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["ClusterError", "ClusterStartError", "ClusterStopError", "FaultError", "RepairError"]


class ClusterError(Exception):
    """Something about the cluster under test went wrong; the message says what, to whom, and what to try."""


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
