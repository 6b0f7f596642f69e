"""Reading a cluster's logs: what went wrong, in the words of whoever noticed it, and what to try."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

__all__ = ["advice", "engines_lost", "last_lines", "not_recognized", "port_is_taken", "reason", "tail"]

#: How many of the last lines of a log an error shows.
_TAIL = 25

_PORT_TAKEN = "Address already in use"

#: Signs in a log, and what to try then. The first that is found decides.
_ADVICE = {
    _PORT_TAKEN: "let the system choose the ports (give none), or free the one that is taken",
    "Cluster is already running": "another cluster runs in this profile: stop it, or add --cluster-id=NAME",
    "No module named": "install the missing module where the cluster runs, or correct the import",
    "No such file or directory": "install what is missing, or correct the command that the launcher was given",
    ": error: ": "correct the arguments; ipcluster start --help-all and ipcontroller --help-all list them",
    "Bad config": "correct the value; ipcluster start --help-all and ipcontroller --help-all tell the types",
    "not recognized by": "correct the name; ipcluster start --help-all and ipcontroller --help-all list them",
}

#: The warning about a setting that does not exist, which the program then goes on without.
_NOT_RECOGNIZED = re.compile(r"Config option `(?P<name>\w+)` not recognized by .*$", re.MULTILINE)

#: What ipcluster writes when it has lost its engines, or could not start them, and goes on without.
_ENGINELESS = {
    r"\[IPClusterStart\].*engine set stopped": "all engines have ended",
    r"IPClusterStart\.start_cluster\(\).*exception=(?!.*Controller stopped)": "ipcluster could not start the engines",
}

#: What it writes when it has waited for the controller's files, and that has ended.
_CONTROLLERLESS = re.compile(r"IPClusterStart\.start_cluster\(\).*exception=.*Controller stopped")

#: The controller's notes of which there are too many: of each of our own questions, which a waiting start asks again
#: and again, and of each beat that an engine misses long after its death.
_NOISE = re.compile(
    r"client::client .*(requested '(connection|queue)_request'|connected)$"
    r"|queue::client .* submitted request .* to \d+$"
    r"|heartbeat::missed "
)

#: The end of a traceback, or a parser's complaint about its arguments.
_COMPLAINT = re.compile(
    r"^(?:\w+\.)*\w*(?:Error|Exception|Exit)\b: .*$|(?<=: error: ).*$|(?<=Bad config encountered ).*$", re.MULTILINE
)


def tail(log: Path | None, lines: int = _TAIL) -> str:
    """Return the last lines of a log; empty when there is none."""
    try:
        return last_lines(log.read_text(errors="replace") if log else "", lines)
    except OSError:
        return ""


def last_lines(text: str, lines: int = _TAIL) -> str:
    """Return the last lines of a log's text, without what the controller notes again and again."""
    return "\n".join([line for line in text.splitlines() if not _NOISE.search(line)][-lines:])


def reason(text: str) -> str:
    """Return the last complaint in a log; empty when there is none.

    That ipcluster waited in vain for its controller is no reason: what the controller complained of is.
    """
    found = [complaint for complaint in _COMPLAINT.findall(text) if "Controller stopped with" not in complaint]
    return found[-1].strip() if found else ""


def advice(text: str, otherwise: str) -> str:
    """Return what to try when this stands in the log, ``otherwise`` when it tells nothing."""
    return next((what for sign, what in _ADVICE.items() if sign in text), otherwise)


def port_is_taken(text: str) -> bool:
    """Tell from the controller's log whether a part of the controller could not bind its port.

    Some of these parts then end, and may be reaped before anybody looks; some live on without the port.
    """
    return _PORT_TAKEN in text


def engines_lost(output: Path) -> str:
    """Say what ipcluster's own output tells about engines that its file does not name; empty when it is nothing bad."""
    text = tail(output, sys.maxsize)
    return next((what for sign, what in _ENGINELESS.items() if re.search(sign, text)), "")


def controller_lost(output: Path) -> str:
    """Say what ipcluster's own output tells about a controller that its file has never named; empty for nothing."""
    lost = _CONTROLLERLESS.search(tail(output, sys.maxsize))
    return "the controller ended before ipcluster could start the engines" if lost else ""


def not_recognized(said: str, arguments: Iterable[str]) -> str:
    """Return ipcluster's or the controller's warning about one of these arguments: it names a setting that is none.

    Other settings of this kind come from a profile's files, and those may be meant for another version.
    """
    names = {argument.split("=", 1)[0].rpartition(".")[2] for argument in arguments}
    found = _NOT_RECOGNIZED.finditer(said)
    return next((warning[0] for warning in found if warning["name"] in names), "")
