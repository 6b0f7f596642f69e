"""Nannies of engines that are forked: each is forked by its engine, at the very start, while that has one thread.

It waits for what the engine tells nannies on their standard input, and ends silently when that ends without a word.
"""

from __future__ import annotations

import io
import os
import pickle
import signal
import sys
from typing import Any, NoReturn

__all__ = ["PreparedNanny", "flush_output"]


def flush_output() -> None:
    """Write what is in the buffers, which each fork would write again."""
    for stream in (sys.stdout, sys.stderr):
        if not stream.closed:
            stream.flush()


class PreparedNanny:
    """The nanny of the engine that this process is going to be, forked while the process has one thread.

    For the engine it is what the Popen object of a nanny is: ``pid``, ``stdin`` and ``stdout``.
    """

    def __init__(self) -> None:
        told, tell = os.pipe()
        hear, say = os.pipe()
        flush_output()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(tell)
            os.close(hear)
            _be_nanny(told, say)
        os.close(told)
        os.close(say)
        self.stdin = os.fdopen(tell, "wb")
        self.stdout = os.fdopen(hear, "rb")
        self._told: dict[str, Any] = {}

    def offer(self) -> None:
        """Have the engine take this nanny instead of starting one; one that wants none sends it away."""
        from ipyparallel.engine import app

        start = app.IPEngine.start

        def start_without(engine: Any) -> None:
            if not engine.enable_nanny:
                self.dismiss()
            elif engine.id is not None:
                self._tell_early(engine)
            start(engine)

        app.start_nanny = self.engage
        app.IPEngine.start = start_without

    def _tell_early(self, engine: Any) -> None:
        """Have the nanny start while the engine registers: all is known if the hub gives the id that is asked for."""
        from ipyparallel.engine import app

        app.start_nanny = self._tell
        engine.start_nanny(control_url=f"{engine.connection_info['interface']}:{engine.connection_info['control']}")
        app.start_nanny = self.engage

    def engage(self, **told: Any) -> tuple[str, Any]:
        """Do what ``ipyparallel.engine.nanny.start_nanny`` does, and return what it returns."""
        if self._told and self._told != told:
            return self._give_up_for_another(told)
        if not self._told:
            self._tell(**told)
        url = self.stdout.readline().decode().strip()
        if not url:
            os.kill(self.pid, signal.SIGTERM)
            raise RuntimeError("nanny failed")
        return url, self

    def _tell(self, **told: Any) -> None:
        self._told = told
        self.stdin.write(pickle.dumps({**told, "pid": os.getpid()}))
        self.stdin.close()

    def _give_up_for_another(self, told: dict[str, Any]) -> tuple[str, Any]:
        """Start a nanny as every engine does: this one believes what has turned out to be wrong."""
        from ipyparallel.engine.nanny import start_nanny

        os.kill(self.pid, signal.SIGKILL)
        self.dismiss()
        url, nanny = start_nanny(**told)
        return url, nanny

    def dismiss(self) -> None:
        """Let it go: nobody needs it."""
        self.stdin.close()
        self.stdout.close()
        os.waitpid(self.pid, 0)


def _be_nanny(told: int, say: int) -> NoReturn:
    """Wait for what the engine tells its nanny, and be that. Ends the process."""
    os.setsid()
    os.environ["PYTHONUNBUFFERED"] = "1"
    os.dup2(told, 0)
    os.close(told)
    code = 1
    try:
        with os.fdopen(0, "rb") as engine:
            words = engine.read()
        code = _nanny(words, say) if words else 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        flush_output()
        os._exit(code)


def _nanny(words: bytes, say: int) -> int:
    from ipyparallel.engine.nanny import KernelNanny

    os.dup2(say, 1)
    os.close(say)
    sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb"), line_buffering=True)
    KernelNanny.main(**pickle.loads(words), pipe=sys.stdout)  # noqa: S301 - from the engine, as ever
    return 0
