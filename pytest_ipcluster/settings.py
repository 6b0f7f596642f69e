"""What the user asked for: the settings of the run, and the shape of the cluster that one test runs on.

Settings come from the options, a shape from the settings and from the test's markers, which win. Every value is
validated before anything is started; each mistake is one line of a :class:`pytest.UsageError` that names the
value, the place where it was given, and what is accepted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NoReturn, Self, dataclass_transform

import pytest

from pytest_ipcluster import options
from pytest_ipcluster.launchers import FAULTS, LOCAL, capabilities, network_refusal

__all__ = [
    "MARKER",
    "MARKER_HELP",
    "SETTINGS",
    "Settings",
    "Shape",
    "all_mistakes",
    "header_line",
    "marker_mistakes",
    "missing_faults",
    "network_mistake",
    "read_settings",
    "shape_for",
]

#: The marker's name, and the line about it that ``pytest --markers`` prints.
MARKER = "ipcluster"
MARKER_HELP = (
    "ipcluster(*, n=2, extra_args=[], engines='forkserver', requires=(), network=False): the cluster that the test, "
    "class or module runs on. n is the number of engines, extra_args are further arguments for 'ipcluster start', "
    "engines is the engine launcher; what is left out comes from the --ipcluster options. requires lists faults, of "
    f"{', '.join(map(repr, FAULTS))}: the test is skipped where the launcher's engines can't be hurt that way. With "
    "network=True each engine has a network of its own that can be cut and slowed."
)


@dataclass_transform(kw_only_default=True, frozen_default=True)
class _Record:
    """Values by name, compared by value; to a type checker this makes frozen dataclasses of its subclasses.

    No real ones, nor named tuples: both take some tenths of a millisecond to define, and this is imported in every run
    of pytest.
    """

    def __init__(self, **values: Any) -> None:
        if wrong := self.__annotations__.keys() ^ values.keys():
            raise TypeError(f"{type(self).__name__}: missing or unknown: {', '.join(sorted(wrong))}")
        vars(self).update(values)

    def replaced(self, **changes: Any) -> Self:
        """Return the same with some values changed."""
        return type(self)(**{**vars(self), **changes})

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{name} can't be changed")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{name} can't be taken away")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash(frozenset(vars(self).items()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


class Shape(_Record):
    """What makes one cluster different from another; tests of equal shape share a cluster.

    ``engines`` is the launcher, ``extra_args`` go to ``ipcluster start``, ``profile`` None is a private profile,
    ``network`` says whether each engine has a network of its own.
    """

    n: int
    engines: str
    extra_args: tuple[str, ...]
    profile: str | None
    network: bool


class Settings(_Record):
    """The options of one run, validated.

    ``shape`` is the cluster of tests that carry no marker. ``heart_period`` is in milliseconds, ``start_timeout``,
    ``timeout`` and ``kill_after`` are in seconds, ``monitor`` is "auto", "thread" or "process", ``seed`` is what random
    faults follow from, ``zombies`` is "replace", "keep" or "fail", ``leaks`` is "fail", "warn" or "off". ``sources``
    tells for each option (``n``, ``heart_period`` ...) where its value came from: "command line", "environment variable
    PYTEST_IPCLUSTER_N", "ini file" or "default".
    """

    shape: Shape
    heart_period: float
    heart_misses: int
    monitor: str
    spares: int
    start_timeout: float
    timeout: float
    kill_after: float
    seed: int
    zombies: str
    leaks: str
    sources: Mapping[str, str]


#: Where the run's settings are kept: ``config.stash[SETTINGS]``.
SETTINGS: pytest.StashKey[Settings] = pytest.StashKey()


def read_settings(config: pytest.Config) -> Settings:
    """Read the options of this run; a value that is not accepted raises :class:`pytest.UsageError`."""
    sources: dict[str, str] = {}

    def value(option: options.Option[options.T]) -> options.T:
        found, sources[option.name] = options.find(option, config)
        return found

    profile, engines = value(options.PROFILE), value(options.ENGINES)
    if profile is not None and sources[options.ENGINES.name] == options.DEFAULT:
        engines = LOCAL  # or whatever the profile says

    args = value(options.ARGS)
    return Settings(
        shape=Shape(n=value(options.N), engines=engines, extra_args=args, profile=profile, network=False),
        heart_period=value(options.HEART_PERIOD),
        heart_misses=value(options.HEART_MISSES),
        monitor=value(options.MONITOR),
        spares=value(options.SPARES),
        start_timeout=value(options.START_TIMEOUT),
        timeout=value(options.TIMEOUT),
        kill_after=value(options.KILL_AFTER),
        seed=_random_seed() if (seed := value(options.SEED)) is None else seed,
        zombies=value(options.ZOMBIES),
        leaks=value(options.LEAKS),
        sources=MappingProxyType(sources),
    )


def _random_seed() -> int:
    return int.from_bytes(os.urandom(4))


def header_line(settings: Settings) -> str:
    """Describe the run's cluster in one line, with the source of everything that is not a default."""
    shape = settings.shape
    engines = f"{shape.n} engine{'s' if shape.n > 1 else ''} ({shape.engines})"
    hearts = f"a heartbeat every {settings.heart_period:g} ms, {settings.heart_misses} missed is a failure"
    given = [f"{name} from {source}" for name, source in settings.sources.items() if source != options.DEFAULT]
    return f"{MARKER}: {'; '.join([engines, hearts, *given])}"


