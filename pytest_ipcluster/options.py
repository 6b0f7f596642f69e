"""Which options there are, and where the value of one was given.

Every option has three spellings: ``--ipcluster-n`` on the command line, ``PYTEST_IPCLUSTER_N`` in the environment
and ``ipcluster_n`` in the ini file. The first place that gives a value wins, in this order; a 0 or an empty text
is a value. All places hold text, and one validator for each option judges it, so a bad value is told in the same
words wherever it came from.
"""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import pytest

from pytest_ipcluster.launchers import FORKSERVER, check_launcher

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "ARGS",
    "DEFAULT",
    "ENGINES",
    "HEART_MISSES",
    "HEART_PERIOD",
    "KILL_AFTER",
    "LEAKS",
    "MONITOR",
    "OPTIONS",
    "PROFILE",
    "SEED",
    "SPARES",
    "START_TIMEOUT",
    "TIMEOUT",
    "ZOMBIES",
    "N",
    "Option",
    "add_options",
    "find",
]

T = TypeVar("T")

DEFAULT = "default"


# -- validators: they return the value, or raise a ValueError whose text says what is accepted


def _whole(what: str, *, least: int = 1) -> Callable[[object], int]:
    """Make a validator for counts; True and 2.0 are no counts."""

    def check(value: object) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and value >= least:
            return value
        raise ValueError(f"a whole number of {what}, {least} or more")

    return check


def _seed(value: object) -> int | None:
    """Validate a seed: any whole number that is not negative."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise ValueError("a whole number, 0 or more")


def _real(what: str, *, zero: bool) -> Callable[[object], float]:
    """Make a validator for durations: finite, and more than zero unless ``zero`` is allowed too."""

    def check(value: object) -> float:
        if isinstance(value, float) and math.isfinite(value) and (value > 0 or (zero and value == 0)):
            return value
        raise ValueError(f"a number of {what}, {'0 or more' if zero else 'more than 0'}")

    return check


def _strings(value: object) -> tuple[str, ...]:
    """Validate an argument list; a single string is refused, for it could mean one argument or several."""
    if isinstance(value, list | tuple) and all(isinstance(word, str) for word in value):
        return tuple(value)
    raise ValueError("a list of strings, one for each argument")


def _one_of(*words: str) -> Callable[[object], str]:
    """Make a validator for a choice between words."""

    def check(value: object) -> str:
        if isinstance(value, str) and value in words:
            return value
        raise ValueError(f"one of {', '.join(words)}")

    return check


def _profile(value: object) -> str | None:
    """Validate the name of an IPython profile, which must exist; None stands for a private one."""
    if value is None:
        return None
    folder = Path(os.environ.get("IPYTHONDIR") or "~/.ipython").expanduser()
    known = sorted(path.name.removeprefix("profile_") for path in folder.glob("profile_*") if path.is_dir())
    if isinstance(value, str) and value in known:
        return value
    found = f"which has {', '.join(known)}" if known else "which has none"
    raise ValueError(f"the name of a profile in {folder}, {found}")


# -- converters: from the text that all places hold to what the validator judges


def _or_text(convert: Callable[[str], object]) -> Callable[[str], object]:
    """Make a converter that leaves what it can't convert to the validator, which refuses it."""

    def converted(text: str) -> object:
        try:
            return convert(text)
        except ValueError:
            return text

    return converted


def _shell_words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ValueError(f"arguments quoted as for a shell ({error})") from error


def _text_or_none(text: str) -> str | None:
    return text or None


# -- the table


class Option(Generic[T]):
    """One option: its name in snake case, from which the three spellings follow, and what its value may be.

    ``default_told`` is how ``--help`` writes a default that would not read well as it is. No dataclass: that takes a
    millisecond to define, and this is imported in every run of pytest.
    """

    def __init__(
        self,
        name: str,
        metavar: str,
        default: T,
        convert: Callable[[str], object],
        check: Callable[[object], T],
        help: str,  # noqa: A002 - as pytest and argparse call it
        default_told: str | None = None,
    ) -> None:
        self.name = name
        self.metavar = metavar
        self.default = default
        self.convert = convert
        self.check = check
        self.help = help
        self.default_told = default_told

    @property
    def flag(self) -> str:
        """The spelling on the command line."""
        return f"--ipcluster-{self.name.replace('_', '-')}"

    @property
    def ini(self) -> str:
        """The spelling in the ini file, and the name that argparse keeps the value under."""
        return f"ipcluster_{self.name}"

    @property
    def env(self) -> str:
        """The environment variable."""
        return f"PYTEST_IPCLUSTER_{self.name.upper()}"


