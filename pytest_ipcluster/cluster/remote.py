"""Asserting on exceptions that were raised on engines and arrive wrapped."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["RemoteFailure", "raises_remote"]

#: Tracebacks come with the colours of the engine's IPython.
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

#: What the deadman calls the same, where ipyparallel is slow to tell of it.
_ALSO = {"EngineError": "EngineLost"}


@dataclass(slots=True)
class RemoteFailure:
    """What a :func:`raises_remote` block caught; filled when the block ends.

    ``error`` is the exception as ipyparallel raised it; ``name`` and ``message`` are those of the exception on
    the engine; ``engine`` is the id of the first engine that raised it, None when ipyparallel does not say;
    ``traceback`` is the engine's.
    """

    error: BaseException | None = None
    name: str = ""
    message: str = ""
    engine: int | None = None
    traceback: str = ""


@contextmanager
def raises_remote(
    expected: type[BaseException] | tuple[type[BaseException], ...], match: str | None = None
) -> Iterator[RemoteFailure]:
    """Assert that the block raises an exception of an engine's, of the ``expected`` type or a subclass of it.

    ``match`` is a regular expression that is searched for in the exception's message. When several engines
    raised, each of them must fit. Anything that does not come from an engine passes through unchanged. Raises
    AssertionError.

    An engine's exception arrives as its name, so types are compared by name. A task whose engine died raises
    ``ipyparallel.error.EngineError``. That accepts :class:`EngineLost` as well, which such a task raises where
    ipyparallel has not told of the death in time.
    """
    from ipyparallel.error import CompositeError, RemoteError

    kinds = expected if isinstance(expected, tuple) else (expected,)
    wanted = " or ".join(kind.__name__ for kind in kinds)
    caught = RemoteFailure()
    try:
        yield caught
    except CompositeError as error:
        remote = [_Remote(str(e[0]), str(e[1]), str(e[2]), e[3]) for e in error.elist]
        _fill(caught, error, remote[0])
        _check(remote, kinds, match, wanted, error)
    except RemoteError as error:
        one = _Remote(error.ename, error.evalue, error.traceback or "", error.engine_info)
        _fill(caught, error, one)
        _check([one], kinds, match, wanted, error)
    else:
        raise AssertionError(f"no engine raised {wanted}")


@dataclass(frozen=True, slots=True)
class _Remote:
    name: str
    message: str
    traceback: str
    info: object


def _fill(caught: RemoteFailure, error: BaseException, remote: _Remote) -> None:
    info = remote.info if isinstance(remote.info, dict) else {}
    caught.error = error
    caught.name, caught.message = remote.name, remote.message
    caught.traceback = _COLOUR.sub("", remote.traceback)
    caught.engine = info.get("engine_id")


def _check(
    raised: list[_Remote],
    kinds: tuple[type[BaseException], ...],
    match: str | None,
    wanted: str,
    error: BaseException,
) -> None:
    names = {name for kind in kinds for name in _names(kind)}
    for remote in raised:
        if remote.name not in names:
            raise AssertionError(f"an engine raised {remote.name}({remote.message!r}), not {wanted}") from error
        if match is not None and not re.search(match, remote.message):
            raise AssertionError(
                f"an engine raised {remote.name} with {remote.message!r}, which does not match {match!r}"
            ) from error


def _names(kind: type[BaseException]) -> Iterator[str]:
    """Yield the name of this type and of all its known subclasses, and what is as good as they are."""
    yield kind.__name__
    if kind.__name__ in _ALSO:
        yield _ALSO[kind.__name__]
    for subclass in kind.__subclasses__():
        yield from _names(subclass)
