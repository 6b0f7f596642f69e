"""Makes processes with nothing but a heart in them, quickly: one interpreter that has Heart imported, and forks.

Run by ``Nursery``, with the addresses for pings and pongs. Each line on its input, of ids in hexadecimal digits, is
answered by a line of pids. All of them end when the input does.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import TracebackType

from pytest_ipcluster.hearts.heart import Heart


class Nursery:
    """The interpreter that makes the hearts; as a context manager it ends with all of them."""

    def __init__(self, ping: str, pong: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, ping, pong], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def bear(self, hearts: Sequence[bytes]) -> list[int]:
        """Start a process for each of these hearts and return their pids."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(*(heart.hex() for heart in hearts), file=self._process.stdin, flush=True)
        return [int(pid) for pid in self._process.stdout.readline().split()]


def main() -> None:
    ping, pong = sys.argv[1:]
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that are killed
    reading, writing = os.pipe()
    for line in sys.stdin:
        pids = [_fork(ping, pong, bytes.fromhex(digits), reading, writing) for digits in line.split()]
        print(*pids, flush=True)


def _fork(ping: str, pong: str, ident: bytes, reading: int, writing: int) -> int:
    if pid := os.fork():
        return pid
    os.close(writing)
    Heart(ping, pong, heart_id=ident).start()
    os.read(reading, 1)  # until the nursery has ended, however it did
    os._exit(0)


if __name__ == "__main__":
    main()