N = Option(
    "n",
    metavar="N",
    default=2,
    convert=_or_text(int),
    check=_whole("engines"),
    help="engines of the cluster",
)
ARGS: Option[tuple[str, ...]] = Option(
    "args",
    metavar="ARGS",
    default=(),
    convert=_shell_words,
    check=_strings,
    help='extra arguments for "ipcluster start", split as by a shell: --ipcluster-args="--log-level=DEBUG"',
    default_told="none",
)
ENGINES = Option(
    "engines",
    metavar="NAME",
    default=FORKSERVER,
    default_told=f"{FORKSERVER}; in a profile of yours what that says",
    convert=str,
    check=check_launcher,
    help="engine launcher: a name that ipyparallel knows (forkserver, local, mpi, slurm, ...) or an import path",
)
PROFILE: Option[str | None] = Option(
    "profile",
    metavar="NAME",
    default=None,
    convert=_text_or_none,
    check=_profile,
    help="IPython profile of yours to run the cluster in",
    default_told="none: a private, temporary one",
)
HEART_PERIOD = Option(
    "heart_period",
    metavar="MS",
    default=100.0,
    default_told="100",
    convert=_or_text(float),
    check=_real("milliseconds", zero=False),
    help="milliseconds from one heartbeat of the engines to the next",
)
HEART_MISSES = Option(
    "heart_misses",
    metavar="N",
    default=3,
    convert=_or_text(int),
    check=_whole("heartbeats"),
    help="heartbeats that an engine misses, one after the other, before it is taken for failed",
)
MONITOR = Option(
    "monitor",
    metavar="{auto,thread,process}",
    default="auto",
    convert=str,
    check=_one_of("auto", "thread", "process"),
    help="where the heart monitor runs: in pytest or in a process of its own; auto is process from 32 engines on",
)
SPARES = Option(
    "spares",
    metavar="N",
    default=0,
    convert=_or_text(int),
    check=_whole("engines", least=0),
    help="engines that are kept ready, out of sight, to replace others sooner; needs the launcher forkserver",
)
START_TIMEOUT = Option(
    "start_timeout",
    metavar="S",
    default=60.0,
    default_told="60",
    convert=_or_text(float),
    check=_real("seconds", zero=False),
    help="seconds for everything from the start of the cluster until all engines can be used",
)
TIMEOUT = Option(
    "timeout",
    metavar="S",
    default=300.0,
    default_told="300",
    convert=_or_text(float),
    check=_real("seconds", zero=True),
    help="seconds that pytest-timeout gives to a test that uses the cluster and has no limit otherwise; 0 is no limit",
)
KILL_AFTER = Option(
    "kill_after",
    metavar="S",
    default=5.0,
    default_told="5",
    convert=_or_text(float),
    check=_real("seconds", zero=True),
    help="seconds that the cluster gets to stop by itself before it is killed",
)
SEED: Option[int | None] = Option(
    "seed",
    metavar="N",
    default=None,
    default_told="chosen at random, and told by a test that fails",
    convert=_or_text(int),
    check=_seed,
    help="what random faults follow from: the same number gives the same faults to the same test",
)
ZOMBIES = Option(
    "zombies",
    metavar="{replace,keep,fail}",
    default="replace",
    convert=str,
    check=_one_of("replace", "keep", "fail"),
    help="what happens in a test to an engine that the hub has dropped for good when it goes on after a pause",
)
LEAKS = Option(
    "leaks",
    metavar="{fail,warn,off}",
    default="fail",
    convert=str,
    check=_one_of("fail", "warn", "off"),
    help="what processes and folders that a test or the cluster leaves behind do to the run; of threads, sockets "
    "and descriptors it is only ever warned",
)

OPTIONS: Sequence[Option[Any]] = (
    N,
    ARGS,
    ENGINES,
    PROFILE,
    HEART_PERIOD,
    HEART_MISSES,
    MONITOR,
    SPARES,
    START_TIMEOUT,
    TIMEOUT,
    KILL_AFTER,
    SEED,
    ZOMBIES,
    LEAKS,
)


def add_options(parser: pytest.Parser) -> None:
    """Give every option of the table to pytest, on the command line and in the ini file."""
    group = parser.getgroup("ipcluster", "a real IPython Parallel cluster for tests")
    for option in OPTIONS:
        default = option.default if option.default_told is None else option.default_told
        twins = f"(default: {default}; ini: {option.ini}; environment: {option.env})"
        group.addoption(option.flag, dest=option.ini, metavar=option.metavar, help=f"{option.help} {twins}")
        parser.addini(option.ini, f"Same as {option.flag}.", default=None)


# -- looking a value up


def find(option: Option[T], config: pytest.Config) -> tuple[T, str]:
    """Look for the option's value: command line, then environment, then ini file, then the default.

    Returns the valid value, and the place where it was given. Raises :class:`pytest.UsageError` when the one that wins
    is not accepted.
    """
    for place, spelling, text in _places(option, config):
        if text is not None:
            value = _validated(option, text, told=f"{spelling}={text!r} (from the {place})")
            return value, f"{place} variable {spelling}" if spelling == option.env else place
    return option.default, DEFAULT


def _places(option: Option[T], config: pytest.Config) -> Iterator[tuple[str, str, str | None]]:
    yield "command line", option.flag, config.getoption(option.ini)
    yield "environment", option.env, os.environ.get(option.env)
    yield "ini file", option.ini, config.getini(option.ini)


def _validated(option: Option[T], text: str, *, told: str) -> T:
    try:
        return option.check(option.convert(text))
    except ValueError as error:
        raise pytest.UsageError(f"{told}: expected {error}") from error