def shape_for(settings: Settings, markers: Iterable[pytest.Mark], nodeid: str) -> Shape:
    """Return the shape of one test's cluster: a keyword from the closest marker that gives it, else the setting.

    ``markers`` come closest first, as :meth:`pytest.Item.iter_markers` yields them. A mistake in any of them
    raises :class:`pytest.UsageError`, also when a closer marker gives the same keyword.
    """
    markers = list(markers)
    mistakes = [line for marker in markers for line in marker_mistakes(marker, nodeid)]
    if mistakes:
        raise pytest.UsageError(*mistakes)
    asked = _closest(markers)
    asked.pop("requires", None)
    return settings.shape.replaced(**asked)


def missing_faults(shape: Shape, markers: Iterable[pytest.Mark]) -> tuple[str, ...]:
    """Return what valid markers require and the shape's launcher can't do; such a test is skipped."""
    able = capabilities(shape.engines)
    return tuple(fault for fault in _closest(markers).get("requires", ()) if fault not in able)


def marker_mistakes(marker: pytest.Mark, nodeid: str) -> list[str]:
    """Return a line for each mistake in one ``ipcluster`` marker; none when it is right."""
    accepted = ", ".join(f"{name}=" for name in _KEYWORDS)
    told = f"{nodeid}: @pytest.mark.{MARKER}"
    lines = []
    if marker.args:
        given = ", ".join(map(repr, marker.args))
        lines.append(f"{told}({given}): positional arguments are not accepted; expected keywords: {accepted}")
    for name, value in marker.kwargs.items():
        if name not in _KEYWORDS:
            lines.append(f"{told}({name}={value!r}): unknown keyword {name!r}; expected keywords: {accepted}")
        elif expected := _refusal(name, value):
            lines.append(f"{told}({name}={value!r}): expected {expected}")
    return lines


def network_mistake(shape: Shape, nodeid: str) -> str:
    """Say why engines of this shape can't have the networks that the test's marker asks for; empty when they can."""
    refusal = network_refusal(shape.engines, private=shape.profile is None) if shape.network else ""
    return f"{nodeid}: @pytest.mark.{MARKER}(network=True): {refusal}" if refusal else ""


def all_mistakes(items: Iterable[pytest.Item]) -> list[str]:
    """Return a line for each mistake; that in a class's or module's marker once, with its first test."""
    lines: dict[int, list[str]] = {}
    for item in items:
        for marker in item.iter_markers(MARKER):
            if id(marker) not in lines:
                lines[id(marker)] = marker_mistakes(marker, item.nodeid)
    return [line for told in lines.values() for line in told]


def _refusal(name: str, value: object) -> str | None:
    """Return what is accepted for the keyword when the value is not, else None."""
    try:
        _KEYWORDS[name](value)
    except ValueError as error:
        return str(error)
    return None


def _closest(markers: Iterable[pytest.Mark]) -> dict[str, Any]:
    """Return the validated keywords of all markers, each from the first marker that gives it."""
    asked: dict[str, object] = {}
    for marker in markers:
        for name, value in marker.kwargs.items():
            asked.setdefault(name, _KEYWORDS[name](value))
    return asked


def _faults(value: object) -> tuple[str, ...]:
    """Validate ``requires``; a single string is refused, as it would read as a list of its letters."""
    if isinstance(value, list | tuple) and all(word in FAULTS for word in value):
        return tuple(value)
    raise ValueError(f"a tuple or list of faults, of {', '.join(map(repr, FAULTS))}")


def _network(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError("True or False")


_KEYWORDS: Mapping[str, Callable[[object], object]] = {
    "n": options.N.check,
    "extra_args": options.ARGS.check,
    "engines": options.ENGINES.check,
    "requires": _faults,
    "network": _network,
}
