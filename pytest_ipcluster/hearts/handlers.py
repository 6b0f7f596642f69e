"""Users' handlers: whom to tell about a heart, and what they have raised."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass

__all__ = ["Handler", "HandlerError", "Handlers"]

#: What users register: called with the id of a heart, on the monitor's thread.
Handler = Callable[[bytes], object]


@dataclass(frozen=True, slots=True)
class HandlerError:
    """A handler raised ``exception`` when it was told about ``heart``."""

    handler: Handler
    heart: bytes
    exception: BaseException


class Handlers:
    """Handlers in order of registration, each once; what they raise goes into ``errors``. Thread-safe."""

    def __init__(self, errors: list[HandlerError]) -> None:
        self._errors = errors
        self._handlers: list[Handler] = []
        self._changing = threading.Lock()

    def add(self, handler: Handler) -> None:
        """Call it from now on; adding it again changes nothing."""
        with self._changing:
            if handler not in self._handlers:
                self._handlers = [*self._handlers, handler]

    @property
    def registered(self) -> tuple[Handler, ...]:
        """The handlers that are called."""
        return tuple(self._handlers)

    def keep(self, wanted: Collection[Handler]) -> None:
        """Remove all handlers but these."""
        with self._changing:
            self._handlers = [handler for handler in self._handlers if handler in wanted]

    def remove(self, handler: Handler) -> None:
        """Call it no more; no error when it was never added."""
        with self._changing:
            self._handlers = [other for other in self._handlers if other != handler]

    def call(self, heart: bytes) -> None:
        """Tell all of them about this heart; one that raises does not silence the next."""
        for handler in self._handlers:
            try:
                handler(heart)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # what pytest.fail() raises is no Exception
                self._errors.append(HandlerError(handler, heart, error))
